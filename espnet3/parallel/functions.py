"""Parallel maps over plain functions, on any engine."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.engines import Setup, execute
from espnet3.parallel.provider import select_env

if TYPE_CHECKING:
    import distributed

CHUNKS_PER_WORKER = 16

Config = Mapping[str, Any] | ParallelConfig | None


@contextlib.contextmanager
def get_client(config: Config = None, setup_fn: Setup | None = None) -> Iterator[distributed.Client]:
    """A Dask client on the cluster that *config* (or :func:`set_parallel`) describes; both end with the block.

        with get_client({"env": "slurm", "n_workers": 8, "options": {"queue": "cpu"}}, setup_fn=load) as client:
            lengths = parallel_map(measure, paths, client=client)

    Args:
        setup_fn: builds each worker's environment, whose entries functions get by parameter name.
    """
    from espnet3.parallel.dask_engine import EnvironmentPlugin, close_client, start_client

    client = start_client(ParallelConfig.of(config))
    try:
        if setup_fn is not None:
            import cloudpickle

            client.register_plugin(EnvironmentPlugin(uuid.uuid4().hex, cloudpickle.dumps(setup_fn)))
        yield client
    finally:
        close_client(client)


def wrap_func_with_worker_env(function: Callable, setup_fn: Setup | None = None) -> Callable:
    """*function* with the worker's environment filled in by parameter name, for ``client.map`` and its like.

    Args:
        setup_fn: builds the environment, once in each worker; None takes the one given to :func:`get_client`.
    """
    from espnet3.parallel.dask_engine import cached_environment, current_environment

    if setup_fn is None:
        environment: Callable = current_environment
    else:
        import cloudpickle

        environment = functools.partial(cached_environment, uuid.uuid4().hex, cloudpickle.dumps(setup_fn))

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        env = {key: value for key, value in environment().items() if key not in kwargs}
        return function(*args, **select_env(function, {**env, **kwargs}, positional=len(args)))

    return wrapped


def parallel_for(
    function: Callable,
    items: Iterable[Any],
    *,
    client: distributed.Client | None = None,
    config: Config = None,
    setup_fn: Setup | None = None,
) -> Iterator[Any]:
    """Yield ``function(item)`` as the results come, in no order.

    Args:
        client: of :func:`get_client`; None starts the engine of *config* for this call.
        config: the ``parallel:`` section; None takes what :func:`set_parallel` has set.
        setup_fn: builds the environment, once in each worker; *function* gets its entries by parameter name.

    Raises:
        Exception: the first that *function* raises; its worker's traceback is a note.
    """
    for _, values in _chunks(function, items, client, config, setup_fn):
        yield from values


def parallel_map(
    function: Callable,
    items: Iterable[Any],
    *,
    client: distributed.Client | None = None,
    config: Config = None,
    setup_fn: Setup | None = None,
) -> list[Any]:
    """``[function(item) for item in items]``, in that order; see :func:`parallel_for`."""
    chunks = dict(_chunks(function, items, client, config, setup_fn))
    return [value for number in sorted(chunks) for value in chunks[number]]


def _chunks(
    function: Callable, items: Iterable[Any], client: Any, config: Config, setup_fn: Setup | None
) -> Iterator[tuple[int, list]]:
    items = list(items)
    config = ParallelConfig.of(config)
    size = max(1, len(items) // (max(config.n_workers, 2) * CHUNKS_PER_WORKER))
    if config.in_process and client is None:
        size = 1  # nothing to save, and the first result comes at once
    tasks = [items[start : start + size] for start in range(0, len(items), size)]
    call = functools.partial(_call_chunk, function)
    if client is not None:
        from espnet3.parallel.dask_engine import run_on_client

        outcomes = run_on_client(client, call, tasks, setup_fn, config, "map")
    else:
        outcomes = execute(call, tasks, setup=setup_fn or dict, config=config, name="map")
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            yield outcome.number, outcome.value


def _call_chunk(function: Callable, env: dict[str, Any], chunk: list[Any]) -> list[Any]:
    extra = select_env(function, env) if env else {}
    return [function(item, **extra) for item in chunk]
