"""What a column of a table, or a key of a JSON object, means: the usual names of each field of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from espnet3.errors import UserError, did_you_mean

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "utt_id", "uid", "key", "segment_id"),
    "audio": ("audio", "audio_filepath", "audio_path", "file_name", "wav", "speech", "path", "file"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "split": ("split", "subset"),
    "start": ("start", "offset"),
    "duration": ("duration",),
    "channel": ("channel",),
    "language": ("language", "lang", "locale"),
}
_NUMBERS = ("start", "duration", "channel")


def choose(
    names: Iterable[str], columns: Mapping[str, str] | None, where: str, needed: tuple[str, ...] = ("audio",)
) -> dict[str, str]:
    """``{field: name}`` for each field of a record that *names* has.

    Args:
        columns: ``{field: name}`` where the name is none of the usual ones.
        where: for messages. needed: fields without which there is no corpus.

    Raises:
        UserError: a column of *columns* does not exist, or none is what is *needed*.
    """
    names = list(names)
    chosen = {}
    for field, name in (columns or {}).items():
        if field not in ALIASES:
            raise UserError(f"data.builder.columns: there is no field '{field}'{did_you_mean(field, ALIASES)}")
        if name not in names:
            raise UserError(f"{where}: there is no column '{name}' (data.builder.columns.{field}), but {_list(names)}")
        chosen[field] = name
    for field, usual in ALIASES.items():
        if field not in chosen:
            found = next((name for name in usual if name in names and name not in chosen.values()), None)
            if found is not None:
                chosen[field] = found
    for field in needed:
        if field not in chosen:
            raise UserError(
                f"{where}: none of the columns is the {field} ({_list(names)}); say which: data.builder.columns.{field}"
            )
    return chosen


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12])) or "none at all"


def fit(values: dict[str, Any], place: str) -> dict[str, Any]:
    """A record of the fields' raw *values*; what is of a wrong kind stays out, and ``rejected`` says why.

    Args:
        place: stands for the id of a record that has none, such as ``line-7``.
    """
    record, problem = _sound(values)
    audio, text = record.get("audio"), record.get("text")
    if not isinstance(audio, str) or not audio:
        problem = "missing audio: the field is empty" if audio in (None, "") else f"bad audio: {audio!r} is no path"
        record["audio"] = ""
    uid = record.get("id")
    if isinstance(uid, bool) or not isinstance(uid, (str, int, type(None))) or uid == "":
        problem = problem or f"bad id: {uid!r} is no name"
        uid = place
    if uid is None:
        parts = PurePosixPath(record["audio"]).with_suffix("").parts if record["audio"].strip("/.") else ()
        uid = "-".join(part for part in parts if part not in ("/", ".", "..")) or place
        uid += f"-{record['start']}" if record.get("start") else ""
    record["id"] = str(uid)
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        record["text"] = str(text)
    elif text is not None and not isinstance(text, str):
        problem = problem or f"bad transcript: {type(text).__name__} in place of a text"
        record["text"] = ""
    for key in _NUMBERS:
        value = record.get(key)
        if value in (None, ""):
            record.pop(key, None)
        elif isinstance(value, str):
            try:
                record[key] = float(value)
            except ValueError:
                problem = problem or f"bad {key}: {value!r} is no number"
                del record[key]
        if isinstance(record.get(key), float) and not math.isfinite(record[key]):
            problem = problem or f"bad {key}: {value!r} is no number"
            del record[key]
    for key in ("speaker", "language"):
        if record.get(key) in (None, ""):
            record.pop(key, None)
        elif not isinstance(record[key], str):
            record[key] = str(record[key])
    if problem:
        record["rejected"] = problem
    return record


def _sound(values: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """*values* without what JSON or UTF-8 cannot hold, and what that means for the utterance."""
    record, problem = {}, None
    for key, value in values.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                problem = f"bad {key}: half of a character, U+{ord(value[error.start]):04X}"
                value = value.encode("utf-8", "replace").decode("utf-8")
        elif key not in _NUMBERS and not isinstance(value, (str, int, type(None))):
            try:
                json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
            except (TypeError, ValueError):
                # NaN in a field that says nothing of the utterance's place
                continue
        record[key] = value
    return record, problem


def below(root: Path, audio: str) -> str:
    """The path *audio*, which starts at *root* where it is relative; an empty one stays empty."""
    return str(root / audio) if audio else ""
