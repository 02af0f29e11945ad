"""No interruption changes the result, whatever it is and wherever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SignalAt, make_trainer, weights

from espnet3.io import read_json


def test_sigkill_within_an_epoch_gives_the_same_weights(uninterrupted, tmp_path):
    script = str(Path(__file__).parent / "tiny.py")
    done = subprocess.run([sys.executable, script, str(tmp_path), "3", "--kill-at", "8"], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not (tmp_path / "checkpoints.json").exists()
    state = next(tmp_path.glob("state-*"))
    newest = read_json(state / "resume.json")["checkpoints"][0]
    assert newest["step"] == 6 and newest["batch"] > 0, "the kill was meant to come within an epoch"
    make_trainer(tmp_path, 3).fit()
    assert weights(tmp_path) == weights(uninterrupted)
    ours, theirs = (read_json(folder / "checkpoints.json")["history"] for folder in (tmp_path, uninterrupted))
    assert [(r["step"], r["metrics"]) for r in ours] == [(r["step"], r["metrics"]) for r in theirs]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_at_once_and_the_next_run_goes_on(uninterrupted, tmp_path, signum):
    before = signal.getsignal(signum)
    first = make_trainer(tmp_path, 3, checkpoint_steps=None)
    first.extra_callbacks.append(SignalAt(7, signum))
    with pytest.raises(SystemExit) as stopped:
        first.fit()
    assert stopped.value.code == 128 + signum
    assert signal.getsignal(signum) == before
    state = next(tmp_path.glob("state-*"))
    # the signal arrives between two steps: no step is lost
    assert read_json(state / "resume.json")["checkpoints"][0]["step"] in (7, 8)
    assert not (state / "lease.json").exists()
    make_trainer(tmp_path, 3, checkpoint_steps=None).fit()
    assert weights(tmp_path) == weights(uninterrupted)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_stop_at_the_end_of_an_epoch_loses_neither_validation_nor_a_step(uninterrupted, tmp_path, offset):
    last = read_json(uninterrupted / "checkpoints.json")["history"][0]["step"]
    first = make_trainer(tmp_path, 3, checkpoint_steps=1)
    first.extra_callbacks.append(SignalAt(last + offset, signal.SIGTERM))
    with pytest.raises(SystemExit):
        first.fit()
    make_trainer(tmp_path, 3, checkpoint_steps=1).fit()
    assert weights(tmp_path) == weights(uninterrupted)
    ours, theirs = (read_json(folder / "checkpoints.json")["history"] for folder in (tmp_path, uninterrupted))
    assert [r["metrics"] for r in ours] == [r["metrics"] for r in theirs]


def test_a_larger_budget_goes_on_and_a_smaller_one_is_found_again(uninterrupted, tmp_path):
    make_trainer(tmp_path, 1).fit()
    assert set(weights(tmp_path)) == {1}
    make_trainer(tmp_path, 3).fit()
    assert weights(tmp_path) == weights(uninterrupted)
    assert len(list(tmp_path.glob("state-*"))) == 1
    state = next(tmp_path.glob("state-*"))
    times = {path: path.stat().st_mtime_ns for path in state.glob("*.ckpt")}
    index = make_trainer(tmp_path, 2).fit()
    assert [c["epoch"] for c in index["checkpoints"]] == [1, 2] and len(index["history"]) == 2
    assert {path: path.stat().st_mtime_ns for path in state.glob("*.ckpt")} == times, "nothing was to be trained"


def test_a_finished_training_is_published_again_without_training(uninterrupted, tmp_path):
    make_trainer(tmp_path, 2).fit()
    before = weights(tmp_path)
    # what Snakemake does to the outputs of a job that it runs again
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "checkpoints.json").unlink()
    again = make_trainer(tmp_path, 2)
    again.extra_callbacks.append(SignalAt(1, signal.SIGKILL))
    again.fit()
    assert weights(tmp_path) == before and (tmp_path / "last.ckpt").exists()


def test_another_identity_starts_afresh_beside_it(tmp_path):
    make_trainer(tmp_path, 1).fit()
    other = make_trainer(tmp_path, 1)
    other.config["optimizer"]["lr"] = 1e-3
    other.fit()
    assert len(list(tmp_path.glob("state-*"))) == 2


def test_patience_is_a_budget(tmp_path):
    stopped = make_trainer(tmp_path, 6, patience=1)
    stopped.criteria = [["valid/loss", 2, "max"]]
    index = stopped.fit()
    assert len(index["history"]) == 2
    longer = make_trainer(tmp_path, 3)
    assert len(longer.fit()["history"]) == 3
