"""Several nodes from one job: the job's first process starts the training on all of them, and waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from espnet3.errors import UserError

FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
# what describes the step that this process runs in; a step of its own must not take it over
_OF_A_STEP = (
    "SLURM_STEP",
    "SLURM_CPU_BIND",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_TASKS",
)
_OF_A_STEP += (
    "SLURM_SRUN",
    "SLURM_TASK_PID",
    "SLURM_NODEID",
    "SLURM_LAUNCH_NODE",
    "SLURM_MEM_PER",
    "SLURM_DISTRIBUTION",
)


def on_all_nodes(execution: Mapping[str, Any], command: Sequence[str]) -> int | None:
    """Within a SLURM job of ``execution.num_nodes`` nodes, run *command* with srun, one task for each of ``devices``.

    Signals that tell the training to stop are passed on.

    Returns:
        srun's exit status; None where there is nothing to start: one node, no SLURM job, or this is one of the tasks.

    Raises:
        UserError: the number of devices a node is not said, or the job has another number of nodes.
    """
    nodes, devices = int(execution.get("num_nodes", 1)), execution.get("devices", "auto")
    if nodes == 1 or "SLURM_JOB_ID" not in os.environ:
        return None
    if (isinstance(devices, str) and not devices.isdigit()) or (isinstance(devices, str | int) and int(devices) < 1):
        raise UserError(
            f"execution.devices: {devices}, but with several nodes it must be the number of processes on each"
        )
    local = len(devices) if isinstance(devices, list) else int(devices)
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(nodes * local):
        return None
    have = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
    if have != str(nodes):
        raise UserError(
            f"execution.num_nodes: {nodes}, but this job has {have}; set the profile's resource nodes for train"
        )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_STEP)}
    # the job's own step holds its cores and memory: this one shares them
    srun = ["srun", "--overlap", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes * local}"]
    process = subprocess.Popen([*srun, f"--ntasks-per-node={local}", *command], env=environment)
    handlers = {s: signal.signal(s, lambda number, frame: process.send_signal(number)) for s in FORWARDED}
    try:
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def this_command() -> list[str]:
    """The command line of ``python -m espnet3``, as this process was called."""
    return [sys.executable, "-m", "espnet3", *sys.argv[1:]]
