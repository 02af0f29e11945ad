"""What a corpus remembers of the user's files: replaced, touched, absent and very large ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.data.corpora import recordings
from espnet3.data.corpora.recordings import Recordings
from espnet3.io import read_json, read_jsonl
from espnet3.stages import corpus

KALDI = "espnet3.data.corpora.kaldi.KaldiCorpus"


@pytest.fixture
def builder(tmp_path: Path, monkeypatch) -> dict:
    """Two Kaldi directories; the first has two utterances in each of its two recordings."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        Path(split).mkdir()
        names = [f"{split}{i}" for i in range(2)]
        for name in names:
            soundfile.write(f"{name}.wav", rng.normal(0, 0.1, 8000), 8000)
        Path(split, "wav.scp").write_text("".join(f"{name} {name}.wav\n" for name in names))
        Path(split, "text").write_text("".join(f"{name}{part} one two\n" for name in names for part in ("a", "b", "")))
    parts = [(f"train{i}{part}", f"train{i}", start) for i in range(2) for part, start in (("a", 0.0), ("b", 0.5))]
    Path("train/segments").write_text("".join(f"{uid} {of} {start} {start + 0.5}\n" for uid, of, start in parts))
    node = {"_target_": KALDI, "dirs": {"train": "train", "test": "test"}}
    corpus.run({"data": {"builder": node}}, "data/k/corpus.jsonl")
    return node


def compared(builder: dict) -> Recordings:
    found = Recordings("data/k/corpus.jsonl", builder)
    found.compare()
    return found


def test_a_new_corpus_is_fresh_and_its_records_name_their_audio_by_content(builder):
    found = compared(builder)
    assert found.known and not found.stale and not found.changes
    assert (found.of("train")["utterances"], found.of("test")["utterances"]) == (4, 2)
    assert {len(record["sha256"]) for record in read_jsonl("data/k/corpus.jsonl")} == {64}


def test_a_recording_that_is_replaced_changes_its_split_alone(builder):
    before = {split: compared(builder).of(split) for split in ("train", "test")}
    os.replace("test1.wav", "train1.wav")
    found = compared(builder)
    assert found.stale and found.of("train") != before["train"] and found.of("test") != before["test"]
    assert found.changes == [
        "test: audio missing: test1 (test1.wav)",
        "train: audio replaced: train1a (train1.wav), train1b (train1.wav)",
    ]


def test_a_change_of_words_is_shown_old_and_new(builder):
    before = compared(builder).of("train")
    text = Path("test/text").read_text()
    Path("test/text").write_text(text.replace("test0 one two", "test0 one three"))
    found = compared(builder)
    assert found.of("train") == before
    assert found.changes == ['test: changed: test0 (text: "one two" → "one three")']


def test_a_touched_file_is_read_once(builder):
    old = read_json("data/k/files.json")
    os.utime("train0.wav")
    os.utime("train/text")
    assert not compared(builder).stale
    new = read_json("data/k/files.json")
    assert new["audio"]["train0.wav"][1] > old["audio"]["train0.wav"][1]
    assert new["splits"] == old["splits"]


def test_what_is_too_large_to_be_read_counts_as_replaced_until_the_corpus_job_has_read_it(builder, monkeypatch):
    before = {split: compared(builder).of(split) for split in ("train", "test")}
    monkeypatch.setattr(recordings, "READ_AT_MOST", 1000)
    os.utime("test0.wav")
    found = compared(builder)
    assert found.stale and found.of("test") != before["test"] and found.of("train") == before["train"]
    assert found.changes == ["test: audio of another time, which the corpus job will read: test0 (test0.wav)"]
    corpus.run({"data": {"builder": builder}}, "data/k/corpus.jsonl")
    assert {split: found.of(split) for split in before} == before
    assert not compared(builder).stale


def test_audio_that_is_gone_as_a_whole_is_reported_and_what_was_made_is_kept(builder):
    for path in Path().glob("*.wav"):
        path.unlink()
    found = compared(builder)
    assert not found.stale
    assert found.changes == ["none of its 4 audio files is there; what was made from them is kept"]
