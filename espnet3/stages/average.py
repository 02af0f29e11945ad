"""The average of the K best checkpoints, one file for each averaging that is asked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def run(index: str | os.PathLike, monitor: str, k: int, output: str | os.PathLike) -> None:
    """Average the *k* best epochs by *monitor* (``valid.loss`` for ``valid/loss``), or the ``last`` *k*.

    Args:
        index: ``checkpoints.json``; the weights it names lie beside it.
        output: safetensors file; its metadata lists the epochs.

    Raises:
        UserError: the monitor was not kept, a file is missing or damaged, or tensors do not fit.
    """
    from espnet3.errors import UserError, did_you_mean
    from espnet3.io import read_json, sha256_file
    from espnet3.trainer.averaging import average

    content = read_json(index)
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
    chosen = ranked[:k]
    if len(chosen) < k:
        log.warning("%s: only %d of %d checkpoints to average by %s", index, len(chosen), k, monitor)
    paths = [Path(index).parent / e["file"] for e in chosen]
    for path, entry in zip(paths, chosen, strict=True):
        if not path.exists() or sha256_file(path) != entry["sha256"]:
            raise UserError(f"{path}: missing or not what training wrote; run the training again (its state is kept)")
    epochs = ",".join(str(e["epoch"]) for e in sorted(chosen, key=lambda e: e["epoch"]))
    average(paths, output, {"epochs": epochs, "monitor": monitor})
    log.info("%s: average of epochs %s by %s", output, epochs, monitor)
