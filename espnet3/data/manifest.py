"""Manifests: Lhotse CutSets of validated utterances, one mono utterance a line, in reproducible gzip.

Lines are written and scanned as JSON: building a manifest, or reading the durations of one, needs no Lhotse.
"""

from __future__ import annotations

import array
import collections
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet3.data.headers import CacheWriter, Entry, Headers
from espnet3.data.lazy import read_head
from espnet3.data.names import id_problem, text_problem
from espnet3.data.wavheader import AudioHeader, BadAudio, read_header
from espnet3.errors import UserError
from espnet3.io import atomic_gzip, read_jsonl, read_lines, write_jsonl
from espnet3.parallel import BaseRunner, EnvironmentProvider, ParallelConfig, parallel_for

if TYPE_CHECKING:
    from lhotse import CutSet

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
# seconds by which a stated duration may differ from the file's: a rounding, not another recording
TOLERANCE = 0.05
_STANDARD = {"id", "split", "audio", "text", "speaker", "language", "start", "duration", "channel"}
# records a piece of work: small enough to hold a few dozen of them, large enough not to be felt
WINDOW = 256


def read_cuts(path: str | os.PathLike) -> CutSet:
    """The manifest as an eager CutSet. Raises UserError where it is absent or damaged."""
    from lhotse import CutSet
    from lhotse.serialization import deserialize_item

    return CutSet.from_cuts(deserialize_item(line) for line in read_jsonl(path))


def write_cuts(path: str | os.PathLike, cuts: Iterable[Any]) -> int:
    """Write Lhotse cuts atomically; equal cuts give equal bytes. The number of cuts."""
    return write_jsonl(path, (cut.to_dict() for cut in cuts))


def read_durations(path: str | os.PathLike) -> tuple[list[str], list[float]]:
    """Utterance ids and durations (s), in the manifest's order, without Lhotse: about 1 s for 300,000 lines.

    Raises:
        UserError: the file is absent or damaged, or a line is no cut.
    """
    ids: list[str] = []
    durations: list[float] = []
    for number, line in read_lines(path):
        uid, duration = read_head(line, path, number)
        ids.append(uid)
        durations.append(duration)
    return ids, durations


def make_cut(
    record: dict[str, Any],
    sampling_rate: int,
    min_duration: float,
    max_duration: float,
    read: Callable[[str], AudioHeader] = read_header,
) -> dict[str, Any]:
    """Validate one record of ``corpus.jsonl`` against its audio, and return it as a Lhotse MonoCut's dictionary.

    A record may name a part of a recording (``start`` and ``duration``, in seconds) and a ``channel``. A file at
    another rate gets Lhotse's resampling transform; its content is resampled to *sampling_rate* when it is read.

    Args:
        read: reads a file's header.

    Raises:
        BadAudio: the reason why the utterance is left out.
    """
    if record.get("rejected"):
        raise BadAudio(str(record["rejected"]))
    text = " ".join(str(record.get("text") or "").split())
    problem = id_problem(record["id"]) or text_problem(text)
    if problem:
        raise BadAudio(problem)
    header = read(record["audio"])
    channel, start, stated = (_number(record, key) for key in ("channel", "start", "duration"))
    if channel is None and header.channels != 1:
        raise BadAudio(f"not mono: {header.channels} channels and no 'channel' key says which")
    channel = int(channel or 0)
    if not 0 <= channel < header.channels:
        raise BadAudio(f"no such channel: {channel} of {header.channels}")
    whole = header.num_samples / header.sampling_rate
    duration = whole - (start or 0.0) if stated is None else stated
    if start is None:
        if abs(duration - whole) > TOLERANCE:
            raise BadAudio(f"duration mismatch: {duration:.3f} s stated, {whole:.3f} s in the file")
        duration = whole
    elif start < 0 or duration <= 0 or start + duration > whole + TOLERANCE:
        raise BadAudio(f"duration mismatch: {start:.3f} s + {duration:.3f} s stated, {whole:.3f} s in the file")
    start = start or 0.0
    duration = min(duration, whole - start)
    if duration < min_duration:
        raise BadAudio(f"too short: {duration:.3f} s, data.min_duration is {min_duration}")
    if duration > max_duration:
        raise BadAudio(f"too long: {duration:.3f} s, data.max_duration is {max_duration}")
    return _cut_dict(record, text, header, channel, start, duration, sampling_rate)


def _number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadAudio(f"bad {key}: {value!r} is no number")
    return float(value)


def _cut_dict(record, text, header, channel, start, duration, sampling_rate) -> dict[str, Any]:
    uid, samples = record["id"], header.num_samples
    transforms = {}
    if header.sampling_rate != sampling_rate:
        # rounded as Lhotse does, half up
        samples = int(samples * sampling_rate / header.sampling_rate + 0.5)
        rates = {"source_sampling_rate": header.sampling_rate, "target_sampling_rate": sampling_rate}
        transforms = {"transforms": [{"name": "Resample", "kwargs": rates}]}
        if not start and duration == header.num_samples / header.sampling_rate:
            duration = samples / sampling_rate
    supervision = {"id": uid, "recording_id": uid, "start": 0.0, "duration": duration, "channel": channel, "text": text}
    supervision |= {key: record[key] for key in ("language", "speaker") if record.get(key) is not None}
    custom = {key: value for key, value in record.items() if key not in _STANDARD}
    channels = list(range(header.channels))
    return {
        "id": uid,
        "start": start,
        "duration": duration,
        "channel": channel,
        "supervisions": [supervision],
        "recording": {
            "id": uid,
            "sources": [{"type": "file", "channels": channels, "source": str(record["audio"])}],
            "sampling_rate": sampling_rate,
            "num_samples": samples,
            "duration": samples / sampling_rate,
            "channel_ids": channels,
            **transforms,
        },
        **({"custom": custom} if custom else {}),
        "type": "MonoCut",
    }


def _environment(config: dict[str, Any]) -> dict[str, Any]:
    return {"records": _split_records(config["corpus"], config["split"]), "limits": config["limits"]}


class ManifestProvider(EnvironmentProvider):
    """``{"records", "limits"}`` from ``{"corpus": <corpus.jsonl>, "split", "limits": {sampling_rate, ...}}``."""

    def build_env_local(self) -> dict[str, Any]:
        return _environment(self.config)

    def build_worker_setup_fn(self):
        return functools.partial(_environment, self.config)


class ManifestRunner(BaseRunner):
    """For each index a cut, or ``{"id", "audio", "reason"}``."""

    @staticmethod
    def forward(idx: list[int], records: list[dict], limits: dict[str, Any], **env: Any) -> list[dict[str, Any]]:
        return [_cut_or_reason(records[i], limits) for i in idx]


def _cut_or_reason(
    record: dict[str, Any], limits: dict[str, Any], read: Callable[[str], AudioHeader] = read_header
) -> dict[str, Any]:
    try:
        return make_cut(record, **limits, read=read)
    except BadAudio as error:
        return {"id": record["id"], "audio": str(record["audio"]), "reason": str(error)}


def _checked(corpus: str | os.PathLike, number: int, record: Any) -> dict[str, Any]:
    missing = [key for key in ("id", "split", "audio") if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{corpus}:{number}: the record has no '{missing[0]}'")
    return {**record, "id": str(record["id"])}


def _split_records(corpus: str | os.PathLike, split: str) -> list[dict[str, Any]]:
    records = (_checked(corpus, number, record) for number, record in enumerate(read_jsonl(corpus), 1))
    return [record for record in records if record["split"] == split]


class _Survey:
    """A first pass over a corpus: where the records of *split* begin, and which of their ids may be there twice.

    16 bytes a record: ids are held as hashes, and only those whose hash occurs twice are compared later.

    Raises:
        UserError: a record lacks a key, or the split has none.
    """

    def __init__(self, corpus: str | os.PathLike, split: str) -> None:
        self.offsets = array.array("q")
        hashes, splits, offset = array.array("q"), set(), 0
        for number, line in read_lines(corpus):
            try:
                record = _checked(corpus, number, json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{corpus}:{number}: not valid JSON ({error.msg})") from None
            splits.add(record["split"])
            if record["split"] == split:
                self.offsets.append(offset)
                hashes.append(hash(record["id"]))
            offset += len(line.encode())
        if not self.offsets:
            raise UserError(
                f"{corpus}: no recording of split '{split}' (data.train, data.valid or data.test); it has {sorted(splits)}"
            )
        # not in gzip, nor where line endings were translated
        self.seekable = not str(corpus).endswith(".gz") and offset == os.path.getsize(corpus)
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        self.suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())

    def windows(self) -> list[array.array]:
        """The offsets, in pieces."""
        return [self.offsets[start : start + WINDOW] for start in range(0, len(self.offsets), WINDOW)]


# one for each cache, and for each state of it
_headers = functools.lru_cache(maxsize=2)(lambda cache, _state: Headers(cache))


def _validate_window(
    work: tuple[int, array.array], corpus: str, limits: dict[str, Any], cache: str | None, state: int
) -> tuple[int, list[str | dict], list[Entry]]:
    """The window's number, for each of its records the manifest's line or why there is none, and the headers that the
    cache lacks.
    """
    number, offsets = work
    headers = _headers(cache, state)
    results: list[str | dict] = []
    with open(corpus, "rb") as handle:
        for offset in offsets:
            handle.seek(offset)
            record = json.loads(handle.readline())
            results.append(_line_or_reason({**record, "id": str(record["id"])}, limits, headers.read))
    fresh, headers.fresh = headers.fresh, []
    return number, results, fresh


def _line_or_reason(
    record: dict[str, Any], limits: dict[str, Any], read: Callable[[str], AudioHeader]
) -> str | dict[str, Any]:
    result = _cut_or_reason(record, limits, read)
    return result if "reason" in result else json.dumps(result, ensure_ascii=False)


def _results(
    survey: _Survey,
    corpus: str,
    split: str,
    limits: dict[str, Any],
    parallel: dict[str, Any] | None,
    cache: CacheWriter,
) -> Iterator[str | dict]:
    """Results in the corpus's order; what other workers finish early waits, a few windows at a time."""
    path = os.fspath(cache.path) if cache.path is not None else None
    if ParallelConfig.of(parallel).in_process or not survey.seekable:
        headers = Headers(path)
        for number, record in enumerate(read_jsonl(corpus), 1):
            if record["split"] == split:
                yield _line_or_reason(_checked(corpus, number, record), limits, headers.read)
                if len(headers.fresh) >= WINDOW:
                    cache.add(headers.fresh)
                    headers.fresh.clear()
        cache.add(headers.fresh)
        return
    state = os.stat(path).st_mtime_ns if path is not None and os.path.exists(path) else 0
    validate = functools.partial(_validate_window, corpus=corpus, limits=limits, cache=path, state=state)
    waiting: dict[int, list] = {}
    following = 0
    for number, results, fresh in parallel_for(validate, enumerate(survey.windows()), config=parallel):
        cache.add(fresh)
        waiting[number] = results
        while following in waiting:
            yield from waiting.pop(following)
            following += 1


def build_manifest(
    corpus: str | os.PathLike,
    split: str,
    output: str | os.PathLike,
    rejected: str | os.PathLike,
    limits: dict[str, Any],
    max_rejected: float,
    parallel: dict[str, Any] | None = None,
    cache: str | os.PathLike | None = None,
) -> tuple[int, int]:
    """Validate *split* of *corpus*; write the accepted utterances and the rejected ones with their reasons.

    Records stream through: memory grows by 16 bytes for each, and by what is rejected.

    Args:
        limits: ``sampling_rate`` (Hz), ``min_duration``, ``max_duration`` (s).
        max_rejected: the fraction of utterances that may be left out.
        cache: a file that remembers headers by path, size and time of change; None: all are read.

    Returns:
        How many were accepted, and how many rejected.

    Raises:
        UserError: the split is empty, or more than *max_rejected* of it would be left out.
    """
    survey = _Survey(corpus, split)
    total, good, told = len(survey.offsets), 0, time.monotonic()
    bad: list[dict[str, Any]] = []
    seen: set[str] = set()
    # a list of its own: Snakemake removes the outputs of a failed job
    refused = Path(rejected).with_suffix(f".failed{Path(rejected).suffix}")
    with CacheWriter(cache) as headers, atomic_gzip(output) as handle:
        for result in _results(survey, os.fspath(corpus), split, limits, parallel, headers):
            if isinstance(result, str) and survey.suspects:
                result = _unless_seen(result, survey.suspects, seen)
            if isinstance(result, str):
                handle.write(result + "\n")
                good += 1
            else:
                bad.append(result)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                logger.info("%s: %d of %d records, %d rejected", output, good + len(bad), total, len(bad))
        if len(bad) > max_rejected * total or not good:
            write_jsonl(refused, bad)
            counts = sorted(collections.Counter(entry["reason"].split(":")[0] for entry in bad).items())
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts, key=lambda x: -x[1]))
            raise UserError(
                f"{output}: {len(bad)} of {total} utterances rejected ({reasons}), more than data.max_rejected="
                f"{max_rejected} allows; the first is {bad[0]['id']} ({bad[0]['audio']}: {bad[0]['reason']}), all are in "
                f"{refused}: mend them, or raise data.max_rejected"
            )
    refused.unlink(missing_ok=True)
    write_jsonl(rejected, bad)
    return good, len(bad)


def _unless_seen(line: str, suspects: set[int], seen: set[str]) -> str | dict[str, Any]:
    """*line*, or why it is left out: an utterance before it has its id."""
    uid, _ = read_head(line, "manifest", 0)
    if hash(uid) not in suspects:
        return line
    if uid in seen:
        audio = json.loads(line)["recording"]["sources"][0]["source"]
        return {"id": uid, "audio": audio, "reason": "duplicate id"}
    seen.add(uid)
    return line
