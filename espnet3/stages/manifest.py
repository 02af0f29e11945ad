"""Stage ``manifest``: a split of the corpus as a validated Lhotse CutSet."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def run(
    conf: dict[str, Any],
    corpus: str | os.PathLike,
    split: str,
    output: str | os.PathLike,
    rejected: str | os.PathLike,
    parallel: dict[str, Any] | None = None,
) -> None:
    """Write ``data/<corpus>/<split>.jsonl.gz`` and the list of what it leaves out, with the reasons.

    Raises:
        UserError: the split has no recordings, or more than ``data.max_rejected`` of them are unfit.
    """
    from espnet3.data.manifest import build_manifest

    data = conf["data"]
    limits = {key: data[key] for key in ("sampling_rate", "min_duration", "max_duration")}
    cache = Path(output).parent / "cache" / f"{split}.headers.sqlite"
    good, bad = build_manifest(corpus, split, output, rejected, limits, data["max_rejected"], parallel, cache)
    logger.info("%s: %d utterances, %d rejected", output, good, bad)
