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
from espnet3.io import digest, read_jsonl, require_space, sha256_file, write_jsonl

log = logging.getLogger(__name__)

BYTES_OF_HYPOTHESIS = 2000
"""What a hypothesis takes on the disk, at the most, for the look at the free space."""


def run_shard(
    conf: dict[str, Any],
    manifest: str | os.PathLike,
    weights: str | os.PathLike,
    tokens: str | os.PathLike,
    shard: int,
    of: int,
    output: str | os.PathLike,
    execution: dict[str, Any] | None = None,
    encoded: str | os.PathLike | None = None,
    lm: str | os.PathLike | None = None,
) -> None:
    """Decode shard *shard* (from 1) of *of* into *output*, one JSON record a line; resumes what was killed.

    Args:
        conf: ``decode`` (one resolved decoding), ``model``, ``tokenizer``, ``data.sampling_rate``.
        weights: averaged model, safetensors.
        tokens: the tokenizer's folder.
        execution: ``accelerator`` and such; ``share_encoder`` false encodes in any case.
        encoded: folder where decodings of the same weights leave their encoder output to one another
            (:mod:`espnet3.inference.encoded`): it changes the time that a result takes, and no byte of it.
        lm: weights of the language model that ``decode.lm_weight`` asks for, safetensors.

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
    require_space(output, BYTES_OF_HYPOTHESIS * conf["decode"].get("nbest", 1) * len(mine), "this shard")
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
        "lm": str(lm) if lm is not None else None,
    }
    read = [weights, manifest, Path(tokens, "tokens.txt"), *filter(None, (lm, conf["decode"].get("ngram")))]
    runner = DecodeRunner(
        DecodeProvider(config),
        keys=ids,
        weights=durations,
        batch_weight=batch_seconds,
        name="decode",
        fingerprint=digest([sha256_file(path) for path in read]),
    )
    environment = runner.environment()
    store = None
    if encoded is not None and (execution or {}).get("share_encoder", True):
        store = environment["encoded"] = _store(
            conf, manifest, weights, shard, of, [ids[i] for i in mine], encoded, execution
        )
    audio, wall, cpu = sum(durations[i] for i in mine), time.monotonic(), time.process_time()
    runner.run_shard(mine, output)
    if store is not None:
        log.info("%s: %s", store.path, "read, not encoded again" if store.found else "written for other decodings")
        store.close()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    log.info(
        "%s: %d utterances, %.0f s of audio in %.1f s, %.1f s of CPU (real-time factor %.4f)",
        *(output, len(mine), audio, wall, cpu, wall / audio if audio else 0.0),
    )


def _store(conf, manifest, weights, shard: int, of: int, uids: list[str], folder: str | os.PathLike, execution) -> Any:
    from espnet3.inference.encoded import EncodedStore, encoded_key
    from espnet3.inference.provider import pick_device

    wanted = dict.fromkeys(uids)
    cuts = {cut["id"]: cut for cut in read_jsonl(manifest) if cut["id"] in wanted}
    batch_seconds, device = conf["decode"]["batch_seconds"], pick_device(execution)
    key = encoded_key(sha256_file(weights), conf, [cuts[uid] for uid in uids], batch_seconds, device)
    test_set = Path(manifest).name.partition(".jsonl")[0]
    # what decodings may differ in and still share nothing stands in the name: they must not oust one another
    name = f"{Path(weights).stem}.{batch_seconds:g}s.shard-{shard}-of-{of}.safetensors"
    return EncodedStore(Path(folder, test_set, name), key, len(uids))


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
