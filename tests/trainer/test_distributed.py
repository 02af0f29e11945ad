"""Training in two processes on one machine: in step, exact, and the whole validation set once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import weights

from espnet3.io import read_json

SCRIPT = Path(__file__).with_name("tiny_ddp.py")


def train(folder: Path, epochs: int, *options: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(SCRIPT.parents[2]), *sys.path[:1]])
    # what a job of SLURM's would find
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}
    command = [sys.executable, str(SCRIPT), str(folder), str(epochs), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = train(folder, 2, "--devices", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ranks(folder: Path) -> list[dict]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def history(folder: Path) -> list[dict]:
    return read_json(folder / "checkpoints.json")["history"]


def test_processes_agree_and_share_the_data(two):
    first, second = ranks(two)
    assert first["world"] == 2
    assert first["weights"] == second["weights"] and len(set(first["weights"])) == 2
    ids = {f"u{i:03d}" for i in range(45)}
    assert set(first["train"]) | set(second["train"]) == ids and len(first["train"]) + len(second["train"]) == 90
    assert sorted(first["valid"] + second["valid"]) == sorted([f"u{i:03d}" for i in range(8)] * 2)
    assert len(first["valid"]) != len(second["valid"]), "the case in which a process waits for the other"


def test_it_is_the_training_of_one_process_with_the_same_batches(two, tmp_path):
    done = train(tmp_path, 2, "--batch", "12")
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(history(two), history(tmp_path), strict=True):
        assert ours["step"] == theirs["step"]
        losses = [{k: v for k, v in r["metrics"].items() if "loss" in k} for r in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_a_stopped_training_goes_on_exactly(two, tmp_path):
    done = train(tmp_path, 2, "--devices", "2", "--signal-at", "6")
    assert done.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), done.stderr[-3000:]
    state = next(tmp_path.glob("state-*"))
    assert read_json(state / "resume.json")["checkpoints"][0]["step"] == 6
    assert not (state / "lease.json").exists()
    done = train(tmp_path, 2, "--devices", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(tmp_path) == weights(two)
    assert [r["metrics"] for r in history(tmp_path)] == [r["metrics"] for r in history(two)]
    log = (state / "train.log").read_text()
    assert log.count("going on from epoch 2") == 1 and log.count("epoch 2/2 done") == 1
