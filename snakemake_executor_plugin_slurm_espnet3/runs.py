"""Which runs of Snakemake have jobs in SLURM, so that the jobs of a run that was killed are found by the next one.

A run's file lies in ``.snakemake/slurm-runs``, named as its jobs, and holds a lock that the kernel takes back with the run.
"""

import fcntl
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

FOLDER = Path(".snakemake/slurm-runs")
POLL = 5  # seconds
PATIENCE = 60  # questions, ten seconds apart, to a controller that does not answer


def ask(command: str) -> tuple[bool, str]:
    """Whether *command* succeeded, with what it printed, or its complaint."""
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout + done.stderr


class RunRecord:
    """That the run *name* lives, or has jobs left."""

    def __init__(self, name: str, folder: Path = FOLDER):
        self.path = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def forget(self) -> None:
        """The run ends, and has no jobs any more."""
        self.path.unlink(missing_ok=True)


def await_jobs_of_killed_runs(say: Callable[[str], None], folder: Path = FOLDER) -> None:
    """Wait until no job runs that a killed run has left; cancel those that have not begun.

    What such a job finishes is taken by the new run, which would otherwise write the same files beside it.

    Raises:
        RuntimeError: SLURM does not answer for ten minutes.
    """
    for path in sorted(folder.glob("*")):
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its run lives
        finally:
            os.close(descriptor)
        _await_jobs(path.name, say)
        path.unlink(missing_ok=True)


def _await_jobs(name: str, say: Callable[[str], None]) -> None:
    told: set[str] = set()
    unanswered = 0
    while True:
        answered, text = ask(f"squeue --noheader --name {name} --format '%i|%T'")
        if not answered:
            unanswered += 1
            if unanswered == 1:
                say(f"SLURM does not say whether jobs of a killed run still run ({text.strip()}); asking again.")
            if unanswered > PATIENCE:
                raise RuntimeError(
                    f"SLURM does not say whether jobs of the killed run {name} still run ({text.strip()})"
                )
            time.sleep(10)
            continue
        jobs = dict(re.findall(r"^(\w+)\|(\w+)$", text, re.MULTILINE))
        if not jobs:
            return
        waiting = sorted(job for job, state in jobs.items() if state == "PENDING")
        if waiting:
            ask(f"scancel {' '.join(waiting)}")
        running = set(jobs) - set(waiting)
        if running - told:
            say(
                f"A run of Snakemake was killed here and has left SLURM jobs: waiting for {' '.join(sorted(running))}. "
                "What they finish is taken; scancel them to start anew."
            )
            told |= running
        time.sleep(POLL if running else 0.5)
