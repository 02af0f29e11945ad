"""`snakemake --profile slurm` on a real SLURM gives the files that `--profile local` gives, whatever befalls its jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from product import TINY, Project, tiny_project

HYPOTHESES = "exp/tiny/decode/joint/test/hyp.jsonl"
CONFIG = TINY.replace("max_epochs: 2", "max_epochs: 8, checkpoint_steps: 1") + "execution: {accelerator: cpu}\n"


class Run:
    """A Snakemake beside the test."""

    def __init__(self, project: Project, name: str, profile: str = "slurm"):
        self.root, self.log = project.root, project.root / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            profile,
            "--latency-wait",
            "5",
            HYPOTHESES,
            "exp/tiny/train",
        ]
        # the weights are the same with the same number of threads
        command += ["--set-threads", "train=1", "--nocolor"]
        command += ["--slurm-espnet3-seconds-between-status-checks", "1"] if profile == "slurm" else ["--cores", "1"]
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=log)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def jobs(self, rule: str) -> list[str]:
        """The SLURM jobs of a rule that it sent, in order."""
        numbers = re.findall(rf"^Job (\d+): {rule}: ", self.text, re.MULTILINE)
        sent = re.findall(r"Job (\d+) has been submitted with SLURM jobid (\d+)", self.text)
        return [job for number, job in sent if number in numbers]


def process(root: Path, stage: str) -> int | None:
    """The process of a stage of this project."""
    for found in Path("/proc").glob("[0-9]*"):
        try:
            words = (found / "cmdline").read_bytes().decode().split("\0")
            if words[1:4] == ["-m", "espnet3", stage] and (found / "cwd").readlink() == root:
                return int(found.name)
        except OSError:
            continue
    return None


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def test_time_limit_killed_snakemake_and_dead_node_end_in_the_same_files(slurm, tmp_path, runs):
    """Training reaches its time limit and is sent again; Snakemake is killed meanwhile and started again; a node dies
    while it decodes. The training waits (SIGSTOP) for what is to befall it: no test needs a long one."""
    local = tiny_project(tmp_path / "local")
    (local.root / "config/tiny.yaml").write_text(CONFIG.lstrip())
    local.snakemake("exp/tiny/stats", "--cores", "1")
    shutil.copytree(local.root, tmp_path / "slurm", symlinks=True)
    project = Project(tmp_path / "slurm")
    runs.append(first := Run(project, "first"))
    runs.append(undisturbed := Run(local, "local", "local"))

    state = project.root / "exp/tiny/checkpoints"

    def training(*others: int) -> int | None:
        lease = next(state.glob("state-*/lease.json"), None)
        pid = json.loads(lease.read_text())["pid"] if lease and next(state.glob("state-*/resume.json"), None) else None
        return pid if pid not in others else None

    # the time limit
    pid = slurm.wait_for(training, 120, 0.02)
    os.kill(pid, signal.SIGSTOP)
    (job,) = first.jobs("train")
    slurm.command("scontrol", "update", f"JobId={job}", "EndTime=now")
    again = slurm.wait_for(lambda: training(pid), 120, 0.02)
    os.kill(again, signal.SIGSTOP)
    assert f"SLURM job {job} ended as TIMEOUT" in first.text and len(first.jobs("train")) == 2

    # Snakemake is killed; its training waits, and ends after the next one has begun
    first.process.kill()
    first.process.wait()
    runs.append(second := Run(project, "second"))
    slurm.wait_for(lambda: "has left SLURM jobs: waiting for" in second.text, 60)
    os.kill(again, signal.SIGCONT)

    # the node of a shard
    pid = slurm.wait_for(lambda: process(project.root, "decode"), 120, 0.05)
    os.kill(pid, signal.SIGSTOP)
    node = dict(w.split("=", 1) for w in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in w)[
        "SLURMD_NODENAME"
    ]
    slurm.control("kill-node", node)
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")  # spares the SlurmdTimeout
    try:
        assert second.process.wait(240) == 0, second.text[-4000:]
    finally:
        slurm.control("start-node", node)
    assert "ended as NODE_FAIL" in second.text and len(second.jobs("decode_shard")) > 2
    assert not second.jobs("train"), "it takes what the orphan has finished"
    assert not re.search("IncompleteFiles|unlock", second.text)

    assert undisturbed.process.wait(120) == 0, undisturbed.text[-4000:]
    results = []
    for root in (local.root, project.root):
        index = json.loads((root / "exp/tiny/checkpoints/checkpoints.json").read_text())
        results.append([index["state"], index["checkpoints"], (root / HYPOTHESES).read_bytes()])
    assert results[0] == results[1]
