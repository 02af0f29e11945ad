"""Worker processes on this machine: spawned afresh, one environment each, replaced when they die.

They are plain subprocesses that talk over a socket pair. ``multiprocessing``'s spawn would import the user's main
script again in each of them, which fails in a notebook and recurses in a script without a ``__main__`` guard.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle

from espnet3.errors import UserError
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.devices import worker_environment
from espnet3.parallel.engines import Outcome, Setup

logger = logging.getLogger("espnet3.parallel")

ATTEMPTS = 5
READY = -1


class WorkerDied(Exception):
    """A task's worker processes kept dying; the message says how."""


class _Worker:
    def __init__(self, slot: int, payload: bytes, config: ParallelConfig):
        self.slot, self.task, self.ready = slot, None, False
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from espnet3.parallel.processes import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=worker_environment(config, slot),
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(OSError):  # it is dead already: seen at the first reading
            self.connection.send_bytes(payload)

    def give(self, number: int, task: Any) -> None:
        self.task = number
        with contextlib.suppress(OSError):
            self.connection.send_bytes(cloudpickle.dumps((number, task)))

    def end(self) -> str:
        """Stop the process and say how it ended."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"ended with status {code}"


def run_processes(call: Callable, tasks: Sequence[Any], setup: Setup, config: ParallelConfig) -> Iterator[Outcome]:
    """See :func:`espnet3.parallel.engines.execute`; a task whose worker dies is tried up to five times."""
    payload = cloudpickle.dumps((call, setup, logging.getLogger().getEffectiveLevel()))
    queue = collections.deque(range(len(tasks)))
    deaths: collections.Counter = collections.Counter()
    left = len(tasks)
    workers: dict[Connection, _Worker] = {}

    def start(slot: int) -> None:
        worker = _Worker(slot, payload, config)
        workers[worker.connection] = worker

    try:
        for slot in range(min(config.n_workers, len(tasks))):
            start(slot)
        while left:
            for connection in wait(list(workers)):
                worker = workers[connection]
                try:
                    number, value, error = cloudpickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    del workers[connection]
                    how = _ending(worker)
                    lost = READY if worker.task is None else worker.task
                    deaths[lost] += 1
                    where = "before it was ready" if lost == READY else f"in task {lost + 1} of {len(tasks)}"
                    logger.warning("a worker process died %s (%s); replacing it", where, how)
                    if deaths[lost] >= ATTEMPTS:
                        died = WorkerDied(
                            f"worker processes died {ATTEMPTS} times {where} ({how}); see the messages above"
                        )
                        if lost == READY:
                            raise UserError(str(died)) from None
                        left -= 1
                        yield Outcome(lost, error=died)
                    elif lost != READY:
                        queue.appendleft(lost)
                    if left:
                        start(worker.slot)
                    continue
                if number == READY and error is not None:
                    raise error
                worker.task, worker.ready = None, True
                if queue:
                    following = queue.popleft()
                    worker.give(following, tasks[following])
                if number != READY:
                    left -= 1
                    yield Outcome(number, value, error)
            for worker in workers.values():  # those that were idle when a dead worker's task came back
                if worker.ready and worker.task is None and queue:
                    following = queue.popleft()
                    worker.give(following, tasks[following])
    finally:
        for worker in workers.values():
            worker.end()


def _ending(worker: _Worker) -> str:
    # a broken pipe may be seen a moment before the process can be reaped
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(2)
    return worker.end()


def serve(descriptor: int) -> None:
    """The life of a worker process: environment, tasks, results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    connection = Connection(descriptor)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    call, setup, level = cloudpickle.loads(connection.recv_bytes())
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        env = setup()
    except Exception as error:
        _send(connection, READY, None, error)
        return
    _send(connection, READY, None, None)
    while True:
        try:
            number, task = cloudpickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            value, error = call(env, task), None
        except Exception as raised:
            value, error = None, raised
        _send(connection, number, value, error)


def _send(connection: Connection, number: int, value: Any, error: Exception | None) -> None:
    if error is not None:
        error = portable(error)
    try:
        message = cloudpickle.dumps((number, value, error))
    except Exception as unpicklable:
        message = cloudpickle.dumps((number, None, RuntimeError(f"a result cannot be pickled: {unpicklable}")))
    with contextlib.suppress(OSError):
        connection.send_bytes(message)


def portable(error: Exception) -> Exception:
    """*error*, or where it cannot be pickled a RuntimeError that says the same, with the traceback as a note."""
    note = "in the worker:\n" + "".join(traceback.format_exception(error))
    try:
        restored = cloudpickle.loads(cloudpickle.dumps(error))
        if str(restored) != str(error):
            raise ValueError("changed by pickling")
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
