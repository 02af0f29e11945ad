"""The recorded corpus: the archive's content is checked, the splits share no recording."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import soundfile

from espnet3.data.corpora import fsdd
from espnet3.data.corpora.fsdd import FsddCorpus
from espnet3.errors import UserError
from espnet3.io import read_jsonl
from espnet3.stages import corpus

SMALL = {"train": 12, "valid": 6, "test": 12}


def test_the_official_split_shares_no_recording():
    plan = FsddCorpus().plan(Path("audio"))
    indices = {s: {int(p.split("_")[2][:-4]) for i in plan if i["split"] == s for p in i["parts"]} for s in SMALL}
    assert indices == {"test": set(range(5)), "train": set(range(5, 45)), "valid": set(range(45, 50))}
    assert [sum(item["split"] == s for item in plan) for s in ("train", "valid", "test")] == [2000, 100, 200]
    assert {len(item["parts"]) for item in plan} == set(range(1, 8))


def test_a_held_out_speaker_is_in_the_test_set_and_nowhere_else():
    plan = FsddCorpus(held_out="lucas").plan(Path("audio"))
    speakers = {s: {item["speaker"] for item in plan if item["split"] == s} for s in SMALL}
    assert speakers["test"] == {"lucas"}
    assert speakers["train"] == speakers["valid"] == set(fsdd.SPEAKERS) - {"lucas"}
    assert all(f"_{item['speaker']}_" in part for item in plan for part in item["parts"])


def test_an_unknown_speaker_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'theo'"):
        FsddCorpus(held_out="teo")


@pytest.fixture(scope="module")
def archive(shared) -> Path:
    path = shared / "data" / "free-spoken-digit-dataset.tar.gz"
    if not path.exists():
        pytest.skip("no archive of the recordings")
    return path


def build(source, utterances=SMALL, **keys):
    node = {"_target_": "espnet3.data.corpora.fsdd.FsddCorpus", "source": str(source), "utterances": utterances, **keys}
    corpus.run({"data": {"builder": node}}, "data/fsdd/corpus.jsonl")
    return list(read_jsonl("data/fsdd/corpus.jsonl"))


def test_from_the_archive_or_its_folder_the_same_recordings(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = build(archive)
    assert len(records) == 30
    for record in records:
        info = soundfile.info(record["audio"])
        assert (info.samplerate, info.channels) == (8000, 1)
        assert info.duration == pytest.approx(record["duration"])
    # a second experiment takes what the first has unpacked
    assert not list(Path("data/downloads").glob("*.tar.gz"))
    assert build("data/downloads/fsdd") == records


def test_a_changed_recording_is_noticed(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(archive)
    folder = shutil.copytree("data/downloads/fsdd", "mine")
    sound = Path(folder, "recordings/3_theo_7.wav")
    sound.write_bytes(sound.read_bytes()[:-2] + b"\x01\x02")
    with pytest.raises(UserError, match="mine: wrong checksum of the recordings"):
        build("mine")
    sound.unlink()
    with pytest.raises(UserError, match="mine: 2999 recordings where 3000 belong"):
        build("mine")


def test_another_archive_is_noticed(spoken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open("other.tar.gz", "w:gz") as tar:
        tar.add(spoken[0]["audio"], "top/recordings/1_theo_0.wav")
    with pytest.raises(UserError, match="1 recordings where 3000 belong"):
        build("other.tar.gz")


@pytest.mark.parametrize("source", ["nowhere.tar.gz", None])
def test_no_archive_and_no_network_are_one_clear_line(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # nothing listens on port 9 of this machine
    keys = {"source": source, "url": "http://127.0.0.1:9/master.tar.gz"}
    expected = "nowhere.tar.gz: no such file" if source else r"cannot be fetched .* set data.builder.source=PATH"
    with pytest.raises(UserError, match=expected) as error:
        FsddCorpus(**keys).prepare(Path("audio"))
    assert "\n" not in str(error.value)
