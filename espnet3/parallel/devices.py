"""One worker a GPU, through ``CUDA_VISIBLE_DEVICES``; and no more threads than there are cores."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from espnet3.errors import UserError
from espnet3.parallel.config import ParallelConfig


def visible_devices(devices: str | list | None = "auto") -> list[str]:
    """The GPUs that workers may use, without importing torch.

    Args:
        devices: a list of ids, or ``"auto"``: those in ``CUDA_VISIBLE_DEVICES``, else all of this machine's.
    """
    if isinstance(devices, (list, tuple)):
        return [str(device) for device in devices]
    if devices not in ("auto", None):
        raise UserError(f"parallel.options.devices: {devices} is neither 'auto' nor a list of device ids")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip() not in ("", "-1")]
    found = [path.name for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [name.removeprefix("nvidia") for name in sorted(found, key=lambda name: int(name[6:]))]


def device_variables(config: ParallelConfig, slot: int) -> dict[str, str]:
    """The environment variables that give worker *slot* (from 0) its own GPU; empty without GPUs."""
    devices = visible_devices(config.options.get("devices"))
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}


def worker_environment(config: ParallelConfig, slot: int) -> dict[str, str]:
    """A worker process's whole environment: this one's, its GPU, its module search path, its share of the cores.

    ``options.threads`` sets the threads of a worker; otherwise ``OMP_NUM_THREADS`` stands, and where it is not set, the
    cores are shared out.
    """
    environment = {**os.environ, **device_variables(config, slot)}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    threads = config.options.get("threads")
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // config.n_workers)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
