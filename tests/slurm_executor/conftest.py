"""A private SLURM cluster with accounting and one without; what was started in a test module ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from slurm_runs import Cluster, Run


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    """``start(cluster, name, executor, targets, **settings)`` begins a Snakemake run."""
    runs: list[Run] = []
    base = tmp_path_factory.mktemp("runs")

    def begin(cluster: Cluster, name: str, executor: str, targets: str, **settings) -> Run:
        runs.append(Run(cluster, base / f"{name}-{executor}", executor, targets, **settings))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()


def _cluster(accounting: str) -> Iterator[Cluster]:
    cluster = Cluster(accounting)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    """A cluster with an accounting database."""
    yield from _cluster("dbd")


@pytest.fixture(scope="module")
def unaccounted() -> Iterator[Cluster]:
    """A cluster without one: sacct is there, and fails."""
    yield from _cluster("none")
