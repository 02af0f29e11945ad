"""Manifests: Lhotse CutSets of validated utterances, one mono utterance a line, in reproducible gzip.

Lines are written and scanned as JSON: building a manifest, or reading the durations of one, needs no Lhotse.
"""

from __future__ import annotations

import collections
import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3.data.wavheader import BadAudio, read_header
from espnet3.errors import UserError
from espnet3.io import atomic_gzip, read_jsonl, read_lines, write_jsonl
from espnet3.parallel import BaseRunner, EnvironmentProvider, ParallelConfig

if TYPE_CHECKING:
    from lhotse import CutSet

# seconds by which a stated duration may differ from the file's: a rounding, not another recording
TOLERANCE = 0.05
_STANDARD = {"id", "split", "audio", "text", "speaker", "language", "start", "duration", "channel"}
_HEAD = re.compile(r'\{"id": "((?:[^"\\]|\\.)*)", "start": [-+\d.eE]+, "duration": ([-+\d.eE]+),')


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
        match = _HEAD.match(line)
        if match and "\\" not in match[1]:
            ids.append(match[1])
            durations.append(float(match[2]))
            continue
        try:
            cut = json.loads(line)
            ids.append(cut["id"])
            durations.append(float(cut["duration"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: not a Lhotse cut (it needs 'id' and 'duration')") from None
    return ids, durations


def make_cut(record: dict[str, Any], sampling_rate: int, min_duration: float, max_duration: float) -> dict[str, Any]:
    """Validate one record of ``corpus.jsonl`` against its audio, and return it as a Lhotse MonoCut's dictionary.

    A record may name a part of a recording (``start`` and ``duration``, in seconds) and a ``channel``. A file at
    another rate gets Lhotse's resampling transform; its content is resampled to *sampling_rate* when it is read.

    Raises:
        BadAudio: the reason why the utterance is left out.
    """
    uid, text = record["id"], " ".join(str(record.get("text") or "").split())
    if not uid or uid != "".join(uid.split()):
        raise BadAudio(f"bad id: {uid!r} is empty or has white space")
    if not text:
        raise BadAudio("empty transcript")
    header = read_header(record["audio"])
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
        if not start:
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


def _cut_or_reason(record: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    try:
        return make_cut(record, **limits)
    except BadAudio as error:
        return {"id": record["id"], "audio": str(record["audio"]), "reason": str(error)}


def _split_records(corpus: str | os.PathLike, split: str) -> list[dict[str, Any]]:
    records, splits = [], set()
    for number, record in enumerate(read_jsonl(corpus), 1):
        missing = [key for key in ("id", "split", "audio") if not isinstance(record, dict) or key not in record]
        if missing:
            raise UserError(f"{corpus}:{number}: the record has no '{missing[0]}'")
        splits.add(record["split"])
        if record["split"] == split:
            records.append({**record, "id": str(record["id"])})
    if not records:
        raise UserError(
            f"{corpus}: no recording of split '{split}' (data.train, data.valid or data.test); it has {sorted(splits)}"
        )
    return records


def build_manifest(
    corpus: str | os.PathLike,
    split: str,
    output: str | os.PathLike,
    rejected: str | os.PathLike,
    limits: dict[str, Any],
    max_rejected: float,
    parallel: dict[str, Any] | None = None,
) -> tuple[int, int]:
    """Validate *split* of *corpus*; write the accepted utterances and the rejected ones with their reasons.

    Args:
        limits: ``sampling_rate`` (Hz), ``min_duration``, ``max_duration`` (s).
        max_rejected: the fraction of utterances that may be left out.

    Returns:
        How many were accepted, and how many rejected.

    Raises:
        UserError: the split is empty, or more than *max_rejected* of it would be left out.
    """
    records = _split_records(corpus, split)
    if not ParallelConfig.of(parallel).in_process:
        provider = ManifestProvider({"corpus": str(corpus), "split": split, "limits": limits})
        results = ManifestRunner(provider, batch_size=256, parallel=parallel, name="manifest")(range(len(records)))
    else:
        results = (_cut_or_reason(record, limits) for record in records)
    bad: list[dict[str, Any]] = []
    seen: set[str] = set()

    def accepted() -> Iterator[dict[str, Any]]:
        for result in results:
            if "reason" not in result and result["id"] in seen:
                result = {
                    "id": result["id"],
                    "audio": result["recording"]["sources"][0]["source"],
                    "reason": "duplicate id",
                }
            if "reason" in result:
                bad.append(result)
            else:
                seen.add(result["id"])
                yield result

    cuts = [json.dumps(cut, ensure_ascii=False) for cut in accepted()]
    # a list of its own: Snakemake removes the outputs of a failed job
    refused = Path(rejected).with_suffix(f".failed{Path(rejected).suffix}")
    if len(bad) > max_rejected * len(records) or not cuts:
        write_jsonl(refused, bad)
        counts = sorted(collections.Counter(entry["reason"].split(":")[0] for entry in bad).items())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts, key=lambda x: -x[1]))
        raise UserError(
            f"{output}: {len(bad)} of {len(records)} utterances rejected ({reasons}), more than data.max_rejected="
            f"{max_rejected} allows; the first is {bad[0]['id']} ({bad[0]['audio']}: {bad[0]['reason']}), all are in "
            f"{refused}: mend them, or raise data.max_rejected"
        )
    refused.unlink(missing_ok=True)
    write_jsonl(rejected, bad)
    with atomic_gzip(output) as handle:
        handle.writelines(cut + "\n" for cut in cuts)
    return len(cuts), len(bad)
