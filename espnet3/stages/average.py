"""The average of the K best, the last K or a range of checkpoints, one file for each averaging that is asked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def run(
    index: str | os.PathLike, monitor: str | None, k: int | None, output: str | os.PathLike, epochs: str | None = None
) -> None:
    """Average the *k* best epochs by *monitor* (``valid.loss`` for ``valid/loss``), the ``last`` *k*, or a range of them.

    Args:
        index: ``checkpoints.json``; the weights it names lie beside it.
        epochs: ``3-8``, in place of *monitor* and *k*.
        output: safetensors file; its metadata lists the epochs.

    Raises:
        UserError: the monitor was not kept, a file is missing or damaged, or tensors do not fit.
    """
    from espnet3.errors import UserError
    from espnet3.io import read_json, sha256_file
    from espnet3.trainer.averaging import average

    content = read_json(index)
    chosen = _range(content, index, epochs) if epochs else _best(content, index, str(monitor), int(k or 1))
    paths = [Path(index).parent / e["file"] for e in chosen]
    for path, entry in zip(paths, chosen, strict=True):
        if not path.exists() or sha256_file(path) != entry["sha256"]:
            raise UserError(f"{path}: missing or not what training wrote; run the training again (its state is kept)")
    names = ",".join(str(e["epoch"]) for e in sorted(chosen, key=lambda e: e["epoch"]))
    average(paths, output, {"epochs": names, "monitor": monitor or "epochs"})
    log.info("%s: average of epochs %s by %s", output, names, monitor or "their number")


def _best(content: dict[str, Any], index: str | os.PathLike, monitor: str, k: int) -> list[dict[str, Any]]:
    from espnet3.errors import UserError, did_you_mean

    entries = content["checkpoints"]
    if monitor == "last":
        ranked = sorted(entries, key=lambda e: -e["epoch"])
    else:
        modes = {name.replace("/", "."): (name, mode) for name, _, mode in content["criteria"]}
        if monitor not in modes:
            raise UserError(
                f"{index}: no checkpoints were kept by '{monitor}'{did_you_mean(monitor, [*modes, 'last'])}"
            )
        name, mode = modes[monitor]
        sign = 1 if mode == "min" else -1
        known = [e for e in entries if e["metrics"].get(name) is not None]
        ranked = sorted(known, key=lambda e: (sign * e["metrics"][name], -e["epoch"]))
    if len(ranked) < k:
        log.warning("%s: only %d of %d checkpoints to average by %s", index, len(ranked), k, monitor)
    return ranked[:k]


def _range(content: dict[str, Any], index: str | os.PathLike, epochs: str) -> list[dict[str, Any]]:
    """Of all epochs whose weights are left in the training's state, those from the first to the last named."""
    from espnet3.errors import UserError
    from espnet3.io import read_jsonl

    first, _, last = epochs.partition("-")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise UserError(f"average: epochs '{epochs}' is no range such as 3-8")
    state = content["state"]
    records = {r["epoch"]: r for r in read_jsonl(Path(index).parent / state / "history.jsonl")}
    missing = [n for n in range(int(first), int(last) + 1) if n not in records]
    if missing:
        raise UserError(f"{index}: epoch {missing[0]} was not trained; there are {len(records)}")
    return [{**records[n], "file": f"{state}/{records[n]['file']}"} for n in range(int(first), int(last) + 1)]
