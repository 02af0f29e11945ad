"""Utterances that exist only as lengths and noise, for benchmarks of batches and of large manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RATE = 16000
BATCH_SECONDS = 240.0


def durations(count: int, seed: int = 0) -> np.ndarray:
    """Lengths in seconds with LibriSpeech's mean, deviation, and crowd between 12 and 16 s."""
    rng = np.random.default_rng(seed)
    long = rng.random(count) < 0.64
    return np.round(np.where(long, rng.normal(14.6, 1.2, count).clip(10, 27), 1.3 + 14 * rng.beta(1.6, 1.5, count)), 3)


def write_corpus(lines: int, folder: Path) -> None:
    """``corpus.jsonl`` of so many utterances, which share a hundred files."""
    import soundfile

    rng = np.random.default_rng(1)
    lengths = durations(100, seed=2)
    for i, seconds in enumerate(lengths):
        soundfile.write(folder / f"{i}.wav", (0.1 * rng.standard_normal(int(seconds * RATE))).astype(np.float32), RATE)
    words = ["".join(chr(97 + c) for c in rng.integers(26, size=rng.integers(1, 9))) for _ in range(5000)]
    with open(folder / "corpus.jsonl", "w") as handle:
        for i in range(lines):
            text = " ".join(words[k] for k in rng.integers(5000, size=33))
            record = {
                "id": f"{i % 2338:04d}-{i % 9973:06d}-{i:07d}",
                "split": "train",
                "audio": str(folder / f"{i % 100}.wav"),
                "text": text,
                "speaker": f"{i % 2338:04d}",
            }
            handle.write(json.dumps(record) + "\n")
