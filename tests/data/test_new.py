"""``python -m espnet3 new``: what it says of a corpus, the experiment that it writes, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.config.compose import load_config
from espnet3.data.convert import convert
from espnet3.data.new import create
from espnet3.errors import UserError
from espnet3.io import read_jsonl, write_jsonl
from espnet3.stages import corpus, manifest


@pytest.fixture
def config_dir(repository, tmp_path) -> Path:
    return Path(shutil.copytree(repository / "config", tmp_path / "config"))


def split_records(spoken: list[dict], splits=("train", "dev", "test")) -> list[dict]:
    """The spoken utterances, dealt to splits."""
    keys = ("id", "audio", "text", "speaker")
    return [{key: r[key] for key in keys} | {"split": splits[i % len(splits)]} for i, r in enumerate(spoken)]


@pytest.mark.parametrize(("form", "kind"), [("kaldi", "kaldi"), ("tsv", "tsv"), ("lhotse", "lhotse"), ("hf", "hf")])
def test_the_experiment_that_is_written_runs_as_it_is(spoken, config_dir, tmp_path, form, kind):
    write_jsonl(tmp_path / "all.jsonl", split_records(spoken))
    convert(("jsonl", str(tmp_path / "all.jsonl")), form, str(tmp_path / "corpus"))
    told = create("mine", kind, str(tmp_path / "corpus"), config_dir=str(config_dir))
    assert "24 utterances" in told and "16000 Hz" in told and "the splits are the corpus's own" in told
    data = load_config("mine", config_dir=config_dir)["data"]
    assert (data["train"], data["test"], data["sampling_rate"]) == ("train", ["test"], 16000)
    corpus.run({"data": data}, tmp_path / "out" / "corpus.jsonl")
    for split in (data["train"], data["valid"], *data["test"]):
        output = tmp_path / "out" / f"{split}.jsonl.gz"
        manifest.run({"data": data}, tmp_path / "out" / "corpus.jsonl", split, output, tmp_path / "out" / "r.jsonl")
        assert len(list(read_jsonl(output))) == 8


def test_from_the_command_line_through_the_workflow(spoken, project, tmp_path):
    # twelve speakers, so that validation can have one of its own
    records = [r | {"speaker": f"s{i % 12}", "split": "train"} for i, r in enumerate(split_records(spoken, ("train",)))]
    write_jsonl(tmp_path / "mine.jsonl", records)
    new = [sys.executable, "-m", "espnet3", "new", "mine", "--from", "jsonl", str(tmp_path / "mine.jsonl")]
    told = project.run(new).stdout
    assert "valid and test drawn from 'train' (seed 0), with speakers of their own (12 in all)" in told
    assert "look at: less than ten minutes to train on" in told
    for path in (project.root / "config").glob("*.yaml"):
        if path.stem != "mine":
            path.unlink()
    project.snakemake("exp/mine/manifests", "-c1")
    speakers = [
        {cut["supervisions"][0]["speaker"] for cut in read_jsonl(project.root / f"data/mine/{split}.jsonl.gz")}
        for split in ("train", "valid", "test")
    ]
    assert [len(names) for names in speakers] == [10, 1, 1] and len(set.union(*speakers)) == 12
    again = project.run(new, check=False)
    assert again.returncode == 2 and "is there already" in again.stdout and "Traceback" not in again.stdout


def test_what_looks_wrong_is_said(spoken, config_dir, tmp_path):
    records = split_records(spoken)
    records[0]["text"] = "Hello, World!"
    records[3]["text"] = records[4]["text"]
    records[6]["audio"] = records[9]["audio"]
    records[12]["audio"] = "absent.wav"
    records[15]["text"] = "far too many words for so short a recording " * 8
    soundfile.write(tmp_path / "slow.wav", np.random.default_rng(0).normal(0, 0.1, 22050), 11025)
    records[18]["audio"] = str(tmp_path / "slow.wav")
    write_jsonl(tmp_path / "all.jsonl", records)
    told = create("mine", "jsonl", str(tmp_path / "all.jsonl"), config_dir=str(config_dir), dry_run=True)
    for sign in (
        "1 of 24 unfit: missing file", "mixed sampling rates: 16000 Hz (22), 11025 Hz (1)", "1 recordings are there more",
        "upper and lower case both", "punctuation in the transcripts (!,)", " too long for their audio, such as test-00015",
    ):  # fmt: skip
        assert sign in told, sign
    assert not (config_dir / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("asr", "all.jsonl", r"asr.yaml: is there already"),
        ("commands", "all.jsonl", r"commands.yaml: is there already"),
        ("a/b", "all.jsonl", r"letters, digits"),
        ("mine", "nowhere", r"no such file or folder"),
        ("mine", "bad.jsonl", r"no usable utterance: x .*missing file"),
        ("mine", "one.jsonl", r"too few to draw valid and test from"),
    ],
)
def test_what_is_refused(spoken, config_dir, tmp_path, name, source, message):
    write_jsonl(tmp_path / "all.jsonl", split_records(spoken))
    write_jsonl(tmp_path / "bad.jsonl", [{"id": "x", "audio": "x.wav", "text": "x", "split": s} for s in ("train",)])
    one = [{k: v for k, v in split_records(spoken)[0].items() if k != "split"}]
    write_jsonl(tmp_path / "one.jsonl", one)
    with pytest.raises(UserError, match=message):
        create(name, "jsonl", str(tmp_path / source), config_dir=str(config_dir))
