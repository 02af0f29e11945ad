"""Detached shards on one machine: background processes that outlive the driver."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet3.io import atomic_write
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.devices import worker_environment
from espnet3.parallel.slurm import Job
from espnet3.parallel.spec import error_path, started_path, write_error

logger = logging.getLogger("espnet3.parallel")


def submit(folder: Path, tag: str, specs: Sequence[str], config: ParallelConfig) -> list[str]:
    """Start up to ``n_workers`` processes in sessions of their own; each runs its share of *specs* one after another.

    Returns:
        a job id for each: host, process id and start time (a process id alone may be used again), and its line.
    """
    workers = min(config.n_workers, len(specs))
    ids: dict[str, str] = {}
    for slot in range(workers):
        share = specs[slot::workers]
        list_file = folder / f"list-{tag}-{slot}.txt"
        with atomic_write(list_file) as handle:
            handle.writelines(f"{spec}\n" for spec in share)
        with open(folder / f"log-{tag}-{slot}.out", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "espnet3.parallel.cli", "background", str(list_file.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=worker_environment(config, slot),
            )
        ids.update({spec: job_id(process.pid, number) for number, spec in enumerate(share)})
    return [ids[spec] for spec in specs]


def job_id(pid: int, number: int) -> str:
    """``host:pid:start_number``."""
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}_{number}"


def run_list(list_file: str | os.PathLike) -> int:
    """Run each specification of a list in a process of its own, with a log of its own; the number that failed."""
    failed = 0
    for number, spec in enumerate(Path(list_file).read_text().splitlines()):
        environment = {**os.environ, "ESPNET3_JOB_ID": job_id(os.getpid(), number)}
        with open(log_path(spec), "a") as log:
            command = [sys.executable, "-m", "espnet3.parallel.cli", "run", spec]
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment).returncode
        if code != 0:
            failed += 1
            if not error_path(spec).exists():
                with contextlib.suppress(ValueError):
                    code = f"{code} ({signal.Signals(-code).name})" if code < 0 else code
                write_error(spec, f"the job ended with status {code}")
    return failed


def log_path(spec: str | os.PathLike) -> Path:
    """The log of a specification that runs in the background."""
    return Path(spec).with_suffix(".log")


def jobs(specs: dict[str, str]) -> dict[str, Job]:
    """What is known of jobs, from ``{job id: specification}``; those of another machine are not known here."""
    found = {}
    for identifier, spec in specs.items():
        host, pid, start = identifier.rpartition("_")[0].split(":")
        if host != socket.gethostname():
            found[identifier] = Job("unknown", f"on {host}; ask there")
        elif _start_time(int(pid)) != start:
            found[identifier] = Job("ended", "its process is gone")
        elif error_path(spec).exists():
            found[identifier] = Job("ended", "")
        else:
            found[identifier] = Job("running" if started_path(spec).exists() else "queued", f"process {pid}")
    return found


def cancel(job_ids: Iterable[str]) -> None:
    """End the processes behind the jobs, with everything that they started."""
    processes = {tuple(identifier.rpartition("_")[0].split(":")) for identifier in job_ids}
    for host, pid, start in processes:
        if host == socket.gethostname() and _start_time(int(pid)) == start:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGTERM)


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
