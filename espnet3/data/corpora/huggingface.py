"""Hugging Face data sets: from the hub or this machine, stored or streamed; audio by soundfile, without torchcodec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from espnet3.data.corpora.fields import below, choose, fit
from espnet3.data.corpora.splits import Draw, SourceCorpus
from espnet3.data.corpora.wav import encode_samples, write_encoded
from espnet3.data.names import file_name
from espnet3.errors import UserError

_LONGEST = 200


class HuggingFaceCorpus(SourceCorpus):
    """What ``load_dataset`` and ``load_from_disk`` read: a name on the hub, or a folder or file of parquet, arrow,
    ``save_to_disk`` or an audio folder.

    Encoded audio inside the data set is written out as it is; audio in files of this machine stays there.

    Args:
        dataset: the name on the hub, or a path. name: the data set's configuration, such as a
            language.
        source: a path to use in place of *dataset*, for machines without network.
        splits: our split to theirs, such as ``{train: train, valid: validation, test: "test[:10%]"}``; None: all of
            theirs, by their names.
        revision: a commit, tag or branch of the hub.
        streaming: read without a copy in the cache; None: only what lies on this machine.
        columns: ``{audio, text, id, speaker}``: the columns' names, where they are not the usual ones.
        sampling_rate: Hz, of columns that hold bare samples.
        fractions, split_by, draw_from, seed: see :class:`espnet3.data.corpora.splits.Draw`.
        normalize: of the transcripts: ``none``, or ``basic`` (lower case, no punctuation).

    Raises:
        UserError: there is no such data set, split or column, or the hub cannot be reached.
    """

    def __init__(
        self,
        dataset: str,
        name: str | None = None,
        source: str | None = None,
        splits: dict[str, str] | None = None,
        revision: str | None = None,
        streaming: bool | None = None,
        columns: dict[str, str] | None = None,
        sampling_rate: int | None = None,
        fractions: dict[str, float] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
        normalize: str = "none",
    ) -> None:
        self.dataset, self.name, self.splits = source or dataset, name, splits
        self.local = source is not None or Path(dataset).exists() or dataset.startswith((".", "/", "~"))
        self.revision, self.streaming = revision, streaming
        self.columns, self.sampling_rate = dict(columns or {}), sampling_rate
        self.draw = Draw(fractions, split_by, draw_from, seed)
        self.normalize = normalize

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        parts = {ours: theirs for ours, theirs in (self.splits or {}).items()}
        if not parts:
            loaded = self._load(None)
            if not isinstance(loaded, dict):
                loaded = {None: loaded}
            for split, rows in loaded.items():
                yield from self._records(rows, split, folder)
        for ours, theirs in parts.items():
            yield from self._records(self._load(theirs), ours, folder)

    def _load(self, split: str | None) -> Any:
        # 1.5 s of import
        import datasets

        path, name = Path(self.dataset).expanduser(), self.name
        if self.local and not path.exists():
            raise UserError(f"{path}: no such file or folder (data.builder.dataset)")
        if self.local and name is not None:
            # of a copy of the hub's folder, the configuration is a folder in it; otherwise the path is it
            path, name = path / name if (path / name).is_dir() else path, None
        streaming = self.streaming if self.streaming is not None else self.local and "[" not in (split or "")
        try:
            with without_torchcodec():
                if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                    return _pick(datasets.load_from_disk(str(path)), split, path)
                kind, files = str(path) if self.local else self.dataset, None
                if self.local and path.is_file():
                    kind, files = path.suffix.lstrip(".").replace("jsonl", "json"), str(path)
                return datasets.load_dataset(
                    kind, name, split=split, data_files=files, streaming=streaming, revision=self.revision
                )
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.dataset}: cannot be loaded{_of(split)} ({root_cause(error)})") from None

    def _records(self, rows: Any, split: str | None, folder: Path) -> Iterator[dict[str, Any]]:
        where = f"{self.dataset}{_of(split)}"
        chosen: dict[str, str] | None = None
        root = Path(self.dataset) if self.local and Path(self.dataset).is_dir() else Path(self.dataset).parent
        try:
            with without_torchcodec():
                for index, row in enumerate(_undecoded(rows)):
                    if chosen is None:
                        chosen = choose(row, self.columns, where, needed=("audio", "text"))
                    yield self._record(row, chosen, split, index, root, folder)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: cannot be read ({root_cause(error)})") from None

    def _record(self, row, chosen, split, index, root: Path, folder: Path) -> dict[str, Any]:
        fields = {name: field for field, name in chosen.items()}
        values = {fields.get(key, key): value for key, value in row.items() if key != chosen["audio"]}
        kept = {
            key: value
            for key, value in values.items()
            if key in chosen
            or (isinstance(value, (int, float, bool)) or (isinstance(value, str) and len(value) <= _LONGEST))
        }
        value = row[chosen["audio"]]
        named = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        if "id" not in chosen:
            kept["id"] = Path(str(named)).stem if named else f"{split or 'all'}-{index:08d}"
        record = {"split": split, **fit({**kept, "audio": "pending"}, f"row-{index}")}
        record["split"] = split or record["split"]
        stem = folder / (record["split"] or "all") / file_name(record["id"])
        try:
            found = self._audio(value, row, root, stem)
        except (OSError, ValueError) as error:
            found = {"audio": named or "", "rejected": f"unreadable file: {root_cause(error)}"}
        return {**record, **found}

    def _audio(self, value: Any, row: dict[str, Any], root: Path, stem: Path) -> dict[str, Any]:
        rate = row.get("sampling_rate") or self.sampling_rate
        if isinstance(value, dict):
            rate = value.get("sampling_rate") or rate
            value = next((value[key] for key in ("bytes", "array", "path") if value.get(key) is not None), None)
        if value is None:
            return {"audio": "", "rejected": "missing audio: the field is empty"}
        if isinstance(value, (bytes, bytearray)):
            if not value:
                return {"audio": "", "rejected": "empty file: zero bytes"}
            return write_encoded(stem, bytes(value))
        if isinstance(value, str):
            if "://" not in value:
                return {"audio": below(root, value) if self.local else value}
            import fsspec

            with fsspec.open(value, "rb") as handle:
                return write_encoded(stem, handle.read())
        samples = np.asarray(value)
        if samples.dtype.kind not in "iuf" or samples.ndim != 1:
            return {"audio": "", "rejected": f"bad audio: {type(value).__name__} in place of a path, bytes or samples"}
        if not rate:
            return {"audio": "", "rejected": "bad audio: bare samples without their rate (data.builder.sampling_rate)"}
        samples = samples.astype(np.float32) if samples.dtype.kind == "f" else samples.astype(np.int16)
        return write_encoded(stem, encode_samples(samples, int(rate)))


def _of(split: str | None) -> str:
    return f", split '{split}'" if split else ""


def _pick(loaded: Any, split: str | None, path: Path) -> Any:
    if split is None:
        return loaded
    name = split.partition("[")[0]
    if not isinstance(loaded, dict):
        return loaded
    if name not in loaded:
        raise UserError(f"{path}: there is no split '{name}'; there are {', '.join(loaded)}")
    if name != split:
        raise UserError(f"{path}: '{split}': parts of splits exist only in data sets that load_dataset reads")
    return loaded[name]


def _undecoded(rows: Any) -> Any:
    """*rows* with audio as ``{"bytes", "path"}``: decoding by the data set would need torchcodec."""
    from datasets import Audio

    for column, feature in (getattr(rows, "features", None) or {}).items():
        if isinstance(feature, Audio) and feature.decode:
            rows = rows.cast_column(column, Audio(decode=False))
    return rows


@contextlib.contextmanager
def without_torchcodec() -> Iterator[None]:
    """Within it, ``datasets`` takes paths and encoded bytes into ``Audio`` columns without torchcodec.

    datasets 5.2 imports torchcodec before it looks at the value, though only samples need an encoder: audio folders
    could not be loaded at all.
    """
    from datasets import Audio

    original = Audio.encode_example

    def encode(self: Any, value: Any) -> dict[str, Any]:
        if isinstance(value, (str, Path)):
            return {"bytes": None, "path": str(value)}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, dict) and "array" not in value and set(value) & {"bytes", "path"}:
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        return original(self, value)

    Audio.encode_example = encode
    try:
        yield
    finally:
        Audio.encode_example = original


def root_cause(error: BaseException) -> str:
    """The first error of a chain, on one line."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]
