"""Calls on a Dask cluster: environments kept by the workers, lost workers replaced, refused submissions reported."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import cloudpickle
import dask
import distributed

from espnet3.errors import UserError
from espnet3.parallel.clusters import make_cluster
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.devices import device_variables
from espnet3.parallel.engines import Outcome, Setup
from espnet3.parallel.hook import Hook
from espnet3.parallel.processes import WorkerDied, portable

logger = logging.getLogger("espnet3.parallel")

CHECK_SECONDS = 5.0
ALLOWED_FAILURES = 8

_environments: dict[str, dict[str, Any]] = {}
_environment_lock = threading.Lock()
_current_setup: tuple[str, bytes] | None = None


def cached_environment(token: str, setup: bytes, config: ParallelConfig | None = None) -> dict[str, Any]:
    """This worker's environment of one run, built on first use; it replaces that of another run."""
    with _environment_lock:
        if token not in _environments:
            _environments.clear()
            if config is not None and config.env == "dask":
                slot = str(distributed.get_worker().name)
                os.environ.update(device_variables(config, int(slot) if slot.isdigit() else 0))
            _environments[token] = cloudpickle.loads(setup)()
        return _environments[token]


class EnvironmentPlugin(distributed.WorkerPlugin):
    """Tells each worker of a client how to build the environment of :func:`wrap_func_with_worker_env`."""

    name = "espnet3-environment"

    def __init__(self, token: str, setup: bytes):
        self.token, self.payload = token, setup

    def setup(self, worker: Any) -> None:
        """Called by Dask, also in workers that come later."""
        global _current_setup
        _current_setup = (self.token, self.payload)


def current_environment() -> dict[str, Any]:
    """The environment that the client's ``setup_fn`` builds in this worker; empty where it has none."""
    return cached_environment(*_current_setup) if _current_setup else {}


def start_client(config: ParallelConfig, name: str = "run", hook: Hook | None = None) -> distributed.Client:
    """A client with a cluster of its own, which :func:`close_client` ends."""
    if logging.getLogger("distributed").level in (logging.NOTSET, logging.INFO):  # as it is set by default
        logging.getLogger("distributed").setLevel(logging.WARNING)  # its INFO is a diary
    # a deadly record takes a few deaths to be found, and the tasks beside it are blamed for each
    with dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}):
        cluster = make_cluster(config, name, hook)
    try:
        return distributed.Client(cluster, set_as_default=False)
    except BaseException:
        cluster.close()
        raise


def close_client(client: distributed.Client) -> None:
    """End a client and its cluster, jobs included."""
    cluster = client.cluster
    for thing in (client, cluster):
        if thing is not None:
            # closing a cluster whose submission failed raises AssertionError in dask_jobqueue 0.9
            with contextlib.suppress(Exception):
                thing.close(timeout=20) if thing is client else thing.close()


def run_dask(
    call: Callable,
    tasks: Sequence[Any],
    setup: Setup,
    config: ParallelConfig,
    name: str,
    hook: Hook | None = None,
) -> Iterator[Outcome]:
    """See :func:`espnet3.parallel.engines.execute`."""
    client = start_client(config, name, hook)
    try:
        yield from run_on_client(client, call, tasks, setup, config, name)
    finally:
        close_client(client)


def run_on_client(
    client: distributed.Client,
    call: Callable,
    tasks: Sequence[Any],
    setup: Setup | None,
    config: ParallelConfig,
    name: str = "run",
) -> Iterator[Outcome]:
    """The same on a cluster that is there already; *setup* None uses the client's own ``setup_fn``."""
    token = uuid.uuid4().hex
    payload = cloudpickle.dumps(call)
    environment = None if setup is None else cloudpickle.dumps(setup)
    futures = {
        client.submit(
            *(_call, token, payload, environment, config, cloudpickle.dumps(task)),
            key=f"{name}-{number}-{token}",
            pure=False,
        ): number
        for number, task in enumerate(tasks)
    }
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(finished.put)
    watch = _Watch(client, config)
    try:
        while futures:
            watch.look()
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=CHECK_SECONDS)
                yield _outcome(futures.pop(future), future, len(tasks), watch)
    finally:
        client.cancel(list(futures), force=True)


def _outcome(number: int, future: distributed.Future, count: int, watch: _Watch) -> Outcome:
    while True:
        try:
            kind, value = cloudpickle.loads(future.result(timeout=CHECK_SECONDS))
            break
        except TimeoutError:
            watch.look()  # its worker died with the result, and it is computed again
        except (distributed.scheduler.KilledWorker, CancelledError) as error:
            return Outcome(number, error=WorkerDied(f"workers died in task {number + 1} of {count} ({error})"))
    if kind == "setup":
        raise value
    return Outcome(number, error=value) if kind == "error" else Outcome(number, value)


def _call(token: str, payload: bytes, setup: bytes | None, config: ParallelConfig, task: bytes) -> bytes:
    """In a worker. Values and errors travel as bytes: Dask would unpickle them where modules may be missing."""
    try:
        env = current_environment() if setup is None else cached_environment(token, setup, config)
    except Exception as error:
        return cloudpickle.dumps(("setup", portable(error)))
    try:
        return cloudpickle.dumps(("value", cloudpickle.loads(payload)(env, cloudpickle.loads(task))))
    except Exception as error:
        return cloudpickle.dumps(("error", portable(error)))


class _Watch:
    """Sees that there are workers: asks for lost ones again, says that it waits, and why none comes."""

    def __init__(self, client: distributed.Client, config: ParallelConfig):
        self.client, self.config = client, config
        self.cluster = client.cluster
        self.checked = self.told = self.started = time.monotonic()
        self.timeout = config.options.get("worker_timeout")

    def look(self) -> None:
        """Called often; acts now and then."""
        now = time.monotonic()
        if now - self.checked < CHECK_SECONDS:
            return
        self.checked = now
        workers = len(self.client.scheduler_info(n_workers=-1)["workers"])
        job_class = getattr(self.cluster, "job_cls", None)
        if workers == 0:
            errors = getattr(job_class, "errors", [])
            if errors:
                raise UserError(f"parallel.env {self.config.env}: no job was accepted: {errors[0]}")
            if self.timeout and now - self.started > self.timeout:
                raise UserError(f"parallel.env {self.config.env}: no worker came within {self.timeout} s")
            if now - self.told > 30:
                self.told = now
                logger.info("waiting for workers (%s): none of %d yet", self.config.env, self.config.n_workers)
        else:
            self.started = now
        if workers < self.config.n_workers and job_class is not None:
            # a static cluster does not replace a job that was cancelled or whose node died, until it is asked again
            self.cluster.scale(n=self.config.n_workers)
