"""Kaldi data directories: ``wav.scp``, ``text``, ``utt2spk`` and ``segments``."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from espnet3.data.corpora.kaldi_audio import read_ark, run_command
from espnet3.data.corpora.splits import Draw, SourceCorpus
from espnet3.data.corpora.wav import write_file
from espnet3.data.names import file_name
from espnet3.errors import UserError

logger = logging.getLogger(__name__)

_ARK = re.compile(r"(?P<path>.+\.ark):(?P<offset>\d+)")
_BLANK = re.compile(r"[ \t]+")


class KaldiCorpus(SourceCorpus):
    """One Kaldi directory a split.

    ``wav.scp`` is needed; an utterance that ``text`` lacks is left out of the manifest as one without a transcript.
    Files stay where they are, and ``segments`` become parts of them. What lies in an ark (``file.ark:123``), or comes
    out of a command, is written to a file of its own.

    Args:
        dirs: split to directory, such as ``{train: data/train, valid: data/dev, test: data/test}``; or one directory,
            whose utterances are drawn.
        root: the folder that relative paths in ``wav.scp`` start from; None: the working directory, as in Kaldi.
        allow_pipes: run the commands (``sox ... |``) that ``wav.scp`` has in place of paths, with the shell, as Kaldi
            does. A data directory of somebody else's can then do whatever you can.
        fractions, split_by, draw_from, seed: see :class:`espnet3.data.corpora.splits.Draw`.
        normalize: of the transcripts: ``none``, or ``basic`` (lower case, no punctuation).

    Raises:
        UserError: a file is absent, a line is malformed, or ``wav.scp`` has a command that is not allowed.
    """

    listed = True

    def __init__(
        self,
        dirs: str | dict[str, str],
        root: str | None = None,
        allow_pipes: bool = False,
        fractions: dict[str, float] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
        normalize: str = "none",
    ) -> None:
        self.dirs, self.root, self.allow_pipes = dirs, Path(root) if root else None, allow_pipes
        if fractions is None and not isinstance(dirs, dict):
            fractions = {"valid": 0.05, "test": 0.05}
        self.draw = Draw(fractions, split_by, draw_from, seed)
        self.normalize = normalize
        self._extracts = False

    def plan(self, folder: Path) -> Iterable[dict[str, Any]]:
        records = list(super().plan(folder))
        self._extracts = any("extract" in record for record in records)
        return records

    @property
    def renders(self) -> bool:
        return self._extracts

    def make(self, item: dict[str, Any], folder: Path) -> dict[str, Any]:
        record = {key: value for key, value in item.items() if key != "extract"}
        for value in item.get("extract", ()):
            ark = _ARK.fullmatch(value)
            try:
                data = read_ark(ark["path"], int(ark["offset"])) if ark else run_command(value)
            except ValueError as error:
                return record | {"rejected": f"unreadable file: {error}"}
            write_file(Path(record["audio"]), data)
        return record

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        dirs = self.dirs if isinstance(self.dirs, dict) else {None: self.dirs}
        for split, path in dirs.items():
            yield from self._read(Path(path), split, folder)

    def _read(self, path: Path, split: str | None, folder: Path) -> Iterator[dict[str, Any]]:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder (data.builder.dirs{'.' + split if split else ''})")
        audio = {
            key: self._audio(path / "wav.scp", key, value, folder / (split or "all"))
            for key, value in table(path / "wav.scp").items()
        }
        texts = table(path / "text", needed=False)
        speakers = table(path / "utt2spk", needed=False)
        count = known = 0
        for uid, extra in self._utterances(path, audio):
            count, known = count + 1, known + (uid in texts)
            record = {"id": uid, "split": split, **extra, "text": texts.get(uid, "")}
            yield record | ({"speaker": speakers[uid]} if uid in speakers else {})
        if len(texts) > known:
            logger.warning("%s: %d of %d lines name no utterance", path / "text", len(texts) - known, len(texts))

    def _audio(self, scp: Path, key: str, value: str, folder: Path) -> dict[str, Any]:
        if not value:
            raise UserError(f"{scp}: {key} has no path")
        if value.endswith("|"):
            if not self.allow_pipes:
                raise UserError(
                    f"{scp}: {key} is a command ({value}), which is not run: write its output to a file and name that, "
                    "or set data.builder.allow_pipes=true where you trust every line"
                )
            return {"audio": str(folder / f"{file_name(key)}.wav"), "extract": [value.removesuffix("|").strip()]}
        if value.endswith(".ark"):
            raise UserError(f"{scp}: {key} is a whole ark ({value}), which needs an offset, as in {value}:123")
        path = str(self.root / value) if self.root is not None else value
        if _ARK.fullmatch(value):
            return {"audio": str(folder / f"{file_name(key)}.wav"), "extract": [path]}
        if value.endswith("]") or value == "-":
            raise UserError(f"{scp}: {key} is '{value}': give a path, or an ark with an offset")
        return {"audio": path}

    @staticmethod
    def _utterances(path: Path, audio: dict[str, dict]) -> Iterator[tuple[str, dict[str, Any]]]:
        if not (path / "segments").exists():
            yield from audio.items()
            return
        for uid, value in table(path / "segments").items():
            try:
                recording, start, end = _BLANK.split(value)
                extra: dict[str, Any] = {**audio[recording], "start": float(start)}
            except KeyError:
                raise UserError(
                    f"{path / 'segments'}: {uid} names the recording '{recording}', which wav.scp lacks"
                ) from None
            except ValueError:
                raise UserError(f"{path / 'segments'}: {uid}: '{value}' is not '<recording> <start> <end>'") from None
            # a recording is taken out of its ark once, with its first utterance
            audio[recording] = {"audio": extra["audio"]}
            try:
                stop = float(end)
            except ValueError:
                raise UserError(f"{path / 'segments'}: {uid}: '{value}' is not '<recording> <start> <end>'") from None
            if not (math.isfinite(extra["start"]) and math.isfinite(stop)):
                yield uid, {"audio": extra["audio"], "rejected": f"bad start or end: {value!r}"}
                continue
            if stop >= 0:
                # the samples of two decimal fractions, without the noise of their difference
                extra["duration"] = round(stop - extra["start"], 9)
            yield uid, extra


def table(path: Path, needed: bool = True) -> dict[str, str]:
    """First field of each line to the rest of it. Raises UserError for a missing file, bad UTF-8, or a key twice."""
    if not path.exists() and not needed:
        return {}
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file")
    entries: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip(" \t\r\n")
                if not line:
                    raise UserError(f"{path}:{number}: the line is empty")
                key, *rest = _BLANK.split(line, maxsplit=1)
                if key in entries:
                    raise UserError(f"{path}:{number}: '{key}' is there twice")
                entries[key] = rest[0] if rest else ""
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return entries
