"""Engines: the same calls in this process, in processes, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from espnet3.parallel.config import ParallelConfig

Setup = Callable[[], dict[str, Any]]


@dataclass
class Outcome:
    """What became of task *number*: a *value*, or the *error* that it raised (its worker's traceback as a note)."""

    number: int
    value: Any = None
    error: BaseException | None = None


def execute(
    call: Callable[[dict[str, Any], Any], Any],
    tasks: Sequence[Any],
    *,
    setup: Setup,
    config: ParallelConfig,
    name: str = "run",
    hook: Callable | None = None,
) -> Iterator[Outcome]:
    """Run ``call(environment, task)`` for each task, as completed.

    Args:
        setup: builds the environment, once in each worker.
        hook: a runner's ``submit_hook``, for clusters that submit jobs.

    Raises:
        Exception: what *setup* raised. A task's own errors are in its :class:`Outcome`.
    """
    if not tasks:
        return _in_process(call, tasks, dict)
    if config.in_process:
        return _in_process(call, tasks, setup)
    if config.processes:
        from espnet3.parallel.processes import run_processes

        return run_processes(call, tasks, setup, config)
    from espnet3.parallel.dask_engine import run_dask

    return run_dask(call, tasks, setup, config, name, hook)


def _in_process(call: Callable, tasks: Sequence[Any], setup: Setup) -> Iterator[Outcome]:
    env = setup()
    for number, task in enumerate(tasks):
        try:
            yield Outcome(number, call(env, task))
        except Exception as error:
            yield Outcome(number, error=error)
