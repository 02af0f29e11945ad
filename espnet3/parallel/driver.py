"""The living driver of a run: hands shards to an engine, counts failures, merges."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import digest, read_json, write_json
from espnet3.parallel.engines import execute
from espnet3.parallel.records import one_line
from espnet3.parallel.runner import PROGRESS_SECONDS, BaseRunner, ShardReport, TooManyFailures
from espnet3.parallel.shardfile import failed_path, read_failures

logger = logging.getLogger("espnet3.parallel")


@dataclasses.dataclass
class ShardTask:
    """A shard as it travels to a worker, with the keys and weights of its own records only."""

    indices: list[int]
    path: str | None
    keys: dict[int, str] | None
    weights: dict[int, float] | None

    @classmethod
    def of(cls, runner: BaseRunner, indices: list[int], path: str | None) -> ShardTask:
        """Take *indices*' share of the runner's keys and weights."""
        keys, weights = runner.keys, runner.weights
        return cls(
            indices,
            path,
            None if keys is None else {index: keys[index] for index in indices},
            None if weights is None else {index: weights[index] for index in indices},
        )


def shard_call(runner: BaseRunner, env: dict[str, Any], task: ShardTask) -> ShardReport:
    """One shard, in a worker: into a file, or returned where the task names none."""
    runner = copy.copy(runner)
    runner._env, runner.keys, runner.weights = env, task.keys, task.weights
    if task.path is None:
        return runner.collect_shard(task.indices)
    try:
        return runner.run_shard(task.indices, task.path, keep=True)
    except TooManyFailures as error:
        return error.report


def travelling(runner: BaseRunner) -> BaseRunner:
    """The runner without what its tasks carry."""
    light = copy.copy(runner)
    light.keys, light.weights, light.plan, light.indices = None, None, [], []
    return light


def run_shards(runner: BaseRunner, indices: list[int]) -> Any:
    """Run a planned runner's shards on its engine; see :meth:`BaseRunner.__call__`."""
    if runner.output_dir is None:
        paths: list[str | None] = [None] * len(runner.plan)
    else:
        paths = [str(runner.shard_path(rank)) for rank in range(len(runner.plan))]
        prepare_folder(runner, paths)
    shards = zip(runner.plan, paths, strict=True)
    tasks = [ShardTask.of(runner, shard, path) for shard, path in shards if shard or path]
    reports = _run(runner, tasks, len(indices))
    if runner.output_dir is not None:
        return runner.merge([Path(path) for path in paths])
    values: dict[int, Any] = {}
    for task, report in zip(tasks, reports, strict=True):
        values.update(zip(task.indices, report.results, strict=True))
    return [values[index] for index in indices]


def prepare_folder(runner: BaseRunner, paths: Sequence[str]) -> None:
    """Throw away complete shards of another plan or configuration, and those whose failures went beyond the limit."""
    note = runner.output_dir / f"{runner.name}.plan.json"
    print_ = digest([runner.identity(), [runner.shard_fingerprint(shard) for shard in runner.plan]])
    stale = True
    if note.exists():
        try:
            stale = read_json(note)["fingerprint"] != print_
        except (UserError, KeyError, TypeError):
            stale = True
    complete = [Path(path) for path in paths if Path(path).exists()]
    if stale:
        if complete:
            logger.info("%s: made anew, the plan or its configuration has changed", runner.output_dir)
        for path in complete:
            discard_shard(path)
        write_json(note, {"fingerprint": print_, "shards": len(paths), "records": len(runner.indices)})
    elif sum(len(read_failures(path)) for path in complete) > runner.max_failures:
        for path in complete:
            if failed_path(path).exists():
                discard_shard(path)


def discard_shard(path: Path) -> None:
    """Remove a complete shard and its list of failures."""
    failed_path(path).unlink(missing_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def failure_summary(name: str, failed: int, limit: int, first_errors: dict[str, str]) -> str:
    """One line a shard, after one line that says how it stands."""
    lines = [f"{name}: {failed} records failed and max_failures is {limit}; the first error of each shard:"]
    return "\n".join(lines + [f"  {shard}: {error}" for shard, error in first_errors.items()])


def _run(runner: BaseRunner, tasks: list[ShardTask], total: int) -> list[ShardReport]:
    reports: dict[int, ShardReport] = {}
    errors: dict[str, str] = {}
    failed = records = 0
    started = told = time.monotonic()
    outcomes = execute(
        functools.partial(shard_call, travelling(runner)),
        tasks,
        setup=runner.environment if runner.parallel.in_process else runner.provider.build_worker_setup_fn(),
        config=runner.parallel,
        name=runner.name,
        hook=runner.submit_hook,
    )
    try:
        for outcome in outcomes:
            label = Path(tasks[outcome.number].path or f"shard {outcome.number + 1} of {len(tasks)}").name
            if outcome.error is not None:
                if isinstance(outcome.error, UserError) and not errors:
                    raise outcome.error
                errors[label] = one_line(outcome.error)
                summary = "; ".join(f"{shard}: {error}" for shard, error in errors.items())
                raise UserError(f"{runner.name}: a shard could not be run: {summary}") from outcome.error
            report = reports[outcome.number] = outcome.value
            failed, records = failed + report.failed, records + report.records
            if report.first_error:
                errors[label] = report.first_error
            if failed > runner.max_failures:
                raise TooManyFailures(failure_summary(runner.name, failed, runner.max_failures, errors))
            now = time.monotonic()
            if now - told > PROGRESS_SECONDS:
                told = now
                rate = records / (now - started)
                left = (total - records - failed) / rate if rate else 0
                logger.info(
                    "%s: %d of %d shards, %d of %d records, %.1f records/s, about %.0f s left",
                    *(runner.name, len(reports), len(tasks), records, total, rate, left),
                )
    finally:
        outcomes.close()
    if failed:
        logger.warning("%s: %d records were quarantined (max_failures %d)", runner.name, failed, runner.max_failures)
    return [reports[number] for number in range(len(tasks))]
