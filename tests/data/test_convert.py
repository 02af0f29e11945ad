"""``python -m espnet3 convert``: from format to format and back, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.__main__ import main
from espnet3.data.convert import convert
from espnet3.data.corpora.base import build_corpus
from espnet3.data.corpora.guess import builder_node
from espnet3.errors import UserError
from espnet3.io import read_jsonl, write_jsonl

# each format is once the source and once the target of another one
CHAIN = [("jsonl", "jsonl"), ("kaldi", "kaldi"), ("hf", "hf"), ("tsv", "tsv"), ("hf-disk", "hf"), ("lhotse", "lhotse")]
CHAIN += [("shar", "lhotse"), ("jsonl", "jsonl")]


def listing(kind: str, path: Path, folder: Path) -> dict[str, tuple]:
    """``{id: (split, text, speaker, samples)}`` of a corpus."""
    build_corpus(builder_node(kind, str(path)) | {"fractions": {}}, folder / "corpus.jsonl")
    found = {}
    for record in read_jsonl(folder / "corpus.jsonl"):
        samples, rate = soundfile.read(record["audio"], dtype="int16")
        start = round(record.get("start", 0.0) * rate)
        stop = start + round(record["duration"] * rate) if "start" in record else None
        samples = samples[start:stop]
        if samples.ndim > 1:
            samples = samples[:, int(record["channel"])]
        found[record["id"]] = record["split"], record["text"], record["speaker"], rate, samples.tobytes()
    return found


@pytest.fixture
def mixed(spoken, tmp_path) -> Path:
    """Whole recordings, parts of one, and a channel of another, in three splits; the ids are in Kaldi's order."""
    samples = soundfile.read(spoken[0]["audio"], dtype="int16")[0]
    soundfile.write(tmp_path / "two channels.wav", np.stack([samples, samples // 2], axis=1), 16000)
    soundfile.write(tmp_path / "slow.flac", samples, 8000)
    own = {"speaker": "anna", "language": "de"}
    lines = [
        {"id": "a", "audio": spoken[1]["audio"], "text": "eins", "split": "train", **own},
        {
            "id": "b",
            "audio": spoken[2]["audio"],
            "text": "zwei",
            "split": "train",
            "start": 0.1,
            "duration": 0.4,
            **own,
        },
        {
            "id": "c",
            "audio": spoken[2]["audio"],
            "text": "drei",
            "split": "train",
            "start": 0.5,
            "duration": 0.4,
            **own,
        },
        {"id": "d", "audio": str(tmp_path / "two channels.wav"), "text": "vier", "split": "valid", "channel": 1, **own},
        {"id": "e", "audio": str(tmp_path / "slow.flac"), "text": "fünf 六", "split": "test_voices", **own},
    ]
    write_jsonl(tmp_path / "mixed.jsonl", lines)
    return tmp_path / "mixed.jsonl"


def test_through_every_format_and_back(mixed, tmp_path):
    expected = listing("jsonl", mixed, tmp_path / "listed")
    assert [len(value[4]) // 2 for value in expected.values()][1:3] == [6400, 6400]
    source, kind = mixed, "jsonl"
    for number, (form, reader) in enumerate(CHAIN):
        place = tmp_path / f"{number}-{form}"
        assert convert((kind, str(source)), form, str(place)) == {"train": 3, "valid": 1, "test_voices": 1}, form
        assert listing(reader, place, tmp_path / f"{number}-listed") == expected, form
        source, kind = place, reader


@pytest.mark.parametrize("form", ["kaldi", "jsonl", "tsv", "lhotse"])
def test_copies_make_the_folder_whole_in_itself(mixed, tmp_path, form):
    expected = listing("jsonl", mixed, tmp_path / "listed")
    convert(("jsonl", str(mixed)), form, str(tmp_path / "out"), copy=True)
    build_corpus(builder_node(form, str(tmp_path / "out")) | {"fractions": {}}, tmp_path / "again/corpus.jsonl")
    records = list(read_jsonl(tmp_path / "again/corpus.jsonl"))
    assert all(str(record["audio"]).startswith(str(tmp_path / "out/audio")) for record in records)
    for record in records:
        samples, rate = soundfile.read(record["audio"], dtype="int16")
        assert (rate, samples.tobytes()) == expected[record["id"]][3:], record["id"]


def test_kaldi_is_sorted_as_kaldi_sorts(mixed, tmp_path):
    convert(("jsonl", str(mixed)), "kaldi", str(tmp_path / "out"))
    for name in ("wav.scp", "text", "utt2spk", "spk2utt", "segments"):
        lines = (tmp_path / "out/train" / name).read_bytes().splitlines()
        assert lines == sorted(lines)
    assert (tmp_path / "out/train/spk2utt").read_text() == "anna a b c\n"


def test_from_the_command_line_what_is_unfit_is_listed(mixed, tmp_path, caplog):
    lines = [*read_jsonl(mixed), {"id": "f", "audio": "nowhere.wav", "text": "x", "split": "train"}]
    write_jsonl(tmp_path / "more.jsonl", lines)
    arguments = ["convert", "--from", "jsonl", str(tmp_path / "more.jsonl"), "--to", "tsv", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "rejected.jsonl", "test_voices.tsv", "train.tsv", "valid.tsv",
    ]  # fmt: skip
    (rejected,) = read_jsonl(tmp_path / "out/rejected.jsonl")
    assert rejected["id"] == "f" and rejected["reason"] == "missing file"
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        (("jsonl", "mixed.jsonl"), "kalid", r"--to: there is no format 'kalid'; did you mean 'kaldi'"),
        (("jsno", "mixed.jsonl"), "kaldi", r"--from: there is no format 'jsno'; did you mean 'jsonl'"),
        (("jsonl", "nowhere.jsonl"), "kaldi", r"no such file or folder"),
        (("kaldi", "."), "jsonl", r"no Kaldi directory"),
        (("jsonl", "bad.jsonl"), "kaldi", r"nothing to write: x .*missing file"),
        (("jsonl", "pipe.jsonl"), "kaldi", r"would mean something else in a wav.scp"),
    ],
)
def test_what_is_refused(mixed, tmp_path, source, form, message):
    write_jsonl(tmp_path / "bad.jsonl", [{"id": "x", "audio": "x.wav", "text": "x"}])
    (tmp_path / "rm -rf |").write_bytes((tmp_path / "slow.flac").read_bytes())
    write_jsonl(tmp_path / "pipe.jsonl", [{"id": "x", "audio": "rm -rf |", "text": "x"}])
    with pytest.raises(UserError, match=message):
        convert((source[0], str(tmp_path / source[1])), form, str(tmp_path / "out"))
