"""The formats that a corpus is exported to: one writer a format, called once for each split."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet3.data.corpora.wav import encode_part, write_encoded
from espnet3.data.names import file_name
from espnet3.errors import UserError
from espnet3.io import atomic_write, write_jsonl

_ROWS = 256
_TSV = ("id", "audio", "text", "speaker", "language", "start", "duration", "channel")


@dataclass(frozen=True)
class Utterance:
    """A record of a corpus, and the Lhotse cut that it was validated as."""

    record: dict[str, Any]
    cut: dict[str, Any]

    @property
    def text(self) -> str:
        """The transcript, its white space in order."""
        return self.cut["supervisions"][0]["text"]

    @property
    def is_part(self) -> bool:
        """Whether it is a stretch of its file, or one of its channels."""
        return self.record.get("start") is not None or self.record.get("channel") is not None

    def audio_from(self, folder: Path) -> str:
        """The path of the audio: relative where it lies below *folder*, absolute otherwise."""
        path = os.path.abspath(self.record["audio"])
        inner = os.path.relpath(path, os.path.abspath(folder))
        return path if inner.startswith("..") else inner


def _object(utterance: Utterance, folder: Path) -> dict[str, Any]:
    keep = {
        k: v for k, v in utterance.record.items() if k not in ("split", "audio", "text", "duration") and v is not None
    }
    part = {"duration": utterance.cut["duration"]} if utterance.record.get("start") is not None else {}
    return {**keep, "audio": utterance.audio_from(folder), "text": utterance.text, **part}


def write_objects(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>.jsonl``, one object a line."""
    write_jsonl(folder / f"{split}.jsonl", (_object(utterance, folder) for utterance in utterances))


def write_tsv(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>.tsv`` with a header and the columns that any of the utterances has."""
    objects = [_object(utterance, folder) for utterance in utterances]
    columns = [name for name in _TSV if name in ("id", "audio", "text") or any(name in one for one in objects)]
    with atomic_write(folder / f"{split}.tsv") as handle:
        handle.write("\t".join(columns) + "\n")
        for one in objects:
            fields = [str(one.get(name, "")) for name in columns]
            if any("\t" in field or "\n" in field or "\r" in field for field in fields):
                raise UserError(f"{one['id']}: a tab or a line's end in {one['audio']!r} cannot stand in a TSV")
            handle.write("\t".join(fields) + "\n")


def write_kaldi(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>/wav.scp``, ``text``, ``utt2spk``, ``spk2utt`` and, for parts of recordings, ``segments``.

    Kaldi has no word for one channel of a file, so that is written to a file of its own.
    """
    place = folder / split
    tables: dict[str, dict[str, str]] = {name: {} for name in ("wav.scp", "text", "utt2spk", "spk2utt", "segments")}
    segmented = any(u.record.get("start") is not None for u in utterances)
    recordings: dict[str, str] = {}
    for utterance in utterances:
        uid, record, cut = utterance.record["id"], utterance.record, utterance.cut
        path, start, duration = os.path.abspath(record["audio"]), cut["start"], cut["duration"]
        if record.get("channel") is not None:
            data = encode_part(path, record.get("start"), duration, record["channel"])
            path = os.path.abspath(write_encoded(folder / "audio" / split / file_name(uid), data)["audio"])
            start = 0.0
        if path != path.strip() or "\n" in path or path.endswith(("|", "]", ".ark")):
            raise UserError(f"{uid}: the path {path!r} would mean something else in a wav.scp; rename the file")
        name = uid
        if segmented:
            name = recordings.setdefault(path, f"{'_'.join(Path(path).stem.split())}-{len(recordings):06d}")
            # the exact start and end: a sample is no decimal fraction
            tables["segments"][uid] = f"{name} {start!r} {start + duration!r}"
        tables["wav.scp"][name] = path
        tables["text"][uid] = utterance.text
        speaker = "_".join(str(record.get("speaker") or uid).split())
        tables["utt2spk"][uid] = speaker
        tables["spk2utt"][speaker] = f"{tables['spk2utt'].get(speaker, '')} {uid}".strip()
    for name, table in tables.items():
        if table:
            with atomic_write(place / name) as handle:
                # as LC_ALL=C sorts
                for key in sorted(table, key=str.encode):
                    handle.write(f"{key} {table[key]}\n")


def write_lhotse(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>.jsonl.gz``, a CutSet whose audio stays where it is."""
    write_jsonl(folder / f"{split}.jsonl.gz", (_absolute(utterance.cut) for utterance in utterances))


def _absolute(cut: dict[str, Any]) -> dict[str, Any]:
    recording = cut["recording"]
    sources = [{**source, "source": os.path.abspath(source["source"])} for source in recording["sources"]]
    return {**cut, "recording": {**recording, "sources": sources}}


def write_shar(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>/cuts.000000.jsonl.gz`` and ``recording.000000.tar``: Lhotse Shar, with the audio as FLAC."""
    from lhotse import CutSet
    from lhotse.serialization import deserialize_item

    place = folder / split
    place.mkdir(parents=True)
    cuts = CutSet.from_cuts(deserialize_item(_absolute(utterance.cut)) for utterance in utterances)
    cuts.to_shar(place, fields={"recording": "flac"}, shard_size=1000)


def write_parquet(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``data/<split>-00000-of-00001.parquet`` with the audio inside, as ``load_dataset(folder)`` reads it."""
    import pyarrow
    import pyarrow.parquet

    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    strings = [name for name in ("id", "text", "speaker", "language") if _any(utterances, name)]
    features = {name: {"dtype": "string", "_type": "Value"} for name in strings} | {"audio": {"_type": "Audio"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema([*((name, pyarrow.string()) for name in strings), ("audio", audio)], metadata=note)
    place = folder / "data"
    place.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(place / f"{split}-00000-of-00001.parquet", "wb") as handle,
        pyarrow.parquet.ParquetWriter(handle, schema) as writer,
    ):
        for first in range(0, len(utterances), _ROWS):
            rows = [_row(utterance, strings) for utterance in utterances[first : first + _ROWS]]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _any(utterances: Iterable[Utterance], name: str) -> bool:
    return name in ("id", "text") or any(u.record.get(name) is not None for u in utterances)


def _row(utterance: Utterance, strings: list[str]) -> dict[str, Any]:
    record = utterance.record
    data = encode_part(record["audio"], record.get("start"), utterance.cut["duration"], record.get("channel"))
    values = {**record, "text": utterance.text}
    return {name: None if values.get(name) is None else str(values[name]) for name in strings} | {
        "audio": {"bytes": data, "path": f"{file_name(record['id'])}{_suffix(record, utterance.is_part)}"}
    }


def _suffix(record: dict[str, Any], part: bool) -> str:
    return ".wav" if part else Path(record["audio"]).suffix


def write_disk(split: str, utterances: list[Utterance], folder: Path) -> None:
    """``<split>/``, as ``load_from_disk`` reads it, and ``dataset_dict.json`` over all splits."""
    import datasets

    with tempfile.TemporaryDirectory(prefix=".espnet3-", dir=folder) as temporary:
        write_parquet(split, utterances, Path(temporary))
        (file,) = Path(temporary, "data").iterdir()
        rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(Path(temporary, "cache")))
        # the undecoded type, or reading it anywhere would need torchcodec
        rows.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(str(folder / split))
    listing = folder / "dataset_dict.json"
    known = json.loads(listing.read_text()) if listing.exists() else {"splits": []}
    with atomic_write(listing) as handle:
        json.dump({"splits": [*known["splits"], split]}, handle)


FORMATS: dict[str, Callable[[str, list[Utterance], Path], None]] = {
    "kaldi": write_kaldi,
    "jsonl": write_objects,
    "tsv": write_tsv,
    "lhotse": write_lhotse,
    "shar": write_shar,
    "hf": write_parquet,
    "hf-disk": write_disk,
}
