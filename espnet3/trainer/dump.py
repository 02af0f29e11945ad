"""Batches that spoilt a step, kept for a person to look at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espnet3.io import atomic_write

log = logging.getLogger(__name__)

MAX_DUMPS = 10
"""Batches that one training keeps; later ones are only named."""


def dump_batches(
    folder: Path,
    step: int,
    epoch: int,
    batches: Sequence[tuple[list[str], dict[str, Any]]],
    checkpoint: dict[str, Any] | None,
    rank: int = 0,
) -> Path | None:
    """Write the batches of a step to ``<folder>/step-<step>.pt``, a dict for ``torch.load(path, weights_only=True)``.

    Its keys: ``step`` and ``epoch`` (from 0) of the attempt; ``batches``, one dict a batch with ``utt_id`` and the
    model's inputs as they were, augmentation of the data set included; ``checkpoint``, the newest full checkpoint's record
    (file, sha256, step), from which the same command reaches this very step again.

    Returns:
        The file; None where there are enough of them already, or the disk does not take it.
    """
    path = folder / f"step-{step:08d}{f'-rank{rank}' if rank else ''}.pt"
    if not path.exists() and len(list(folder.glob("step-*.pt"))) >= MAX_DUMPS:
        return None
    kept = [
        {"utt_id": list(ids), **{k: v.detach().cpu() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}}
        for ids, batch in batches
    ]
    try:
        with atomic_write(path, "wb") as handle:
            torch.save({"step": step, "epoch": epoch, "batches": kept, "checkpoint": checkpoint}, handle)
    except (OSError, RuntimeError) as error:
        # a batch that cannot be kept is no reason to lose the training
        log.warning("%s: not written (%s)", path, error)
        return None
    return path
