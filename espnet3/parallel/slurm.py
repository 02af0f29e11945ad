"""Detached shards on SLURM: one ``sbatch --array``, states from squeue and, where there is accounting, sacct."""

from __future__ import annotations

import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet3.errors import UserError
from espnet3.io import atomic_write
from espnet3.parallel.clusters import search_path
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.hook import Hook

logger = logging.getLogger("espnet3.parallel")

QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")


class Unreachable(UserError):
    """The scheduler did not answer; nothing can be said of its jobs."""


@dataclass
class Job:
    """What the scheduler says: *state* is ``queued``, ``running`` or ``ended``; *detail* its own words."""

    state: str
    detail: str


@dataclass
class Array:
    """One array of a run: the specifications in the order of its task numbers."""

    folder: Path
    tag: str
    name: str
    specs: list[str]

    @property
    def job_name(self) -> str:
        """Unique to this array, so that its id can be found again where the answer of sbatch was lost."""
        return f"espnet3-{self.name}-{self.tag}"

    @property
    def list_file(self) -> Path:
        """One line a task."""
        return self.folder / f"list-{self.tag}.txt"


def max_array_size() -> int:
    """How many tasks an array may have."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _output(["scontrol", "show", "config"]))
    return int(match[1]) if match else 1001


def chunks(specs: Sequence[str], size: int) -> list[list[str]]:
    """Arrays of at most *size* tasks."""
    return [list(specs[start : start + size]) for start in range(0, len(specs), size)]


def submit(array: Array, config: ParallelConfig, hook: Hook) -> str:
    """Submit one array and return its job id; task *i* runs line *i* (from 0) of the list file.

    Raises:
        UserError: sbatch refuses it, or there is none.
    """
    with atomic_write(array.list_file) as handle:
        handle.writelines(f"{spec}\n" for spec in array.specs)
    log_path(array, config, 0).parent.mkdir(parents=True, exist_ok=True)
    script, command = hook(render(array, config), ["sbatch", "--parsable"])
    path = array.folder / f"submit-{array.tag}.sh"
    with atomic_write(path) as handle:
        handle.write(script)
    answer = _output([*command, str(path)], what="sbatch refused the job")
    match = re.search(r"(\d+)", answer.strip().splitlines()[-1] if answer.strip() else "")
    if not match:
        raise UserError(f"sbatch gave no job id: {answer.strip()!r}; the submission hook must keep --parsable")
    return match[1]


def log_path(array: Array, config: ParallelConfig, number: int | str) -> Path:
    """Where task *number* of an array says what it does."""
    return Path(config.options.get("log_directory") or array.folder).absolute() / f"log-{array.tag}-{number}.out"


def render(array: Array, config: ParallelConfig) -> str:
    """The job script of an array; the options are those of ``dask_jobqueue.SLURMCluster``."""
    options = config.options
    memory = options.get("job_mem") or f"{megabytes(options.get('memory', '2GB'))}M"
    directives = {
        "job-name": array.job_name,
        "output": log_path(array, config, "%a"),
        "open-mode": "append",  # a requeued task keeps what its first attempt said
        "array": f"0-{len(array.specs) - 1}%{config.n_workers}",
        "partition": options.get("queue"),
        "account": options.get("account"),
        "ntasks": 1,
        "cpus-per-task": options.get("job_cpu") or options.get("cores", 1),
        "mem": memory,
        "time": options.get("walltime"),
    }
    lines = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in directives.items() if value is not None]
    lines += [f"#SBATCH {directive}" for directive in options.get("job_extra_directives", [])]
    python = shlex.quote(str(options.get("python") or sys.executable))
    body = [
        f"export PYTHONPATH={shlex.quote(search_path())}",
        *options.get("job_script_prologue", []),
        f"exec {python} -m espnet3.parallel.cli run --list {shlex.quote(str(array.list_file.absolute()))} "
        '--task "$SLURM_ARRAY_TASK_ID"',
    ]
    return "\n".join(["#!/bin/bash", *lines, "", *body, ""])


def megabytes(memory: str | int) -> int:
    """``"4GB"`` or ``"700 MiB"`` or a number of bytes, in MiB, rounded up."""
    units = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", str(memory).lower())
    if not match:
        raise UserError(f"parallel.options.memory: {memory} is no amount of memory; write for example 4GB")
    unit = 1024 ** "kmgt".index(match[2]) * 1024 if match[3] and match[2] else units[match[2]]
    return math.ceil(float(match[1]) * unit / 2**20)


def jobs(job_ids: Iterable[str]) -> dict[str, Job]:
    """What is known of array tasks (``123_4``), from squeue and, for those it has forgotten, from sacct.

    Raises:
        Unreachable: squeue fails for another reason than that a job is gone.
    """
    wanted = set(job_ids)
    bases = sorted({job_id.partition("_")[0] for job_id in wanted}, key=int)
    if not bases:
        return {}
    queue = _squeue([f"--jobs={','.join(bases)}"])
    found = {job_id: queue[job_id] for job_id in wanted if job_id in queue}
    for records in (queue, _sacct(bases) if len(found) < len(wanted) else {}):
        for job_id in wanted - set(found):
            # tasks that were cancelled before they began stay one record, under the array's own number
            record = records.get(job_id) or records.get(job_id.partition("_")[0])
            # sacct may call a cancelled task pending for ever: squeue alone says what is alive
            if record is not None and record.state == "ended":
                found[job_id] = record
    return found


def find_array(job_name: str) -> str | None:
    """The id of an array by its unique name, where the queue still knows it."""
    for job_id in _squeue([f"--name={job_name}"]):
        return job_id.partition("_")[0]
    return None


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel array tasks; those that have ended are let be."""
    job_ids = sorted(job_ids)
    for start in range(0, len(job_ids), 200):
        _output(["scancel", "--quiet", *job_ids[start : start + 200]], allow=("Invalid job id",))


def _squeue(selection: list[str]) -> dict[str, Job]:
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", *selection]
    found = {}
    for line in _output(command, allow=("Invalid job id",), failure=Unreachable).splitlines():
        job_id, state, reason = [*line.strip().split("|"), "", ""][:3]
        found[job_id] = _job(state, reason)
    return found


def _sacct(bases: list[str]) -> dict[str, Job]:
    if shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode"]
    done = subprocess.run([*command, f"--jobs={','.join(bases)}"], capture_output=True, text=True)
    # without accounting sacct exists and fails
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    # "12_[3-9%4]" is the rest of array 12
    return {row[0].partition("_[")[0]: _job(row[1], f"exit code {row[2]}") for row in rows if len(row) == 3}


def _job(state: str, reason: str) -> Job:
    word = state.split(" ")[0].rstrip("+")  # "CANCELLED by 1000" -> "CANCELLED"
    detail = word if reason in ("", "None", "exit code 0:0") else f"{word} ({reason})"
    if word in QUEUED:
        return Job("queued", detail)
    return Job("running" if word in RUNNING else "ended", detail)


def _output(
    command: list[str], what: str = "", allow: tuple[str, ...] = (), failure: type[UserError] = UserError
) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such command; run this where SLURM's commands are") from None
    if done.returncode != 0 and not any(words in done.stderr for words in allow):
        said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        raise failure(f"{what or command[0] + ' failed'}: {said}")
    return done.stdout
