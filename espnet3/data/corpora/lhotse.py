"""Lhotse's manifests: a CutSet, recordings with supervisions, or Shar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from espnet3.data.corpora.splits import Draw, SourceCorpus
from espnet3.data.corpora.wav import encode_samples, write_encoded
from espnet3.data.names import file_name
from espnet3.errors import UserError
from espnet3.io import read_jsonl

# seconds: shorter differences are roundings
_SAME = 1e-4


class LhotseCorpus(SourceCorpus):
    """A corpus that Lhotse describes. A part of a file stays a part of that file; what lies in no file of its own (Shar,
    mixed or perturbed cuts) is written to one.

    A cut of one utterance is that utterance; of a cut with several supervisions, each is an utterance.

    Args:
        path: a CutSet (``.jsonl``, ``.jsonl.gz``, ``.json``, ``.yaml``), or a folder with Shar files
            (``cuts.000000.jsonl.gz``, ``recording.000000.tar``) or with one manifest of recordings and one of
            supervisions; or a mapping of split to one of these.
        recordings, supervisions: split to manifest, in place of *path*.
        fractions, split_by, draw_from, seed: see :class:`espnet3.data.corpora.splits.Draw`.
        normalize: of the transcripts: ``none``, or ``basic`` (lower case, no punctuation).

    Raises:
        UserError: a manifest is absent, damaged, or of another kind.
    """

    def __init__(
        self,
        path: str | dict[str, str] | None = None,
        recordings: dict[str, str] | None = None,
        supervisions: dict[str, str] | None = None,
        fractions: dict[str, float] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
        normalize: str = "none",
    ) -> None:
        if (path is None) == (recordings is None) or (recordings or {}).keys() != (supervisions or {}).keys():
            raise UserError("data.builder: give either path, or recordings and supervisions with the same splits")
        self.path, self.recordings, self.supervisions = path, recordings or {}, supervisions or {}
        fractions = fractions if fractions is not None else {"valid": 0.05, "test": 0.05}
        self.draw = Draw(fractions, split_by, draw_from, seed)
        self.normalize = normalize

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        for split in self.recordings:
            files = Path(self.recordings[split]), Path(self.supervisions[split])
            yield from records_of(_load(files[0]), _load(files[1]), split)
        paths = self.path if isinstance(self.path, dict) else {None: self.path} if self.path else {}
        for split, path in paths.items():
            yield from self._read(Path(path), split, folder)

    def _read(self, path: Path, split: str | None, folder: Path) -> Iterator[dict[str, Any]]:
        if path.is_dir():
            if sorted(path.glob("cuts.*.jsonl*")):
                yield from self._shar(path, split, folder)
                return
            pair = [sorted(path.glob(f"*{kind}*.jsonl*")) for kind in ("recordings", "supervisions")]
            if [len(files) for files in pair] != [1, 1]:
                raise UserError(
                    f"{path}: neither Shar (cuts.000000.jsonl.gz) nor one manifest of recordings and one of supervisions"
                )
            yield from records_of(_load(pair[0][0]), _load(pair[1][0]), split)
            return
        for cut in _load(path):
            if not hasattr(cut, "supervisions"):
                raise UserError(
                    f"{path}: holds {type(cut).__name__} where cuts belong; say recordings and supervisions"
                )
            yield from _of_cut(cut, split, folder)

    @staticmethod
    def _shar(path: Path, split: str | None, folder: Path) -> Iterator[dict[str, Any]]:
        from lhotse import CutSet

        try:
            for cut in CutSet.from_shar(in_dir=path):
                yield from _of_cut(cut, split, folder)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: Lhotse cannot read this Shar folder ({_line(error)})") from None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _load(path: Path) -> Iterable[Any]:
    from lhotse import load_manifest
    from lhotse.serialization import deserialize_item

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        try:
            yield from load_manifest(path)
        except Exception as error:
            raise UserError(f"{path}: no manifest that Lhotse can read ({_line(error)})") from None
        return
    for number, line in enumerate(read_jsonl(path), 1):
        try:
            yield deserialize_item(line)
        except Exception as error:
            raise UserError(f"{path}:{number}: nothing that Lhotse can read ({_line(error)})") from None


def records_of(recordings: Iterable[Any], supervisions: Iterable[Any], split: str | None) -> Iterator[dict[str, Any]]:
    """A record for each supervision, in their order; of a recording as a whole, where it is one.

    Raises:
        UserError: a supervision names a recording that is not there.
    """
    known = {recording.id: recording for recording in recordings}
    for supervision in supervisions:
        recording = known.get(supervision.recording_id)
        if recording is None:
            raise UserError(
                f"the supervision {supervision.id} names the recording {supervision.recording_id}, which is not there"
            )
        yield _record(supervision.id, split, recording, supervision.start, supervision.duration, [supervision])


def _of_cut(cut: Any, split: str | None, folder: Path) -> Iterator[dict[str, Any]]:
    found = cut.supervisions
    parts = [(cut.id, 0.0, cut.duration, found)]
    covers = len(found) == 1 and abs(found[0].start) < _SAME and abs(found[0].duration - cut.duration) < _SAME
    if found and not covers and hasattr(cut, "recording"):
        parts = [(one.id, one.start, one.duration, [one]) for one in found]
    recording = getattr(cut, "recording", None)
    for uid, start, duration, supervisions in parts:
        if _is_plain(cut, recording):
            yield _record(uid, split, recording, cut.start + start, duration, supervisions, cut)
        else:
            yield _written(cut, uid, split, start, duration, supervisions, folder)


def _is_plain(cut: Any, recording: Any) -> bool:
    if recording is None or len(recording.sources) != 1 or recording.sources[0].type != "file":
        return False
    names = [t["name"] if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or ()]
    return not set(names) - {"Resample"} and isinstance(cut.channel, int)


def _record(uid, split, recording, start, duration, supervisions, cut=None) -> dict[str, Any]:
    record = {"id": uid, "split": split, "audio": "", **_facts(supervisions, cut)}
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        kinds = ", ".join(sorted({source.type for source in recording.sources}))
        return record | {"rejected": f"bad recording: {len(recording.sources)} sources ({kinds}) in place of one file"}
    record["audio"] = str(recording.sources[0].source)
    if abs(start) >= _SAME or abs(duration - recording.duration) >= _SAME:
        record["start"] = start
    if recording.num_channels > 1:
        channel = getattr(cut, "channel", None) if cut is not None else supervisions[0].channel
        record["channel"] = channel[0] if isinstance(channel, list) and len(channel) == 1 else channel
    return record | {"duration": duration}


def _written(cut, uid, split, start, duration, supervisions, folder: Path) -> dict[str, Any]:
    record = {"id": uid, "split": split, "audio": "", **_facts(supervisions, cut)}
    recording = getattr(cut, "recording", None)
    try:
        whole = recording is not None and len(recording.sources) == 1 and not recording.transforms
        whole = whole and recording.sources[0].type == "memory" and recording.num_channels == 1
        if whole and cut.start == 0 and start == 0 and abs(duration - recording.duration) < _SAME:
            data = recording.sources[0].source
        else:
            part = cut if abs(duration - cut.duration) < _SAME else cut.truncate(offset=start, duration=duration)
            samples = part.load_audio(mono_downmix=True) if hasattr(part, "tracks") else part.load_audio()
            if len(samples) != 1:
                return record | {"rejected": f"not mono: {len(samples)} channels"}
            data = encode_samples(np.ascontiguousarray(samples[0]), part.sampling_rate)
    except Exception as error:
        return record | {"rejected": f"unreadable file: {_line(error)}"}
    return record | write_encoded(folder / (split or "all") / file_name(uid), data)


def _facts(supervisions: list, cut: Any = None) -> dict[str, Any]:
    custom: dict[str, Any] = dict(getattr(cut, "custom", None) or {})
    for supervision in supervisions:
        custom |= supervision.custom or {}
    facts = {key: value for key, value in custom.items() if isinstance(value, (str, int, float, bool))}
    facts["text"] = " ".join(one.text or "" for one in supervisions)
    for key in ("speaker", "language", "gender"):
        values = {getattr(one, key) for one in supervisions} - {None}
        if len(values) == 1:
            facts[key] = values.pop()
    return facts
