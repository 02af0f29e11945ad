"""One tiny experiment, really run: corpus, training, decoding, score, report; then edits, and what they rebuild."""

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


def test_a_comment_key_order_or_spelling_rebuilds_nothing(edited: Project):
    replace(edited, "config/tiny.yaml", "decode: {beam: 2, shards: 2,", "# a comment\ndecode: {shards: 2, beam: 2,")
    replace(edited, "config/trainer/small.yaml", "optimizer:", "# optimiser\noptimizer:")
    assert edited.jobs("exp/tiny") == {}


def test_an_edit_of_the_beam_rebuilds_decoding_and_score_of_that_decoding_only(edited: Project):
    replace(edited, "config/tiny.yaml", "beam: 2", "beam: 3")
    why = edited.run([sys.executable, "-m", "espnet3", "why", "exp/tiny/decode"]).stdout
    assert "decode.beam: 2 → 3" in why
    expected = {"conf": 1, "decode_shard": SHARDS // 2, "hypotheses": 2, "exp/tiny/decode": 1}
    assert edited.jobs("exp/tiny/decode") == expected
    edited.snakemake("exp/tiny/score")
    assert edited.jobs("exp/tiny/score") == {}


def test_an_override_is_an_edit(finished: Project):
    jobs = finished.jobs("exp/tiny/decode", "--config", "overrides=decode.beam=3")
    assert jobs == {"conf": 1, "decode_shard": SHARDS // 2, "hypotheses": 2, "exp/tiny/decode": 1}


def test_how_a_job_runs_rebuilds_nothing(finished: Project):
    assert finished.jobs("exp/tiny", "--config", "overrides=parallel.n_workers=2 execution.num_workers=1") == {}


def test_search_code_rebuilds_decoding_but_a_docstring_does_not(edited: Project):
    search = next((edited.root / "espnet3/inference/search").glob("*.py"))
    search.write_text("# a comment\n" + search.read_text())
    assert edited.jobs("exp/tiny/score") == {}
    search.write_text(search.read_text() + "\n_MARK = 1\n")
    jobs = edited.jobs("exp/tiny/decode")
    assert jobs["decode_shard"] == SHARDS and "train" not in jobs and "average" not in jobs


def test_training_code_is_reported_not_acted_upon(edited: Project):
    model = edited.root / "espnet3/trainer/trainer.py"
    model.write_text(model.read_text() + "\n_MARK = 1\n")
    out = edited.snakemake("-n", "exp/tiny/train").stdout
    assert "Nothing to be done" in out
    assert "the training code of exp/tiny has changed" in out and "espnet3.trainer.trainer" in out
    assert edited.jobs("exp/tiny/train", "--config", "retrain=true")["train"] == 1


def test_deleted_files_come_back(edited: Project):
    (edited.root / "exp/tiny/decode/joint/test/shard-1-of-2.jsonl").unlink()
    before = (edited.root / "exp/tiny/decode/joint/test/hyp.jsonl").read_bytes()
    jobs = edited.jobs("exp/tiny/decode")
    assert jobs["decode_shard"] == 1 and "train" not in jobs
    edited.snakemake("exp/tiny/decode")
    assert (edited.root / "exp/tiny/decode/joint/test/hyp.jsonl").read_bytes() == before


def test_another_number_of_shards_gives_the_same_hypotheses(edited: Project):
    before = (edited.root / "exp/tiny/decode/joint/test/hyp.jsonl").read_bytes()
    edited.snakemake("exp/tiny/decode", "--config", "overrides=decode.shards=3")
    assert (edited.root / "exp/tiny/decode/joint/test/hyp.jsonl").read_bytes() == before


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
