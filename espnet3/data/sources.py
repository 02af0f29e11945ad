"""What a data set may be made of, behind one face: ids, items by position, and a view as Lhotse cuts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet3.data.audio import audio_length, decode_audio, read_audio
from espnet3.data.lazy import Manifest
from espnet3.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet

AUDIO_COLUMNS = ("audio", "speech", "wav", "path", "file")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text")
ID_COLUMNS = ("id", "utt_id", "uid", "segment_id")


def cut_item(cut: Any) -> dict[str, Any]:
    """``{"speech": float32 (T,), "text": str}`` of a Lhotse cut.

    The common cut (a stretch of one file, perhaps resampled) is read by soundfile alone; one that is mixed,
    perturbed, or not in a file is read by Lhotse.
    """
    text = " ".join(supervision.text or "" for supervision in cut.supervisions)
    recording = getattr(cut, "recording", None)
    if recording is None or len(recording.sources) != 1 or recording.sources[0].type != "file":
        return {"speech": np.ascontiguousarray(cut.load_audio().reshape(-1), dtype=np.float32), "text": text}
    names = [t["name"] if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or ()]
    if set(names) - {"Resample"} or not isinstance(cut.channel, int):
        return {"speech": np.ascontiguousarray(cut.load_audio().reshape(-1), dtype=np.float32), "text": text}
    return {
        "speech": _stretch(recording.sources[0].source, cut, recording.duration, recording.sampling_rate),
        "text": text,
    }


def _stretch(path: str, cut: Any, whole: float, sampling_rate: int) -> np.ndarray:
    part = cut.start > 0 or whole - cut.duration > 0.5 / sampling_rate
    return read_audio(path, sampling_rate, cut.start, cut.duration if part else None, cut.channel)


class _Cut:
    """The fields of a manifest's line that reading needs: spares a decoding job Lhotse, and its import."""

    __slots__ = ("channel", "duration", "start")

    def __init__(self, line: dict[str, Any]) -> None:
        self.start, self.duration, self.channel = line["start"], line["duration"], line["channel"]


class ManifestSource:
    """A manifest file of Lhotse cuts. The cuts themselves are built when they are asked for."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.manifest = Manifest(path)
        self.path, self.ids = self.manifest.path, self.manifest.ids

    @property
    def durations(self) -> np.ndarray:
        """float64 (N,), in seconds."""
        return self.manifest.durations

    @property
    def rates(self) -> np.ndarray:
        """int32 (N,), in Hz."""
        return self.manifest.rates

    def item(self, index: int) -> dict[str, Any]:
        line = self.manifest[index]
        recording = line.get("recording") or {}
        sources = recording.get("sources", ())
        simple = (
            line["type"] == "MonoCut"
            and len(sources) == 1
            and sources[0]["type"] == "file"
            and all(transform.get("name") == "Resample" for transform in recording.get("transforms") or ())
        )
        if not simple:
            from lhotse.serialization import deserialize_item

            return cut_item(deserialize_item(line))
        text = " ".join(supervision.get("text") or "" for supervision in line["supervisions"])
        rate, whole = recording["sampling_rate"], recording["duration"]
        return {"speech": _stretch(sources[0]["source"], _Cut(line), whole, rate), "text": text}

    def cuts(self) -> CutSet:
        return self.manifest.cuts()


class CutSource:
    """A Lhotse CutSet, or a list of cuts."""

    def __init__(self, cuts: Iterable[Any]) -> None:
        self._cuts = list(cuts)
        self.ids = [cut.id for cut in self._cuts]

    def item(self, index: int) -> dict[str, Any]:
        return cut_item(self._cuts[index])

    def cuts(self) -> CutSet:
        from lhotse import CutSet

        return CutSet.from_cuts(self._cuts)


class TableSource:
    """A Hugging Face data set, or a list of dictionaries.

    Args:
        columns: the names of the columns ``audio``, ``text`` and ``id`` where they are not the usual ones, and
            ``extra``, a list of further columns to hand on as they are.
        sampling_rate: Hz, to which files are resampled, and at which plain samples are taken to be unless a column
            ``sampling_rate`` says otherwise. None: as they are.
    """

    def __init__(self, rows: Any, columns: dict[str, Any], sampling_rate: int | None) -> None:
        self.rows, self.sampling_rate = rows, sampling_rate
        names = list(getattr(rows, "column_names", None) or dict.fromkeys(key for row in rows for key in row))
        self.audio = _column(names, columns.get("audio"), AUDIO_COLUMNS, "audio")
        self.text = _column(names, columns.get("text"), TEXT_COLUMNS, "text", needed=False)
        self.uid = uid = _column(names, columns.get("id"), ID_COLUMNS, "id", needed=False)
        self.extra = [_column(names, name, (), "extra") for name in columns.get("extra", ())]
        self.has_rate = "sampling_rate" in names
        features = getattr(rows, "features", None) or {}
        if type(features.get(self.audio)).__name__ == "Audio" and features[self.audio].decode:
            # decoding by the data set needs torchcodec; soundfile reads the stored bytes as well
            from datasets import Audio

            self.rows = rows.cast_column(self.audio, Audio(decode=False))
        if uid is None:
            self.ids = [str(index) for index in range(len(rows))]
        else:
            self.ids = [str(value) for value in (rows[uid] if features else [row[uid] for row in rows])]

    def item(self, index: int) -> dict[str, Any]:
        return self.decode(self.rows[index])

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row's item."""
        rate = row["sampling_rate"] if self.has_rate else self.sampling_rate
        item = {"speech": decode_audio(row[self.audio], self.sampling_rate, rate)}
        if self.text is not None:
            item["text"] = row[self.text] or ""
        return item | {name: row[name] for name in self.extra}

    def cuts(self) -> CutSet:
        """One cut a row, with length and text; the audio stays with the data set, which finds it by the cut's id."""
        from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

        cuts = []
        for index, uid in enumerate(self.ids):
            row = self.rows[index]
            try:
                length, rate = audio_length(
                    row[self.audio], row["sampling_rate"] if self.has_rate else self.sampling_rate
                )
            except (OSError, RuntimeError, ValueError, TypeError) as error:
                raise UserError(f"utterance {uid}: its audio cannot be read ({error})") from None
            duration = length / rate
            text = (row[self.text] or "") if self.text is not None else ""
            cuts.append(
                MonoCut(
                    id=uid,
                    start=0.0,
                    duration=duration,
                    channel=0,
                    supervisions=[SupervisionSegment(uid, uid, 0.0, duration, 0, text=text)],
                    recording=Recording(uid, [], rate, length, duration, [0]),
                )
            )
        return CutSet.from_cuts(cuts)


def _column(
    names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, needed: bool = True
) -> str | None:
    if wanted is not None and wanted not in names:
        raise UserError(f"the data set has no column '{wanted}' for {what}; it has {', '.join(names)}")
    found = wanted or next((name for name in usual if name in names), None)
    if found is None and needed:
        raise UserError(
            f"the data set has no {what} column ({', '.join(usual)}) but {', '.join(names)}; say {what}_column=..."
        )
    return found


def make_source(source: Any, columns: dict[str, Any], sampling_rate: int | None) -> Any:
    """The source behind *source*: a manifest's path, a CutSet, cuts, a Hugging Face data set, or a list of
    dictionaries.

    Raises:
        UserError: it is none of these; a streamed data set cannot be indexed.
    """
    if isinstance(source, (str, os.PathLike)):
        return ManifestSource(source)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if kind.startswith("lhotse.") or (
        isinstance(source, (list, tuple)) and source and hasattr(source[0], "supervisions")
    ):
        return CutSource(source)
    if kind.startswith("datasets.") and isinstance(source, dict):
        raise UserError(
            f"the data set has the splits {', '.join(source)}: pick one, as in load_dataset(..., split='train')"
        )
    if kind.startswith("datasets.") and not hasattr(source, "__len__"):
        raise UserError("a streamed data set has no items by position: load it without streaming=True")
    if hasattr(source, "column_names") or (
        isinstance(source, (list, tuple)) and all(isinstance(x, dict) for x in source)
    ):
        return TableSource(source, columns, sampling_rate)
    raise UserError(
        f"ESPnet3Dataset: no data set can be made of {kind}; give a Hugging Face data set, a Lhotse CutSet, the "
        "path of a manifest, or a list of dictionaries"
    )
