"""What the tests of broken input share: real speech, a clock against hangs, the two stages, and wav files byte by byte."""

from __future__ import annotations

import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.io import read_jsonl
from espnet3.stages import corpus, manifest

DATA = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 1.0}
RATE = 16000
SECONDS = 20


@pytest.fixture(scope="module")
def speech(spoken) -> np.ndarray:
    """Real speech, int16, 16 kHz: a bit more than a second."""
    return soundfile.read(spoken[0]["audio"], dtype="int16")[0][:20000]


@pytest.fixture(autouse=True)
def no_hang():
    """A test that waits for ever fails."""

    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def build(node: dict, folder: Path) -> tuple[list[dict], dict[str, str]]:
    """Cuts of the split ``test`` and ``{id: reason}`` of what is rejected."""
    corpus.run({"data": {"builder": node}}, folder / "out/corpus.jsonl")
    output, rejected = folder / "out/test.jsonl.gz", folder / "out/test.rejected.jsonl"
    manifest.run({"data": DATA}, folder / "out/corpus.jsonl", "test", output, rejected)
    return list(read_jsonl(output)), {line["id"]: line["reason"] for line in read_jsonl(rejected)}


def wav_header(size: int, rate: int = RATE, bits: int = 16, form: int = 1) -> bytes:
    block = bits // 8
    chunk = struct.pack("<IHHIIHH", 16, form, 1, rate, rate * block, block, bits)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + chunk + b"data" + struct.pack("<I", size)


def wav(samples: np.ndarray, **header: int) -> bytes:
    return wav_header(2 * len(samples), **header) + samples.tobytes()
