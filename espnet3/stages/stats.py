"""Feature statistics (CMVN) as shards and a merge."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def run_shard(
    conf: dict[str, Any],
    manifest: str | os.PathLike,
    shard: int,
    of: int,
    output: str | os.PathLike,
    execution: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
) -> None:
    """Count, sum and sum of squares of the features of shard *shard* (from 1) of *of*, and each utterance's frames.

    Args:
        conf: ``data.sampling_rate`` and ``model.frontend``; a model without one has no statistics, and no audio is read.
        output: npz: ``ids, lengths, sum, sum_square`` (fixed point, int64), ``shard, of``.
        parallel: where the runner runs; None: in this process, the shards being what runs in parallel.

    Raises:
        UserError: an utterance cannot be read, or its features are not finite.
    """
    import numpy as np

    from espnet3.data.manifest import read_durations
    from espnet3.errors import UserError
    from espnet3.parallel import plan_shards
    from espnet3.trainer.statistics import SCALE, StatsProvider, StatsRunner

    ids, durations = read_durations(manifest)
    if not 1 <= shard <= of:
        raise UserError(f"stats: there is no shard {shard} of {of}")
    mine = plan_shards(ids, durations, of)[shard - 1]
    frontend = conf.get("model", {}).get("frontend")
    if frontend is None:
        # a model that normalises by itself: lengths in samples are all that there is to know, and the manifest has them
        rate = conf["data"]["sampling_rate"]
        found = [{"id": ids[i], "frames": round(durations[i] * rate), "sum": [], "sum_square": []} for i in mine]
    else:
        provider = StatsProvider({"manifest": str(manifest), "frontend": frontend})
        name = f"stats, shard {shard} of {of}"
        runner = StatsRunner(provider, keys=ids, weights=durations, parallel=parallel or {"env": "local"}, name=name)
        found = runner(mine)
    width = {len(record["sum"]) for record in found} or {0}
    sums = {
        key: np.array([record[key] for record in found], dtype=np.int64).reshape(len(found), *width).sum(0)
        for key in ("sum", "sum_square")
    }
    _write(
        output,
        ids=np.array([record["id"] for record in found], dtype=np.str_),
        lengths=np.array([record["frames"] for record in found], dtype=np.int64),
        shard=np.int64(shard),
        of=np.int64(of),
        scale=np.float64(SCALE),
        **sums,
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
                names = ("ids", "lengths", "sum", "sum_square", "shard", "of", "scale")
                parts.append({name: part[name] for name in names})
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
    # the scale stands in the shards: a merge needs no torch
    scale = float(parts[0]["scale"])
    total = sum(p["sum"] for p in parts) / scale
    square = sum(p["sum_square"] for p in parts) / scale
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
