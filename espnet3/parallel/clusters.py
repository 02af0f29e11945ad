"""Dask clusters by the name in ``parallel.env``."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.hook import Hook, submission_hook

# engine -> (module, class, what to install)
CLUSTERS = {
    "dask": ("distributed", "LocalCluster", "distributed"),
    "slurm": ("dask_jobqueue", "SLURMCluster", "dask-jobqueue"),
    "pbs": ("dask_jobqueue", "PBSCluster", "dask-jobqueue"),
    "sge": ("dask_jobqueue", "SGECluster", "dask-jobqueue"),
    "lsf": ("dask_jobqueue", "LSFCluster", "dask-jobqueue"),
    "htcondor": ("dask_jobqueue", "HTCondorCluster", "dask-jobqueue"),
    "oar": ("dask_jobqueue", "OARCluster", "dask-jobqueue"),
    "moab": ("dask_jobqueue", "MoabCluster", "dask-jobqueue"),
    "ssh": ("distributed", "SSHCluster", "asyncssh"),
    "kube": ("dask_kubernetes.operator", "KubeCluster", "dask-kubernetes"),
    "local_gpu": ("dask_cuda", "LocalCUDACluster", "dask-cuda"),
}
OWN_OPTIONS = ("devices", "threads", "worker_timeout")


def make_cluster(config: ParallelConfig, name: str = "run", hook: Hook | None = None) -> Any:
    """Start a cluster with ``config.n_workers`` workers of one task each; ``config.options`` go to its class.

    Raises:
        UserError: the library is not installed (the message names it), or an option is refused.
    """
    env = config.env if config.env in CLUSTERS else "dask"
    kind = cluster_class(env)
    options = {key: value for key, value in config.options.items() if key not in OWN_OPTIONS}
    try:
        if env == "dask":
            defaults = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
            return kind(**{"n_workers": config.n_workers, **defaults, **options})
        if env == "local_gpu":
            return kind(**{"n_workers": config.n_workers, "dashboard_address": None, **options})
        if env == "ssh":
            return kind(**{"worker_options": {"nthreads": 1}, **options})
        if env == "kube":
            return kind(**{"name": name, "n_workers": config.n_workers, **options})
        return _jobqueue_cluster(kind, config, options, name, hook)
    except (TypeError, ValueError) as error:
        raise UserError(f"parallel.options: {kind.__name__} refuses them ({_first_line(error)})") from error


def cluster_class(env: str) -> type:
    """The class behind an engine."""
    module, name, package = CLUSTERS[env]
    try:
        if env == "ssh":
            importlib.import_module("asyncssh")
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        raise UserError(f"parallel.env: {env} needs {package}, which is not installed; pip install {package}") from None


def _jobqueue_cluster(kind: type, config: ParallelConfig, options: dict, name: str, hook: Hook | None) -> Any:
    prologue = [f"export PYTHONPATH={shlex.quote(search_path())}", *options.pop("job_script_prologue", [])]
    defaults = {
        "cores": 1,
        "processes": 1,
        "memory": "2GB",
        "python": shlex.quote(sys.executable),
        "job_name": f"espnet3-{name}",
        "job_script_prologue": prologue,
        # a job that waits long in the queue must find its scheduler, not a clock
        "death_timeout": 120,
    }
    options["scheduler_options"] = {"dashboard_address": None, **options.get("scheduler_options", {})}
    job = hooked_job_class(kind.job_cls, submission_hook(config, hook))
    cluster = kind(**{**defaults, **options, "job_cls": job})
    cluster.scale(n=config.n_workers)
    return cluster


def hooked_job_class(job_class: type, hook: Hook) -> type:
    """A ``dask_jobqueue`` job class whose script and command go through *hook*; it keeps errors of submission.

    The command is the scheduler's (``["sbatch"]``); the script's path, or ``< script``, comes after it.
    """

    class HookedJob(job_class):
        errors: list[str] = []  # noqa: RUF012  (one list for all jobs of this cluster)

        async def _submit_job(self, script_filename: str) -> str:
            path = Path(script_filename)
            script, command = hook(path.read_text(), shlex.split(self.submit_command))
            path.write_text(script)
            self.submit_command = shlex.join(command)
            try:
                return await super()._submit_job(script_filename)
            except Exception as error:
                self.errors.append(_call_error(error))
                raise

    # the class's name is how dask_jobqueue finds its default configuration
    functools.update_wrapper(HookedJob, job_class, updated=())
    return HookedJob


def search_path() -> str:
    """This process's module search path, for a worker elsewhere on a shared file system."""
    return os.pathsep.join(dict.fromkeys(str(Path(entry).absolute()) for entry in sys.path))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _call_error(error: BaseException) -> str:
    """What the scheduler said, out of dask_jobqueue's report of a failed command."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "stderr:" in lines:
        return " ".join(line for line in lines[lines.index("stderr:") + 1 :] if line) or _first_line(error)
    return _first_line(error)
