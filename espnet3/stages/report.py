"""One self-contained page of an experiment's results."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from espnet3.io import atomic_write, read_json

log = logging.getLogger(__name__)


def run(
    experiment: str,
    metrics: Sequence[str | os.PathLike],
    index: str | os.PathLike,
    output: str | os.PathLike,
    *,
    conf: dict[str, Any] | None = None,
    benchmarks: str | os.PathLike | None = None,
) -> None:
    """Write the report.

    Args:
        experiment: its name.
        metrics: ``score/<decoding>/<test set>/metrics.json``; the ``.trn`` files beside them give the worst utterances.
        index: ``checkpoints.json``: ``history`` (an entry an epoch) and ``checkpoints``.
        output: ``index.html``.
        conf: the configuration to show.
        benchmarks: folder of Snakemake's benchmark tables.

    Raises:
        UserError: a file is absent or damaged.
    """
    import yaml

    from espnet3.report.compare import differences_from_best
    from espnet3.report.costs import read_costs
    from espnet3.report.curves import learning_curves
    from espnet3.report.page import render
    from espnet3.report.table import read_rows
    from espnet3.report.worst import worst_utterances

    rows = read_rows(metrics)
    checkpoints = read_json(index)
    decodings = dict.fromkeys(row.decoding for row in rows)
    page = render(
        experiment,
        rows,
        curves=learning_curves(checkpoints),
        worst=[(name, worst_utterances(row for row in rows if row.decoding == name)) for name in decodings],
        costs=read_costs(benchmarks),
        index=checkpoints,
        differences=differences_from_best(rows),
        configuration=yaml.safe_dump(conf, sort_keys=False, allow_unicode=True) if conf else "",
    )
    with atomic_write(output) as handle:
        handle.write(page)
    log.info("%s: %d decodings of %d test sets", output, len(decodings), len({row.test_set for row in rows}))
