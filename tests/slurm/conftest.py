"""A real SLURM of one's own for the tests: several nodes on loopback, with and without accounting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm-cluster.sh")
sys.path.append(str(SCRIPT.parents[1] / "parallel"))  # parallel_toys


@dataclass
class Slurm:
    """A running cluster; its commands are first on PATH while a test uses it."""

    root: Path
    settings: dict[str, str]

    def control(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run ``slurm-cluster.sh``."""
        environment = {**os.environ, "SLURM_MINI_ROOT": str(self.root), **self.settings}
        return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)

    def command(self, *words: str) -> str:
        """The output of a client command."""
        done = subprocess.run([str(self.root / "bin" / words[0]), *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, what, seconds: float = 60, poll: float = 0.2):
        """Poll until ``what()`` is true, and return that."""
        deadline = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < deadline, f"gave up after {seconds} s\n{self.command('squeue', '--states=all')}"
            time.sleep(poll)
        return value


def start(name: str, **settings: str) -> Iterator[Slurm]:
    """Bring a cluster up and take it down; skip where its packages cannot be had, unless they must be there."""
    slurm = Slurm(Path(f"/tmp/espnet3-slurm-{os.getuid()}-{os.getpid()}-{name}"), settings)
    done = slurm.control("up", "--nodes", "3")
    try:
        if done.returncode != 0:
            reason = f"no SLURM here: {' '.join(done.stderr.split())[-300:]}"
            if os.environ.get("ESPNET3_REQUIRE_SLURM") == "1" or (slurm.root / "pid/slurmctld").exists():
                pytest.fail(reason)
            pytest.skip(reason)
        yield slurm
    finally:
        slurm.control("down", "--purge")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    """Without accounting."""
    yield from start("a")


@pytest.fixture
def slurm(slurm_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster without accounting, on PATH, with nothing in its queue."""
    monkeypatch.setenv("PATH", f"{slurm_cluster.root}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", f"{slurm_cluster.root}/etc/slurm.conf")
    yield slurm_cluster
    slurm_cluster.command("scancel", "--quiet", "--user", str(os.getuid()))


@pytest.fixture(scope="module")
def accounting_cluster() -> Iterator[Slurm]:
    """With slurmdbd, and arrays of at most four tasks."""
    yield from start("b", SLURM_MINI_ACCT="dbd", SLURM_MINI_ARRAY="4")


@pytest.fixture
def accounting(accounting_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster with accounting, on PATH."""
    monkeypatch.setenv("PATH", f"{accounting_cluster.root}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", f"{accounting_cluster.root}/etc/slurm.conf")
    return accounting_cluster
