"""Feature statistics (CMVN) as shards and a merge."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)

# Sums are kept in fixed point: adding integers has no order, so any number of shards merges to the same bytes
SCALE = 2.0**16


def run_shard(
    conf: dict[str, Any],
    manifest: str | os.PathLike,
    shard: int,
    of: int,
    output: str | os.PathLike,
    execution: dict[str, Any] | None = None,
) -> None:
    """Count, sum and sum of squares of the features of shard *shard* (from 1) of *of*, and each utterance's frames.

    Args:
        conf: ``data.sampling_rate`` and ``model.frontend``.
        output: npz: ``ids, lengths, sum, sum_square`` (fixed point, int64), ``shard, of``.

    Raises:
        UserError: an utterance cannot be read, or its features are not finite.
    """
    import numpy as np
    import torch

    from espnet3.config.instantiate import instantiate
    from espnet3.data.dataset import ESPnet3Dataset
    from espnet3.data.manifest import read_durations
    from espnet3.errors import UserError
    from espnet3.parallel import plan_shards

    ids, durations = read_durations(manifest)
    if not 1 <= shard <= of:
        raise UserError(f"stats: there is no shard {shard} of {of}")
    mine = plan_shards(ids, durations, of)[shard - 1]
    # One utterance at a time and one thread: its sums must not depend on what else is in a batch
    torch.set_num_threads(1)
    frontend = instantiate(conf["model"]["frontend"]).eval()
    dataset = ESPnet3Dataset(manifest)
    total = np.zeros(frontend.output_size, dtype=np.int64)
    square = np.zeros_like(total)
    lengths = []
    start = said = time.monotonic()
    audio = 0.0
    with torch.inference_mode():
        for done, index in enumerate(mine, 1):
            uid, data = dataset[index]
            speech = torch.as_tensor(data["speech"]).unsqueeze(0)
            feats, frames = frontend(speech, torch.tensor([speech.size(1)]))
            feats = feats[0, : int(frames[0])].double()
            sums = feats.sum(0), feats.square().sum(0)
            if not all(torch.isfinite(s).all() for s in sums):
                raise UserError(f"{manifest}: utterance {uid} has features that are not finite; look at its audio")
            total += np.rint(sums[0].numpy() * SCALE).astype(np.int64)
            square += np.rint(sums[1].numpy() * SCALE).astype(np.int64)
            lengths.append(int(frames[0]))
            audio += durations[index]
            if time.monotonic() - said > 10 or done == len(mine):
                said = time.monotonic()
                speed = audio / max(said - start, 1e-9)
                log.info(
                    "stats, shard %d of %d: %d/%d utterances, %.0f s of audio/s", shard, of, done, len(mine), speed
                )
    _write(
        output,
        ids=np.array([ids[i] for i in mine], dtype=np.str_),
        lengths=np.array(lengths, dtype=np.int64),
        sum=total,
        sum_square=square,
        shard=np.int64(shard),
        of=np.int64(of),
    )


def merge(shards: Sequence[str | os.PathLike], output: str | os.PathLike) -> None:
    """All shards to ``count, sum, sum_square, mean, std`` (float64), ``ids`` and ``lengths`` in frames, sorted by id.

    Raises:
        UserError: a shard is missing, given twice or damaged, or there are no frames.
    """
    import zipfile

    import numpy as np

    from espnet3.errors import UserError

    parts = []
    for path in shards:
        try:
            with np.load(path, allow_pickle=False) as part:
                parts.append({name: part[name] for name in part.files})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a shard of statistics ({error}); delete it and run again") from None
    numbers = sorted(int(p["shard"]) for p in parts)
    expected = int(parts[0]["of"]) if parts else 0
    if numbers != list(range(1, expected + 1)):
        raise UserError(f"{output}: needs each of the {expected} shards once, found {numbers}")
    ids = np.concatenate([p["ids"] for p in parts])
    lengths = np.concatenate([p["lengths"] for p in parts])
    order = np.argsort(ids, kind="stable")
    count = int(lengths.sum())
    if not count:
        raise UserError(f"{output}: no frames at all; is the training manifest empty?")
    total = sum(p["sum"] for p in parts) / SCALE
    square = sum(p["sum_square"] for p in parts) / SCALE
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 1e-10))
    # A fixed width would depend on the longest id of the shards
    ids = ids[order].astype(f"<U{max(map(len, ids))}")
    _write(
        output, count=np.int64(count), sum=total, sum_square=square, mean=mean, std=std, ids=ids, lengths=lengths[order]
    )
    log.info("%s: %d utterances, %d frames", output, len(ids), count)


def _write(output: str | os.PathLike, **arrays: Any) -> None:
    import numpy as np

    from espnet3.io import atomic_write

    with atomic_write(output, "wb") as handle:
        np.savez(handle, **arrays)
