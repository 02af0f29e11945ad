"""Kaldi data directories: ``wav.scp`` with plain paths, ``text``, ``utt2spk`` and ``segments``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from espnet3.data.corpora.base import CorpusBuilder
from espnet3.errors import UserError

_ARK = re.compile(r"\.ark(:\d+)?$")


class KaldiCorpus(CorpusBuilder):
    """One Kaldi directory a split.

    ``wav.scp`` is needed; an utterance that ``text`` lacks is left out of the manifest as one without a transcript.
    Audio stays where it is.

    Args:
        dirs: split to directory, such as ``{train: data/train, valid: data/dev, test: data/test}``.
        root: the folder that relative paths in ``wav.scp`` start from; None: the working directory, as in Kaldi.

    Raises:
        UserError: a file is absent, a line is malformed, or ``wav.scp`` has a command or an ark instead of a path.
    """

    def __init__(self, dirs: dict[str, str], root: str | None = None) -> None:
        self.dirs, self.root = dirs, Path(root) if root else None

    def plan(self, folder: Path) -> list[dict[str, Any]]:
        return [record for split, path in self.dirs.items() for record in self._read(Path(path), split)]

    def _read(self, path: Path, split: str) -> list[dict[str, Any]]:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder (data.builder.dirs.{split})")
        audio = {key: self._audio(path / "wav.scp", key, value) for key, value in _table(path / "wav.scp").items()}
        texts = _table(path / "text", needed=False)
        speakers = _table(path / "utt2spk", needed=False)
        records = []
        for uid, extra in self._utterances(path, audio):
            record = {"id": uid, "split": split, **extra, "text": texts.get(uid, "")}
            records.append(record | ({"speaker": speakers[uid]} if uid in speakers else {}))
        return records

    def _audio(self, scp: Path, key: str, value: str) -> str:
        if value.endswith("|"):
            raise UserError(
                f"{scp}: {key} is a command ({value}), which is not run; write its output to a file and name that"
            )
        if _ARK.search(value):
            raise UserError(f"{scp}: {key} lies in an ark ({value}); copy it to wav or flac files and name those")
        if not value:
            raise UserError(f"{scp}: {key} has no path")
        return str(self.root / value) if self.root is not None else value

    @staticmethod
    def _utterances(path: Path, audio: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
        if not (path / "segments").exists():
            return [(uid, {"audio": file}) for uid, file in audio.items()]
        utterances = []
        for uid, value in _table(path / "segments").items():
            try:
                recording, start, end = value.split()
                extra: dict[str, Any] = {"audio": audio[recording], "start": float(start)}
            except KeyError:
                raise UserError(
                    f"{path / 'segments'}: {uid} names the recording '{recording}', which wav.scp lacks"
                ) from None
            except ValueError:
                raise UserError(f"{path / 'segments'}: {uid}: '{value}' is not '<recording> <start> <end>'") from None
            if float(end) >= 0:
                # the samples of two decimal fractions, without the noise of their difference
                extra["duration"] = round(float(end) - float(start), 9)
            utterances.append((uid, extra))
        return utterances


def _table(path: Path, needed: bool = True) -> dict[str, str]:
    """First field of each line to the rest of it. Raises UserError for a missing file, bad UTF-8, or a key twice."""
    if not path.exists() and not needed:
        return {}
    table: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    raise UserError(f"{path}:{number}: the line is empty")
                key, _, value = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
                if key in table:
                    raise UserError(f"{path}:{number}: '{key}' is there twice")
                table[key] = value.strip()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    return table
