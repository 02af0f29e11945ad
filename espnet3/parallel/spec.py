"""Shard specifications: all that a detached job needs, as JSON, and the job itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import read_json, write_json
from espnet3.parallel.provider import plain
from espnet3.parallel.records import one_line
from espnet3.parallel.runner import BaseRunner, ShardReport

logger = logging.getLogger("espnet3.parallel")


@dataclasses.dataclass
class JobSpec:
    """One shard of an asynchronous run.

    Attributes:
        runner_cls: ``module:name`` of the runner; *provider_cls* likewise.
        config: the provider's configuration, resolved.
        params: its ``params``, or None where its class takes none.
        indices: what to run; *world_rank* (from 0) of *world_size* shards.
        result_path: the shard's file or folder.
        extras: the runner's settings, and the working directory and module search path of the submitting process.
    """

    runner_cls: str
    provider_cls: str
    config: Any
    params: dict[str, Any] | None
    indices: list[int]
    world_size: int
    world_rank: int
    result_path: str
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, runner: BaseRunner, rank: int, result_path: Path) -> JobSpec:
        """The specification of a planned runner's shard *rank*.

        Raises:
            UserError: the configuration is not JSON, or a class cannot be imported elsewhere.
        """
        indices = runner.plan[rank]
        extras = {
            "name": runner.name,
            "batch_size": runner.batch_size,
            "batch_weight": runner.batch_weight,
            "max_failures": runner.max_failures,
            "fingerprint": runner.fingerprint,
            "keys": None if runner.keys is None else [str(runner.keys[index]) for index in indices],
            "weights": None if runner.weights is None else [float(runner.weights[index]) for index in indices],
            "cwd": os.getcwd(),
            "sys_path": [str(Path(entry).absolute()) for entry in sys.path],
        }
        spec = cls(
            import_path(type(runner)),
            import_path(type(runner.provider)),
            plain(runner.provider.config),
            plain(runner.provider.params),
            list(indices),
            len(runner.plan),
            rank,
            str(result_path.absolute()),
            extras,
        )
        try:
            json.dumps(dataclasses.asdict(spec))
        except (TypeError, ValueError) as error:
            raise UserError(f"{runner.name}: asynchronous jobs need a configuration that is JSON ({error})") from None
        return spec

    @classmethod
    def read(cls, path: str | os.PathLike) -> JobSpec:
        """Read a specification file."""
        values = read_json(path)
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{path}: not a shard specification ({error})") from None

    def write(self, path: str | os.PathLike) -> None:
        """Write it, atomically."""
        write_json(path, dataclasses.asdict(self))

    def runner(self) -> BaseRunner:
        """The runner, built anew; its ``keys`` and ``weights`` know this shard's indices only."""
        for entry in self.extras.get("sys_path", []):
            if entry not in sys.path:
                sys.path.append(entry)
        extras, provider_cls = self.extras, imported(self.provider_cls)
        provider = provider_cls(self.config) if self.params is None else provider_cls(self.config, self.params)
        lists = {
            name: None if extras.get(name) is None else dict(zip(self.indices, extras[name], strict=True))
            for name in ("keys", "weights")
        }
        settings = ("name", "batch_size", "batch_weight", "max_failures", "fingerprint")
        return imported(self.runner_cls)(provider, **{key: extras[key] for key in settings}, **lists, parallel={})


def import_path(kind: type) -> str:
    """``module:name``, by which another process imports a class.

    A class of the main script is given by the script's name: it needs an ``if __name__ == "__main__"`` guard.
    """
    module = kind.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is not None:
            module = main.__spec__.name
        elif getattr(main, "__file__", None):
            module = Path(main.__file__).stem
    if module == "__main__" or "<" in kind.__qualname__:
        raise UserError(f"{kind.__qualname__}: a detached job cannot import it; move the class into a module")
    return f"{module}:{kind.__qualname__}"


def imported(path: str) -> type:
    """The class behind :func:`import_path`."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    return found


def started_path(spec: str | os.PathLike) -> Path:
    """Written when the job begins: ``{"job_id", "host", "pid", "time"}``."""
    return Path(spec).with_suffix(".started.json")


def error_path(spec: str | os.PathLike) -> Path:
    """Written when the job fails: ``{"error", "traceback", ...}``."""
    return Path(spec).with_suffix(".error.json")


def write_error(spec: str | os.PathLike, error: str, trace: str = "") -> None:
    """Leave word of why a job failed."""
    write_json(error_path(spec), {"error": error, "traceback": trace, **_where()})


def run_spec(path: str | os.PathLike) -> ShardReport:
    """Run a specification's shard in this process: what a detached job does.

    Raises:
        Exception: whatever went wrong; its first line is then in :func:`error_path`.
    """
    error_path(path).unlink(missing_ok=True)
    write_json(started_path(path), _where())
    # a scheduler's SIGTERM (cancelled, or out of time) should unwind, so that locks go and files are closed
    signal.signal(signal.SIGTERM, _terminated)
    try:
        spec = JobSpec.read(path)
        if os.path.isdir(spec.extras.get("cwd", "")):
            os.chdir(spec.extras["cwd"])
        report = spec.runner().run_shard(spec.indices, spec.result_path, keep=True)
    except Exception as error:
        write_error(path, one_line(error), traceback.format_exc())
        raise
    logger.info("%s: %d records, %d failed", spec.result_path, report.records, report.failed)
    return report


def _terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def _where() -> dict[str, Any]:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID") or os.environ.get("ESPNET3_JOB_ID")
    return {"job_id": job_id, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
