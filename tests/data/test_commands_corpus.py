"""The embedded corpus: an honest split, and the same bytes however it is rendered."""

from __future__ import annotations

import filecmp
import random
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.data.corpora import espeak
from espnet3.data.corpora.commands import CommandsCorpus
from espnet3.errors import UserError
from espnet3.io import read_jsonl
from espnet3.stages import corpus

BUILDER = {
    "_target_": "espnet3.data.corpora.commands.CommandsCorpus",
    "hours": 0.02,
    "minutes_valid": 0.2,
    "test_utterances": 8,
    "snr": [25, 45],
    "reverberation": [0.2, 0.4],
}


@pytest.fixture(scope="module")
def full_plan():
    return CommandsCorpus().plan(Path("audio"))


def of(plan, *splits):
    return [item for item in plan if item["split"] in splits]


def test_no_sentence_is_in_two_splits_and_no_voice_of_test_voices_is_trained_on(full_plan):
    texts = [item["text"] for item in full_plan]
    assert len(set(texts)) == len(texts)
    variants = {
        s: {item["speaker"].split("+")[1] for item in of(full_plan, s)} for s in ("train", "test", "test_voices")
    }
    assert len(variants["train"]) >= 40 and len(variants["test_voices"]) >= 8
    assert not variants["test_voices"] & (variants["train"] | variants["test"])
    assert variants["test"] <= variants["train"]


def test_it_has_the_words_and_the_size_that_a_recogniser_needs(full_plan):
    trained = {word for item in of(full_plan, "train") for word in item["text"].split()}
    tested = {word for item in of(full_plan, "test", "test_voices", "valid") for word in item["text"].split()}
    assert len(trained) >= 120
    assert tested <= trained
    assert len(of(full_plan, "test")) == len(of(full_plan, "test_voices")) == 280
    assert all(re.fullmatch("[a-z]+( [a-z]+)*", item["text"]) for item in full_plan)


def test_words_that_sound_alike_are_never_both_in_it(full_plan):
    words = {word for item in full_plan for word in item["text"].split()}
    groups = "two to too,four for,eight ate,one won,you u,are r,see c sea,why y,be b bee,oh o,eye i,right write,a"
    for group in groups.split(","):
        assert len(words & set(group.split())) <= (group != "a"), group


def test_training_audio_is_as_long_as_hours_says(full_plan, tmp_path):
    builder = CommandsCorpus()
    some = random.Random(0).sample(of(full_plan, "train"), 40)
    seconds = sum(builder.make(item, tmp_path)["duration"] for item in some) / 40 * len(of(full_plan, "train"))
    assert 1.0 * 3600 < seconds < 1.4 * 3600


def test_more_training_audio_leaves_the_test_sets_as_they_are(full_plan):
    more = CommandsCorpus(hours=1.5).plan(Path("audio"))
    assert of(more, "test", "test_voices", "valid") == of(full_plan, "test", "test_voices", "valid")


def test_samples_depend_on_nothing_that_was_said_before():
    # breath, flutter, echo and noise: the voices that draw random numbers or keep state
    voices = ["en-us+Reed", "en-us+f1", "en-us+grandpa", "en-us+klatt4", "en-us+m2", "en+zac"]
    calls = [(text, voice) for voice in voices for text in ("turn on the light", "seven")]
    first = {call: espeak.synthesise(*call, seed=3) for call in calls}
    random.Random(1).shuffle(calls)
    for call in calls:
        assert np.array_equal(espeak.synthesise(*call, seed=3), first[call]), call


def test_an_unknown_voice_is_an_error_not_another_voice():
    with pytest.raises(ValueError, match="no voice 'en-us\\+nobody'"):
        espeak.synthesise("hello", "en-us+nobody")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The same small corpus by one process, and by two."""
    folders = []
    for workers in (1, 2):
        folder = tmp_path_factory.mktemp(f"workers{workers}")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            corpus.run({"data": {"builder": BUILDER}}, "data/c/corpus.jsonl", {"env": "local", "n_workers": workers})
        folders.append(folder)
    return folders


def test_the_number_of_workers_changes_no_byte(rendered):
    one, two = rendered
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) > 30
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(one, two, files, shallow=False) == (files, [], [])


def test_files_are_what_their_records_say(rendered):
    for record in read_jsonl(rendered[0] / "data/c/corpus.jsonl"):
        path = rendered[0] / record["audio"]
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames / 16000 == pytest.approx(record["duration"])
        peak = np.abs(soundfile.read(path)[0]).max()
        assert 0.2 < peak < 0.95


def test_another_level_of_noise_is_another_corpus_file(rendered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus.run({"data": {"builder": {**BUILDER, "snr": [5, 10]}}}, "data/c/corpus.jsonl")
    before, after = (list(read_jsonl(f / "data/c/corpus.jsonl")) for f in (rendered[0], tmp_path))
    assert [r["text"] for r in before] == [r["text"] for r in after]
    assert all(a["sha256"] != b["sha256"] for a, b in zip(before, after, strict=True))


def test_a_smaller_corpus_leaves_no_files_of_the_larger_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for count in (5, 2):
        small = {**BUILDER, "hours": 0.001, "minutes_valid": 0.01, "test_utterances": count}
        corpus.run({"data": {"builder": small}}, "data/c/corpus.jsonl")
    assert len(list(Path("data/c/audio/test").iterdir())) == 2


def test_a_misspelt_voice_is_named_before_anything_is_rendered(tmp_path):
    node = {**BUILDER, "voices": ["f1", "stephh"]}
    with pytest.raises(UserError, match=r"data.builder.voices: .*'stephh'; did you mean 'steph'"):
        corpus.run({"data": {"builder": node}}, tmp_path / "corpus.jsonl")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rate": [200, 100]}, "data.builder.rate"),
        ({"voices": ["f1", "f2"], "held_out_voices": ["f2"]}, "f2 stands in both"),
    ],
)
def test_impossible_keys_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        CommandsCorpus(**keys)
