"""A user's mistake ends in one clear line that says what and where, through the real Snakemake; never in a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from product import DEFAULTS, Project

OWN = (
    DEFAULTS
    + """\
data:
  corpus: own
  test: [test]
  max_rejected: {limit}
"""
)


def write_own(project: Project, limit: float) -> list[dict]:
    """An experiment ``own`` with ten recordings, given as JSONL; the caller may spoil some and writes the lines."""
    (project.root / "config/data/own.yaml").write_text(
        "corpus: own\nbuilder: {_target_: espnet3.data.corpora.jsonl.JsonlCorpus, path: own/corpus.jsonl}\n"
        "train: train\nvalid: valid\ntest: [test]\nsampling_rate: 16000\nmin_duration: 0.1\nmax_duration: 30.0\n"
        f"max_rejected: {limit}\n"
    )
    text = OWN.replace("{limit}", str(limit)).replace("data: commands", "data: own")
    (project.root / "config/own.yaml").write_text(text.lstrip())
    (project.root / "own").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(10):
        soundfile.write(project.root / f"own/{number}.wav", rng.normal(0, 0.1, 16000).astype("float32"), 16000)
        lines.append({"id": f"u{number}", "audio": f"{number}.wav", "text": "hello you", "split": "train"})
    return lines


def write_lines(project: Project, lines: list[dict]) -> None:
    (project.root / "own/corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def spoil(project: Project, lines: list[dict]) -> None:
    """A truncated file and an empty transcript."""
    wav = project.root / "own/3.wav"
    wav.write_bytes(wav.read_bytes()[:10000])
    lines[7]["text"] = "  "
    write_lines(project, lines)


def test_a_truncated_wav_and_an_empty_transcript_are_left_out_and_listed(project: Project):
    spoil(project, write_own(project, limit=0.5))
    project.snakemake("data/own/train.jsonl.gz")
    rejected = [json.loads(line) for line in (project.root / "data/own/train.rejected.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rejected] == ["u3", "u7"]
    assert "3.wav" in rejected[0]["audio"] and "truncated" in rejected[0]["reason"]
    assert "transcript" in rejected[1]["reason"]


def test_too_many_of_them_end_the_job_with_one_line(project: Project):
    spoil(project, write_own(project, limit=0.01))
    done = project.snakemake("data/own/train.jsonl.gz", "--retries", "0", check=False)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    said = [line for line in done.stdout.splitlines() if line.startswith("espnet3: ")]
    assert len(set(said)) == 1 and "max_rejected" in said[0] and "rejected" in said[0]


@pytest.mark.parametrize("source", ["nowhere.tar.gz", "Snakefile"])
def test_a_missing_or_wrong_archive(project: Project, source):
    done = project.snakemake(
        "exp/fsdd/manifests", "--retries", "0", "--config", f"overrides=data.builder.source={source}", check=False
    )
    assert done.returncode != 0 and "Traceback" not in done.stdout
    said = {line for line in done.stdout.splitlines() if line.startswith("espnet3: ")}
    assert len(said) == 1 and source in said.pop()
    # the job failed; it did not end well and forget its files
    assert "completed successfully" not in done.stdout and "Waiting at most" not in done.stdout


def test_an_unknown_experiment_or_stage_is_named(project: Project):
    done = project.snakemake("-n", "exp/ars/decode", check=False)
    assert done.returncode != 0 and "exp/ars/decode" in done.stdout and "Traceback" not in done.stdout
