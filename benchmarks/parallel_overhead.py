"""What a record costs in espnet3.parallel, beside multiprocessing.Pool.imap, joblib and dask.bag.

    python benchmarks/parallel_overhead.py [--records 10000] [--rounds 7]

The record is a multiplication, so the times are overhead: starting workers, sending indices, collecting results in order.
Every round times every method once, in an order that turns from round to round; a bar is about the median of all rounds,
a ratio is the median over rounds of the ratio within one round, so that a machine that slows down slows both sides.
Exits with status 1 where a figure falls short of its bar.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espnet3.parallel import BaseRunner, EnvironmentProvider

BARS = {"runner, in process": 50.0, "runner, 2 processes": 200.0}
TWO = {"env": "multiprocessing", "n_workers": 2}


class Factor(EnvironmentProvider):
    """The smallest environment."""

    def build_env_local(self) -> dict:
        return {"factor": 3}


class Multiply(BaseRunner):
    """The smallest record."""

    @staticmethod
    def forward(idx: int, factor: int) -> int:
        return idx * factor


def multiply(idx: int) -> int:
    """The same without a runner."""
    return idx * 3


def runner(records: int, parallel: dict, files: bool = False) -> list:
    """Run on espnet3.parallel; with *files*, through shard files and their merge."""
    if not files:
        return Multiply(Factor(), parallel=parallel)(range(records))
    with tempfile.TemporaryDirectory() as folder:
        merged = Multiply(Factor(), output_dir=folder, parallel=parallel)(range(records))
        return [int(line) for line in merged.read_text().splitlines()]


def pool(records: int, chunksize: int = 1) -> list:
    """multiprocessing.Pool.imap, workers spawned as espnet3's are."""
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        return list(workers.imap(multiply, range(records), chunksize=chunksize))


def with_joblib(records: int) -> list:
    """joblib with its default backend, loky."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        return Parallel(n_jobs=2)(delayed(multiply)(index) for index in range(records))
    finally:
        get_reusable_executor().shutdown(wait=True)  # the next round starts its workers anew, as the others do


def bag(records: int) -> list:
    """dask.bag on its process scheduler."""
    import dask.bag

    return (
        dask.bag.from_sequence(range(records), npartitions=32)
        .map(multiply)
        .compute(scheduler="processes", num_workers=2)
    )


def methods(records: int) -> dict:
    """Name -> a call that gives the results."""
    found = {
        "runner, in process": lambda: runner(records, {"env": "local"}),
        "runner, in process, to files": lambda: runner(records, {"env": "local"}, files=True),
        "runner, 2 processes": lambda: runner(records, TWO),
        "runner, 2 processes, to files": lambda: runner(records, TWO, files=True),
        "Pool(2).imap": lambda: pool(records),
        "Pool(2).imap, chunks of 313": lambda: pool(records, 313),
        "dask.bag, 2 processes": lambda: bag(records),
    }
    if importlib.util.find_spec("joblib"):
        found["joblib, 2 processes"] = lambda: with_joblib(records)
    return found


def main() -> int:
    """Print the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each method is timed (default 7)")
    arguments = parser.parse_args()
    calls = methods(arguments.records)
    expected = [3 * index for index in range(arguments.records)]
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            results = calls[name]()
            times[name].append((time.perf_counter() - started) / arguments.records * 1e6)
            if results != expected:
                raise SystemExit(f"{name}: wrong results")
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)

    base = times["runner, 2 processes"]
    print(
        f"{arguments.records} records, {arguments.rounds} rounds, {os.cpu_count()} cores; us a record, workers' start included"
    )
    print(f"{'':32}{'median':>10}{'least':>10}{'most':>10}{'x runner, 2 processes':>24}")
    for name, values in times.items():
        ratio = statistics.median(value / ours for value, ours in zip(values, base, strict=True))
        print(f"{name:32}{statistics.median(values):10.1f}{min(values):10.1f}{max(values):10.1f}{ratio:24.2f}")
    if "joblib, 2 processes" not in times:
        print("joblib is not installed: left out")
    short = False
    for name, bar in BARS.items():
        figure = statistics.median(times[name])
        short |= figure > bar
        print(f"{name}: {figure:.1f} us a record vs at most {bar:.0f}: {'FALLS SHORT' if figure > bar else 'ok'}")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
