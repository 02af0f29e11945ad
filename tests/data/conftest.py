"""Real speech for the tests of this room: a few utterances, rendered once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.data.corpora.commands import CommandsCorpus
from espnet3.io import write_jsonl
from espnet3.stages import manifest

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 0.0}


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> list[dict]:
    """Records of 24 spoken utterances at 16 kHz."""
    folder = tmp_path_factory.mktemp("spoken") / "audio"
    builder = CommandsCorpus(hours=0.001, minutes_valid=0.01, test_utterances=24)
    items = [item for item in builder.plan(folder) if item["split"] == "test"]
    return [builder.make(item, folder) for item in items]


@pytest.fixture(scope="session")
def spoken_manifest(spoken, tmp_path_factory) -> Path:
    """Their manifest."""
    folder = tmp_path_factory.mktemp("manifest")
    write_jsonl(folder / "corpus.jsonl", spoken)
    output = folder / "test.jsonl.gz"
    manifest.run({"data": LIMITS}, folder / "corpus.jsonl", "test", output, folder / "test.rejected.jsonl")
    return output


@pytest.fixture(scope="session")
def samples(spoken) -> np.ndarray:
    """The first utterance's samples, float32."""
    return soundfile.read(spoken[0]["audio"], dtype="float32")[0]
