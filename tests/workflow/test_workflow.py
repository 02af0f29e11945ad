"""One tiny experiment, really run: corpus, training, decoding, score, report. What edits rebuild: tests/rebuild."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from product import Project

SHARDS = 2 * 2 * 2  # decodings, test sets, shards


@pytest.fixture
def edited(finished: Project, tmp_path) -> Project:
    """A copy of the finished experiment, provenance included, for one test to edit."""
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def replace(project: Project, path: str, old: str, new: str) -> None:
    file = project.root / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_it_ends_in_a_word_error_rate(finished: Project):
    for test_set in ("test", "test_voices"):
        for decoding in ("joint", "greedy"):
            metrics = json.loads((finished.root / f"exp/tiny/score/{decoding}/{test_set}/metrics.json").read_text())
            assert metrics["utterances"] == 6 and metrics["words"] > 6
            assert 0 <= metrics["wer"] <= 2 and 0 <= metrics["cer"] <= 2
            hypotheses = (finished.root / f"exp/tiny/decode/{decoding}/{test_set}/hyp.jsonl").read_text().splitlines()
            assert [json.loads(line)["id"] for line in hypotheses] == [f"{test_set}-{i:05d}" for i in range(6)]
    page = (finished.root / "exp/tiny/report/index.html").read_text()
    assert "tiny" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (finished.root / "exp/tiny/pack/model.safetensors").stat().st_size > 10_000


def test_every_job_has_a_log_and_a_cost_table(finished: Project):
    for job in ("train", "stats", "average.valid.loss.2", "decode.joint.test.1-of-2", "score.joint.test", "report"):
        assert (finished.root / f"exp/tiny/log/{job}.log").exists()
        assert (finished.root / f"exp/tiny/benchmark/{job}.tsv").read_text().startswith("s\t")


@pytest.mark.parametrize("target", ["exp/tiny", "exp/tiny/", "exp/tiny/decode", "exp/tiny/decode/", "exp/tiny/report"])
def test_nothing_to_be_done_after_a_finished_run(finished: Project, target):
    assert finished.jobs(target) == {}


def test_an_override_is_an_edit(finished: Project):
    jobs = finished.jobs("exp/tiny/decode", "--config", "overrides=decode.beam=3")
    assert jobs == {"conf": 1, "decode_shard": SHARDS // 2, "hypotheses": 2, "exp/tiny/decode": 1}


def test_a_language_model_joins_a_finished_experiment(edited: Project):
    replace(edited, "config/tiny.yaml", "  - _self_\n", "  - lm: small\n  - _self_\n")
    with (edited.root / "config/tiny.yaml").open("a") as config:
        config.write("lm: {model: {size: 16, heads: 2, hidden: 32, blocks: 1}, trainer: {max_epochs: 2}}\n")
    replace(edited, "config/tiny.yaml", "decode: {", "decode: {variants: {fused: {lm_weight: 0.3}}, ")
    jobs = edited.jobs("exp/tiny/pack")
    assert jobs["lm"] == 1 and jobs["decode_shard"] == SHARDS // 2 and not {"train", "stats", "average"} & jobs.keys()
    edited.snakemake("exp/tiny/pack", "--cores", "2")
    for test_set in ("test", "test_voices"):
        lines = (edited.root / f"exp/tiny/decode/fused/{test_set}/hyp.jsonl").read_text().splitlines()
        assert len(lines) == 6 and all("lm" in json.loads(line) for line in lines)
    assert (edited.root / "exp/tiny/pack/lm.safetensors").read_bytes() == (
        edited.root / "exp/tiny/lm/lm.safetensors"
    ).read_bytes()
    assert edited.jobs("exp/tiny/pack") == {}
    # what trains the language model touches the decodings that use it, and no recogniser
    replace(edited, "config/tiny.yaml", "max_epochs: 2}}", "max_epochs: 3}}")
    jobs = edited.jobs("exp/tiny/pack")
    assert {"lm", "decode_shard", "pack"} <= jobs.keys() and jobs["decode_shard"] == SHARDS // 2 and "train" not in jobs


def test_a_misspelt_key_is_one_clear_line(edited: Project):
    replace(edited, "config/tiny.yaml", "beam: 2", "beem: 2")
    done = edited.snakemake("-n", "exp/tiny/decode", check=False)
    assert done.returncode != 0
    assert "config/tiny.yaml: unknown key 'decode.beem'; did you mean 'beam'?" in done.stdout
    assert "Traceback" not in done.stdout


def test_two_experiments_may_not_write_one_corpus_differently(edited: Project):
    text = (edited.root / "config/tiny.yaml").read_text()
    (edited.root / "config/other.yaml").write_text(text.replace("hours: 0.03", "hours: 0.04"))
    done = edited.snakemake("-n", "exp/tiny/decode", check=False)
    assert done.returncode != 0 and "both write data/tiny" in done.stdout and "Traceback" not in done.stdout


def test_lint_is_clean(repository):
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
