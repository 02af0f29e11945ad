"""Decoding of one test set: a shard of it, and the merge of its shards."""

from __future__ import annotations

import collections
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import digest, read_jsonl, sha256_file, write_jsonl

log = logging.getLogger(__name__)


def run_shard(
    conf: dict[str, Any],
    manifest: str | os.PathLike,
    weights: str | os.PathLike,
    tokens: str | os.PathLike,
    shard: int,
    of: int,
    output: str | os.PathLike,
    execution: dict[str, Any] | None = None,
) -> None:
    """Decode shard *shard* (from 1) of *of* into *output*, one JSON record a line; resumes what was killed.

    Args:
        conf: ``decode`` (one resolved decoding), ``model``, ``tokenizer``, ``data.sampling_rate``.
        weights: averaged model, safetensors.
        tokens: the tokenizer's folder.
        execution: ``accelerator`` and such.

    Raises:
        UserError: an input is absent or does not fit, or an utterance cannot be decoded.
    """
    from espnet3.data.manifest import read_durations
    from espnet3.inference.plan import plan_decoding

    ids, durations = read_durations(manifest)
    if not 1 <= shard <= of:
        raise UserError(f"{output}: there is no shard {shard} of {of}")
    batch_seconds = conf["decode"]["batch_seconds"]
    mine = plan_decoding(ids, durations, of, batch_seconds)[shard - 1]
    if not mine:
        write_jsonl(output, [])
        log.info("shard %d of %d is empty: %s has too few batches of %g s", shard, of, manifest, batch_seconds)
        return

    from espnet3.inference.provider import DecodeProvider
    from espnet3.inference.runner import DecodeRunner

    config = {
        "conf": conf,
        "manifest": str(manifest),
        "weights": str(weights),
        "tokens": str(tokens),
        "execution": dict(execution or {}),
    }
    runner = DecodeRunner(
        DecodeProvider(config),
        keys=ids,
        weights=durations,
        batch_weight=batch_seconds,
        name="decode",
        fingerprint=digest([sha256_file(path) for path in (weights, manifest, Path(tokens, "tokens.txt"))]),
    )
    runner.environment()
    audio, wall, cpu = sum(durations[i] for i in mine), time.monotonic(), time.process_time()
    runner.run_shard(mine, output)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    log.info(
        "%s: %d utterances, %.0f s of audio in %.1f s, %.1f s of CPU (real-time factor %.4f)",
        *(output, len(mine), audio, wall, cpu, wall / audio if audio else 0.0),
    )


def merge(manifest: str | os.PathLike, shards: Sequence[str | os.PathLike], output: str | os.PathLike) -> None:
    """Join *shards* into *output*, in the order of *manifest*.

    Raises:
        UserError: an utterance is missing, there twice, or not in the manifest.
    """
    from espnet3.data.manifest import read_durations

    ids, _ = read_durations(manifest)
    known, found = set(ids), {}
    for path in shards:
        for record in read_jsonl(path):
            uid = record["id"]
            if uid in found:
                raise UserError(f"{path}: utterance {uid} is also in {found[uid][0]}; decode both shards again")
            if uid not in known:
                raise UserError(f"{path}: utterance {uid} is not in {manifest}; decode this shard again")
            found[uid] = (path, record)
    missing = [uid for uid in ids if uid not in found]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"{output}: {len(missing)} of {len(ids)} utterances of {manifest} are in no shard: {names}")
    write_jsonl(output, (found[uid][1] for uid in ids))
    empty = collections.Counter(bool(record["text"].split()) for _, record in found.values())[False]
    if empty:
        log.warning("%s: %d of %d utterances have an empty hypothesis", output, empty, len(ids))
