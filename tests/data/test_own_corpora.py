"""One's own corpus: a JSONL file or Kaldi directories, through corpus and manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet3.errors import UserError
from espnet3.io import read_jsonl, write_jsonl
from espnet3.stages import corpus, manifest

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 0.0}


def build(kind: str, folder: Path, **keys) -> list[dict]:
    target = {"jsonl": "espnet3.data.corpora.jsonl.JsonlCorpus", "kaldi": "espnet3.data.corpora.kaldi.KaldiCorpus"}
    corpus.run({"data": {"builder": {"_target_": target[kind], **keys}}}, folder / "corpus.jsonl")
    return list(read_jsonl(folder / "corpus.jsonl"))


def cuts(folder: Path, split: str) -> list[dict]:
    output = folder / f"{split}.jsonl.gz"
    manifest.run({"data": LIMITS}, folder / "corpus.jsonl", split, output, folder / "rejected.jsonl")
    return list(read_jsonl(output))


@pytest.fixture
def kaldi(spoken, tmp_path):
    """A Kaldi directory of the spoken utterances."""
    folder = tmp_path / "test"
    folder.mkdir()
    for name, key in (("wav.scp", "audio"), ("text", "text"), ("utt2spk", "speaker")):
        (folder / name).write_text("".join(f"{r['id']} {r[key]}\n" for r in spoken))
    return folder


def test_jsonl_and_kaldi_give_the_same_manifest(spoken, kaldi, tmp_path):
    keys = ("id", "audio", "text", "speaker", "split")
    write_jsonl(tmp_path / "mine.jsonl", ({key: r[key] for key in keys} for r in spoken))
    build("jsonl", tmp_path / "a", path=str(tmp_path / "mine.jsonl"))
    build("kaldi", tmp_path / "b", dirs={"test": str(kaldi)})
    one, two = cuts(tmp_path / "a", "test"), cuts(tmp_path / "b", "test")
    assert one == two
    assert [cut["supervisions"][0]["text"] for cut in one] == [r["text"] for r in spoken]


def test_relative_paths_start_at_the_jsonl_file(spoken, tmp_path, monkeypatch):
    source = Path(spoken[0]["audio"])
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(source.read_bytes())
    write_jsonl(tmp_path / "mine.jsonl", [{"id": 7, "audio": "wavs/a.wav", "text": "one", "split": "test"}])
    monkeypatch.chdir(tmp_path.parent)
    (record,) = build("jsonl", tmp_path / "out", path=f"{tmp_path.name}/mine.jsonl")
    assert (record["id"], record["audio"]) == ("7", f"{tmp_path.name}/wavs/a.wav")
    assert cuts(tmp_path / "out", "test")[0]["id"] == "7"


def test_utterances_without_a_split_are_drawn_and_stay_where_they_are(tmp_path):
    lines = [{"id": f"u{i}", "audio": f"{i}.wav", "text": "x"} for i in range(2000)]
    splits = []
    for count in (1000, 2000):
        write_jsonl(tmp_path / "mine.jsonl", lines[:count])
        splits.append(
            {r["id"]: r["split"] for r in build("jsonl", tmp_path / "out", path=str(tmp_path / "mine.jsonl"))}
        )
    assert all(splits[1][uid] == split for uid, split in splits[0].items())
    shares = [list(splits[1].values()).count(split) / 2000 for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.015)


def test_segments_are_parts_of_their_recordings(kaldi, spoken, tmp_path):
    first = spoken[0]["id"]
    (kaldi / "segments").write_text(f"{first}-a {first} 0.10 0.60\n{first}-b {first} 0.60 -1\n")
    (kaldi / "text").write_text(f"{first}-a one\n{first}-b deux  mots é\n")
    (kaldi / "utt2spk").unlink()
    build("kaldi", tmp_path / "out", dirs={"test": str(kaldi)})
    one, two = cuts(tmp_path / "out", "test")
    assert (one["start"], one["duration"]) == (0.1, 0.5)
    assert two["start"] + two["duration"] == pytest.approx(spoken[0]["duration"])
    assert two["supervisions"][0]["text"] == "deux mots é"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wav.scp", "a sox in.wav -t wav - |\n", "a is a command"),
        ("wav.scp", "a feats.ark\n", "a is a whole ark"),
        ("wav.scp", "a\n", "a has no path"),
        ("wav.scp", "a x.wav\na y.wav\n", "wav.scp:2: 'a' is there twice"),
        ("text", b"a caf\xe9\n", "text: not UTF-8"),
        ("segments", "a nobody 0 1\n", "'nobody', which wav.scp lacks"),
        ("segments", "a test-00000 0\n", "is not '<recording> <start> <end>'"),
    ],
)
def test_what_is_wrong_in_a_kaldi_directory_is_named(kaldi, tmp_path, name, content, message):
    (kaldi / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        build("kaldi", tmp_path / "out", dirs={"test": str(kaldi)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"}\n', "mine.jsonl:1: the line has no 'audio'"),
        ('{"id": "a", "audio": "a.wav"}\n{"id": \n', "mine.jsonl:2: not valid JSON"),
        ("", "the source has no recordings"),
        ('{"id": "a", "audio": "a.wav"}\n' * 2, "two recordings have the id 'a'"),
    ],
)
def test_what_is_wrong_in_a_jsonl_file_is_named(tmp_path, content, message):
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        build("jsonl", tmp_path / "out", path=str(tmp_path / "mine.jsonl"))


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        build("jsonl", tmp_path, path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UserError, match=r"nowhere: no such folder \(data.builder.dirs.train\)"):
        build("kaldi", tmp_path, dirs={"train": str(tmp_path / "nowhere")})
