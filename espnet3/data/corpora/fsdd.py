"""The Free Spoken Digit Dataset as strings of digits: 3,000 recordings of six speakers, 8 kHz, CC BY-SA 4.0.

Source: https://github.com/Jakobovski/free-spoken-digit-dataset. Official split: recordings 0 to 4 of each digit and
speaker are the test set.
"""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile

from espnet3.data.corpora.archive import download, exclusive, extract_tar
from espnet3.data.corpora.base import CorpusBuilder
from espnet3.data.corpora.wav import write_wav
from espnet3.errors import UserError, did_you_mean
from espnet3.io import sha256_file

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
CONTENT_SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDINGS, SAMPLING_RATE = 3000, 8000
_NAME = re.compile(r"\d_[a-z]+_\d+\.wav")
_INDICES = {"test": range(0, 5), "train": range(5, 45), "valid": range(45, 50)}
_MAX_BYTES = 200 << 20


class FsddCorpus(CorpusBuilder):
    """Strings of 1 to 7 digits by one speaker, joined with short gaps, as 8 kHz files.

    Args:
        source: the archive, or a folder with its recordings, on this machine; None: fetched from *url*.
        url: of the archive. downloads: the folder in which it is unpacked, shared by experiments.
        held_out: a speaker who is in no split but ``test``, where there is nobody else; all his recordings are used.
            None: the official split, with all speakers in each.
        utterances: how many in each split.
        gap: shortest and longest gap between digits, seconds.
        seed: equal arguments give byte-identical files.
    """

    def __init__(
        self,
        source: str | None = None,
        url: str = URL,
        downloads: str = "data/downloads",
        held_out: str | None = None,
        utterances: dict[str, int] | None = None,
        gap: tuple[float, float] = (0.05, 0.2),
        seed: int = 0,
    ) -> None:
        if held_out is not None and held_out not in SPEAKERS:
            raise UserError(
                f"data.builder.held_out: there is no speaker '{held_out}'{did_you_mean(held_out, SPEAKERS)}"
            )
        self.source = Path(source) if source else None
        self.url, self.downloads = url, Path(downloads)
        self.held_out, self.seed, self.gap = held_out, seed, gap
        self.utterances = {"train": 2000, "valid": 100, "test": 200} | dict(utterances or {})
        for split in self.utterances:
            if split not in _INDICES:
                raise UserError(f"data.builder.utterances: there is no split '{split}'{did_you_mean(split, _INDICES)}")

    @property
    def recordings(self) -> Path:
        """The folder of the single digits' wavs, once ``prepare`` has been called."""
        if self.source is not None and self.source.is_dir():
            inner = self.source / "recordings"
            return inner if inner.is_dir() else self.source
        return self.downloads / "fsdd" / "recordings"

    def prepare(self, folder: Path) -> None:
        """Fetch and unpack the archive unless that is done; check the recordings' content.

        Raises:
            UserError: no network, no such source, or other recordings than the expected ones.
        """
        if self.source is not None and not self.source.exists():
            raise UserError(f"{self.source}: no such file or folder (data.builder.source)")
        if self.source is not None and self.source.is_dir():
            check_content(self.recordings, self.source)
            return
        with exclusive(self.downloads / "fsdd.lock"):
            if self.recordings.is_dir() and content_digest(self.recordings)[1] == CONTENT_SHA256:
                return
            archive = self.source or download(self.url, self.downloads / "fsdd.tar.gz", _MAX_BYTES)
            extract_tar(archive, self.downloads / "fsdd", _is_recording, _MAX_BYTES)
            check_content(self.recordings, archive)

    def plan(self, folder: Path) -> list[dict[str, Any]]:
        plan = []
        for split, count in self.utterances.items():
            rng = random.Random(f"fsdd/{self.seed}/{split}")
            speakers, indices = SPEAKERS, _INDICES[split]
            if self.held_out is not None and split == "test":
                speakers, indices = (self.held_out,), range(50)
            elif self.held_out is not None:
                speakers = tuple(speaker for speaker in SPEAKERS if speaker != self.held_out)
            for i in range(count):
                speaker = speakers[i % len(speakers)]
                digits = [rng.randrange(10) for _ in range(rng.randint(1, 7))]
                plan.append({
                    "id": f"{speaker}-{split}-{i:05d}",
                    "split": split,
                    "text": " ".join(DIGITS[digit] for digit in digits),
                    "speaker": speaker,
                    "parts": [f"{digit}_{speaker}_{rng.choice(indices)}.wav" for digit in digits],
                    "gaps": [round(rng.uniform(*self.gap) * SAMPLING_RATE) for _ in range(len(digits) + 1)],
                })  # fmt: skip
        return plan

    def make(self, item: dict[str, Any], folder: Path) -> dict[str, Any]:
        noise = random.Random(f"{self.seed}/{item['id']}")
        # a few quantisation steps of noise, so that a gap is not digital silence
        gaps = [np.frombuffer(noise.randbytes(n), dtype=np.uint8).astype(np.int16) % 13 - 6 for n in item["gaps"]]
        pieces = [gaps[0]]
        for name, gap in zip(item["parts"], gaps[1:], strict=True):
            samples, rate = soundfile.read(self.recordings / name, dtype="int16", always_2d=True)
            if rate != SAMPLING_RATE:
                raise UserError(f"{self.recordings / name}: {rate} Hz where {SAMPLING_RATE} Hz belong")
            pieces += [samples[:, 0], gap]
        path = folder / item["split"] / f"{item['id']}.wav"
        facts = write_wav(path, np.concatenate(pieces), SAMPLING_RATE)
        return {
            "id": item["id"],
            "split": item["split"],
            "audio": str(path),
            "text": item["text"],
            "speaker": item["speaker"],
            **facts,
        }


def _is_recording(path: PurePosixPath) -> bool:
    return len(path.parts) == 2 and path.parts[0] == "recordings" and _NAME.fullmatch(path.name) is not None


def content_digest(folder: Path) -> tuple[int, str]:
    """How many recordings there are, and the SHA-256 of their sorted names and digests.

    GitHub packs its archives anew now and then, so the bytes of the archive say nothing.
    """
    names = sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return len(names), total.hexdigest()


def check_content(folder: Path, where: Path) -> None:
    """Raises UserError where *folder* does not hold exactly the expected recordings."""
    count, digest = content_digest(folder) if folder.is_dir() else (0, "")
    if count != RECORDINGS:
        raise UserError(f"{where}: {count} recordings where {RECORDINGS} belong; is this the archive of {URL}?")
    if digest != CONTENT_SHA256:
        raise UserError(
            f"{where}: wrong checksum of the recordings ({digest[:16]}, not {CONTENT_SHA256[:16]}): damaged, or"
            " another version of it; fetch it anew"
        )
