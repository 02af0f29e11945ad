"""Snakemake killed in the middle and started again at once: no unlock by hand, no IncompleteFilesException, no orphan."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from product import TINY, Project, tiny_project

HYPOTHESES = "exp/tiny/decode/joint/test/hyp.jsonl"
CONFIG = TINY.replace("max_epochs: 2", "max_epochs: 3, checkpoint_steps: 1") + (
    "dataloader: {train: {sampler: {max_duration: 15.0}}}\nexecution: {accelerator: cpu}\n"
)
PATIENCE = (
    900  # each checkpoint is synchronised: where the disk is writing gigabytes of others', a save takes half a minute
)


class Run:
    """A Snakemake in a process group of its own, as a shell starts it."""

    def __init__(self, project: Project):
        self.root, self.log = project.root, project.root / "run.log"
        self.before = self.trace()
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "local",
            "--cores",
            "1",
            "--retries",
            "0",
            HYPOTHESES,
        ]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def trace(self) -> list[int]:
        """When a checkpoint, or a shard in the making, was last written."""
        return [path.stat().st_mtime_ns for path in self.root.glob("exp/tiny/checkpoints/state-*/resume.json")]

    def waits_for(self, what: Callable[[], object]) -> object:
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                ended = self.process.poll()
                self.process.kill()
                raise AssertionError(f"Snakemake's status: {ended}\n{self.log.read_text()[-4000:]}\n{jobs(self.root)}")
            time.sleep(0.01)
        return found

    def trains(self) -> int | None:
        """The process that trains, once it has saved a checkpoint."""
        try:
            lease = next(self.root.glob("exp/tiny/checkpoints/state-*/lease.json")).read_text()
        except (StopIteration, FileNotFoundError):
            return None
        return json.loads(lease)["pid"] if self.trace() != self.before else None

    def decodes(self) -> int | None:
        """The process that decodes."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                if words[1:4] == ["-m", "espnet3", "decode"] and (process / "cwd").readlink() == self.root:
                    return int(process.name)
            except OSError:
                continue
        return None

    def writes_a_shard(self) -> int | None:
        """The process that decodes, once it has begun its shard."""
        return self.decodes() if next(self.root.glob("exp/tiny/decode/**/*.partial"), None) else None

    def kill(self, number: int) -> None:
        """SIGKILL to Snakemake alone; other signals to the group, as Ctrl-C and a service manager send them."""
        (os.kill if number == signal.SIGKILL else os.killpg)(self.process.pid, number)
        assert self.process.wait(PATIENCE) != 0

    def ends(self) -> str:
        try:
            assert self.process.wait(PATIENCE) == 0, self.log.read_text()[-4000:]
        finally:
            self.process.kill()
        return self.log.read_text()


def jobs(root: Path) -> str:
    """The processes of *root*: their commands, states, and what they wait for."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == root:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                found.append(f"{process.name} {state} {(process / 'wchan').read_text()} {' '.join(words)[:120]}")
        except OSError:
            continue
    return "\n".join(found)


def test_killed_in_training_and_decoding_and_started_again(tmp_path: Path):
    whole = tiny_project(tmp_path / "whole")
    (whole.root / "config/tiny.yaml").write_text(CONFIG.lstrip())
    whole.snakemake("exp/tiny/stats", "--cores", "1", OMP_NUM_THREADS="1")
    shutil.copytree(whole.root, tmp_path / "killed", symlinks=True)
    killed = Project(tmp_path / "killed")
    Run(whole).ends()

    orphans: list[int] = []
    for phases in (("trains", "trains", "trains"), ("decodes", "decodes", "writes_a_shard")):
        for phase, number in zip(phases, (signal.SIGINT, signal.SIGTERM, signal.SIGKILL), strict=True):
            run = Run(killed)
            found = getattr(run, phase)
            orphans.append(run.waits_for(lambda found=found: (pid := found()) not in orphans and pid))
            run.kill(number)
    said = Run(killed).ends()
    assert "IncompleteFiles" not in said and "unlock" not in said

    results = []
    for project in (killed, whole):
        index = json.loads((project.root / "exp/tiny/checkpoints/checkpoints.json").read_text())
        results.append([index["state"], index["checkpoints"], (project.root / HYPOTHESES).read_bytes()])
    assert results[0] == results[1]
    assert len(orphans) == 6
    assert not any(Path(f"/proc/{pid}").exists() for pid in orphans)
    assert not list(killed.root.glob("exp/tiny/checkpoints/state-*/.*.tmp"))
    assert not list(killed.root.glob("exp/tiny/decode/**/*.partial*"))
