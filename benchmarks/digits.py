"""The digit strings that ESPnet2's figures were measured on, for the benchmarks that compare with it: 2,000 / 100 / 200
utterances (train, dev, test) as Kaldi directories, drawn from the Free Spoken Digit Dataset with fixed seeds.

    python benchmarks/digits.py OUT [--fsdd ARCHIVE_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from espnet3.data.corpora.fsdd import DIGITS, SAMPLING_RATE, SPEAKERS, FsddCorpus

PARTS = {"train": (2000, range(5, 45), 1), "dev": (100, range(45, 50), 2), "test": (200, range(5), 3)}
"""Utterances, indices of the recordings, seed."""


def digit_strings(out: str | Path, fsdd: str | None = None) -> Path:
    """The folder *out* with ``{train,dev,test}/{wav.scp,text,utt2spk,utt2num_samples}``; made once, then found again.

    Args:
        fsdd: the archive or its unpacked folder; None: ``$ESPNET3_FSDD``, and without that it is fetched.

    Raises:
        UserError: it is not there, or damaged.
    """
    out = Path(out).resolve()
    if not (out / "complete").exists():
        corpus = FsddCorpus(source=fsdd or os.environ.get("ESPNET3_FSDD") or None, downloads=str(out / "downloads"))
        corpus.prepare(out)
        for part, (count, indices, seed) in PARTS.items():
            _write(out / part, corpus.recordings, part, count, list(indices), np.random.default_rng(seed))
        (out / "complete").touch()
    return out


def _write(folder: Path, recordings: Path, part: str, count: int, indices: list[int], rng: np.random.Generator) -> None:
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "utt2num_samples")}
    for number in range(count):
        speaker = SPEAKERS[number % len(SPEAKERS)]
        digits = rng.integers(0, 10, rng.integers(1, 8))
        pieces: list[np.ndarray] = []
        for digit in digits:
            spoken, _ = soundfile.read(recordings / f"{digit}_{speaker}_{rng.choice(indices)}.wav", dtype="int16")
            if not pieces:
                pieces.append(_gap(rng))
            pieces += [spoken if spoken.ndim == 1 else spoken[:, 0], _gap(rng)]
        samples = np.concatenate(pieces)
        name = f"{speaker}-{part}-{number:05d}"
        path = folder / "wav" / f"{name}.wav"
        soundfile.write(path, samples, SAMPLING_RATE, subtype="PCM_16")
        rows["wav.scp"].append(f"{name} {path}")
        rows["text"].append(f"{name} {' '.join(DIGITS[digit] for digit in digits)}")
        rows["utt2spk"].append(f"{name} {speaker}")
        rows["utt2num_samples"].append(f"{name} {len(samples)}")
    for file, lines in rows.items():
        (folder / file).write_text("".join(line + "\n" for line in sorted(lines)), encoding="utf-8")


def _gap(rng: np.random.Generator) -> np.ndarray:
    """50 to 200 ms of faint noise."""
    return (rng.standard_normal(int(SAMPLING_RATE * rng.uniform(0.05, 0.2))) * 4).astype("int16")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--fsdd", help="the archive or its unpacked folder (default: $ESPNET3_FSDD, or it is fetched)")
    a = parser.parse_args(argv)
    print(digit_strings(a.out, a.fsdd))


if __name__ == "__main__":
    main()
