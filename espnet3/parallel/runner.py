"""The runner: one static ``forward``, any engine, the same bytes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import atomic_write, digest
from espnet3.parallel.attempts import Attempts
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.plan import default_shards, plan_batches, plan_shards, shard_name
from espnet3.parallel.provider import EnvironmentProvider, plain, select_env
from espnet3.parallel.records import RecordLoop
from espnet3.parallel.shardfile import ShardFile, ShardFolder, ShardLock, read_failures, to_json

logger = logging.getLogger("espnet3.parallel")

PROGRESS_SECONDS = 10.0
FSYNC_SECONDS = 5.0


class TooManyFailures(UserError):
    """More records failed than ``max_failures`` allows; the message gives each shard's first error.

    Attributes:
        report: the failing shard's :class:`ShardReport`, where one shard is meant.
    """

    report: ShardReport | None = None


@dataclass
class ShardReport:
    """What became of one shard: *records* were written to *path*, *failed* were quarantined."""

    path: str | None
    records: int
    failed: int = 0
    first_error: str | None = None
    results: list | None = None


class BaseRunner:
    """Runs :meth:`forward` over the indices of a data set.

    Args:
        provider: builds the environment, once in each worker.
        batch_size: ``forward`` gets lists of at most so many indices.
        output_dir: shards and the merged result are written here; None returns the results instead.
        shards: how many shards; None derives it from the number of records. It never follows the workers.
        keys: each record's name, by index, for plans and messages.
        weights: each record's cost, by index, such as its duration.
        batch_weight: ``forward`` gets lists whose length times largest weight is at most this.
        max_failures: how many records may be quarantined before the run is called off.
        parallel: the ``parallel:`` section; None takes what :func:`set_parallel` has set.
        name: for messages, job names and the merged file ``<name>.jsonl``.
        fingerprint: what the results depend on besides the configuration, such as a digest of the weights; an
            unfinished or finished shard of another fingerprint is not taken up again.
        async_mode: submit detached jobs and return at once, see :mod:`espnet3.parallel.detached`.
        async_specs_dir: their specifications and logs.
        async_result_dir: their results where there is no *output_dir*.
    """

    def __init__(
        self,
        provider: EnvironmentProvider,
        batch_size: int | None = None,
        output_dir: str | os.PathLike | None = None,
        *,
        shards: int | None = None,
        keys: Sequence[str] | Mapping[int, str] | None = None,
        weights: Sequence[float] | Mapping[int, float] | None = None,
        batch_weight: float | None = None,
        max_failures: int = 0,
        parallel: Mapping[str, Any] | ParallelConfig | None = None,
        name: str = "run",
        fingerprint: str = "",
        async_mode: bool = False,
        async_specs_dir: str | os.PathLike = "_async_specs",
        async_result_dir: str | os.PathLike = "_async_results",
    ):
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size: {batch_size} must be at least 1")
        self.provider, self.batch_size, self.batch_weight = provider, batch_size, batch_weight
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.shards, self.keys, self.weights = shards, keys, weights
        self.max_failures, self.name, self.fingerprint = max_failures, name, fingerprint
        self.parallel = ParallelConfig.of(parallel)
        self.async_mode = async_mode
        self.async_specs_dir, self.async_result_dir = Path(async_specs_dir), Path(async_result_dir)
        self.indices: list[int] = []
        self.plan: list[list[int]] = []
        self._env: dict[str, Any] | None = None

    # what a subclass writes

    @staticmethod
    def forward(idx: int | list[int], **env: Any) -> Any:
        """The result of one index, or a list of results for a list of indices where the runner is batched.

        The environment arrives by parameter name: ``def forward(idx, dataset, model, beam=5, **env)``.
        """
        raise NotImplementedError("a runner must implement the static method forward(idx, ...)")

    def open_writers(self, shard_dir: Path, **env: Any) -> Any:
        """Open a shard's files in *shard_dir*, for appending; overriding any hook makes the shard a folder."""
        return {"records": open(shard_dir / "records.jsonl", "a", encoding="utf-8")}

    def write_record(self, writers: Any, result: Any, state: dict, **env: Any) -> None:
        """Write one result. *state* is the shard's own: ``index``, ``count``, and whatever JSON the hooks keep."""
        writers["records"].write(to_json(result) + "\n")

    def close_writers(self, writers: Any, state: dict, **env: Any) -> None:
        """Close a shard's files."""
        for writer in writers.values():
            writer.close()

    def merge(self, shard_dirs: list[Path]) -> Any:
        """Make one result of the complete shards; its value is what ``runner(indices)`` returns.

        By default ``<output_dir>/<name>.jsonl``, in the order of the indices (without what was quarantined); with
        writer hooks, the list of the shards' folders.
        """
        if self._hooked():
            return shard_dirs
        return self.merge_lines(shard_dirs, self.output_dir / f"{self.name}.jsonl")

    def submit_hook(self, script: str, command: list[str]) -> tuple[str, list[str]]:
        """Change a job script, or the command that submits it, before it goes out; see docs/parallel.md.

        Args:
            script: the rendered job script.
            command: such as ``["sbatch", "--parsable"]``; the script's path follows it.
        """
        return script, command

    # running

    def __call__(self, indices: Iterable[int]) -> Any:
        """Run all *indices*.

        Returns:
            the results in the order of *indices* (None for a quarantined record), or what :meth:`merge` returns, or the
            list of ``{"job_id", "spec", "result"}`` of an asynchronous run.

        Raises:
            TooManyFailures: more than ``max_failures`` records failed.
        """
        indices = [int(index) for index in indices]
        if len(set(indices)) != len(indices):
            raise UserError(f"{self.name}: an index is given twice; give each record once")
        self.make_plan(indices)
        if self.async_mode:
            from espnet3.parallel.detached import submit

            return submit(self).listing()
        from espnet3.parallel.driver import run_shards

        return run_shards(self, indices)

    def make_plan(self, indices: list[int]) -> list[list[int]]:
        """Set and return the shards' indices."""
        self.indices = list(indices)
        count = self.shards if self.shards is not None else default_shards(len(indices))
        keys = [self.key(index) for index in indices]
        weights = [self.weights[index] if self.weights is not None else 1.0 for index in indices]
        self.plan = [[indices[at] for at in shard] for shard in plan_shards(keys, weights, count)]
        return self.plan

    def shard_path(self, rank: int) -> Path:
        """Where shard *rank* (from 0) goes."""
        suffix = "" if self._hooked() else ".jsonl"
        return self.output_dir / shard_name(rank + 1, len(self.plan), suffix)

    def run_shard(self, indices: Sequence[int], path: str | os.PathLike, *, keep: bool = False) -> ShardReport:
        """Run *indices*, in this process, into the one file (or, with writer hooks, folder) *path*.

        It is written as ``<path>.partial`` and renamed when complete. A run that was killed goes on after the last
        complete batch. What is quarantined is listed in ``<path>.failed.jsonl``.

        Args:
            keep: leave a *path* that exists as it is, instead of making it anew.

        Raises:
            TooManyFailures: more than ``max_failures`` of these records failed.
            UserError: the disk is full.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardLock(path):
            if keep and path.exists():
                failures = read_failures(path)
                first = f"{failures[0]['key']}: {failures[0]['error']}" if failures else None
                return ShardReport(str(path), len(indices) - len(failures), len(failures), first)
            return self._run_shard(list(indices), path)

    def collect_shard(self, indices: Sequence[int]) -> ShardReport:
        """Run *indices*, in this process, and return the results (None for a quarantined record)."""
        loop = RecordLoop(self.bound_forward(), lambda result: result, self.batched, self.key)
        results: dict[int, Any] = {}
        report = ShardReport(None, 0)
        for batch in plan_batches(indices, *self._limits()):
            records, failures = loop.run(batch)
            results.update(records)
            for failure in failures:
                logger.warning("%s: %s failed: %s", self.name, failure["key"], failure["error"])
                report.first_error = report.first_error or f"{failure['key']}: {failure['error']}"
            report.failed += len(failures)
            if report.failed > self.max_failures:
                break
        report.records, report.results = len(results), [results.get(index) for index in indices]
        return report

    def merge_lines(self, shards: Sequence[str | os.PathLike], output: str | os.PathLike) -> Path:
        """Join JSONL shards of this runner's plan into *output*, in the order of the indices."""
        lines: dict[int, bytes] = {}
        for indices, shard in zip(self.plan, shards, strict=True):
            bad = {failure["index"] for failure in read_failures(shard)}
            good = [index for index in indices if index not in bad]
            found = Path(shard).read_bytes().splitlines(keepends=True)
            if len(found) != len(good):
                raise UserError(f"{shard}: {len(found)} records where {len(good)} belong; delete it and run again")
            lines.update(zip(good, found, strict=True))
        with atomic_write(output, "wb") as handle:
            handle.writelines(lines[index] for index in self.indices if index in lines)
        return Path(output)

    # helpers

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_env": None}

    @property
    def batched(self) -> bool:
        """Whether ``forward`` gets lists."""
        return self.batch_size is not None or self.batch_weight is not None

    def key(self, index: int) -> str:
        """A record's name."""
        return str(self.keys[index]) if self.keys is not None else f"{index:012d}"

    def environment(self) -> dict[str, Any]:
        """This process's environment, built on first use."""
        if self._env is None:
            self._env = self.provider.build_env_local()
        return self._env

    def shard_fingerprint(self, indices: Sequence[int]) -> str:
        """A digest of what a shard's bytes depend on, as far as it can be known here."""
        keys = [self.key(index) for index in indices]
        return digest([*self.identity(), list(indices), keys, plan_batches(indices, *self._limits())])

    def identity(self) -> list:
        """The code and configuration behind the results, as JSON."""
        classes = [type(self), type(self.provider)]
        return [
            [f"{c.__module__}.{c.__qualname__}" for c in classes],
            [_source_digest(c) for c in classes],
            repr(plain(self.provider.config)),
            repr(self.provider.params),
            self.fingerprint,
        ]

    def bound_forward(self) -> Callable[[Any], Any]:
        """``forward`` with the environment filled in.

        Raises:
            UserError: it requires a name that the provider does not build.
        """
        return functools.partial(self.forward, **select_env(self.forward, self.environment()))

    def _limits(self) -> tuple:
        """The batch limits, as :func:`plan_batches` takes them."""
        return (self.batch_size if self.batched else 1), self.batch_weight, self.weights

    def _hooked(self) -> bool:
        hooks = ("open_writers", "write_record", "close_writers")
        return any(getattr(type(self), hook) is not getattr(BaseRunner, hook) for hook in hooks)

    def _run_shard(self, indices: list[int], path: Path) -> ShardReport:
        batches = plan_batches(indices, *self._limits())
        fingerprint = self.shard_fingerprint(indices)
        if self._hooked():
            shard: ShardFile = ShardFolder(path, batches, fingerprint, FSYNC_SECONDS, self, self.environment())
        else:
            shard = ShardFile(path, batches, fingerprint, FSYNC_SECONDS)
        loop = RecordLoop(self.bound_forward(), shard.encode, self.batched, self.key)
        with contextlib.ExitStack() as stack:
            stack.callback(shard.close)
            start = shard.open()
            attempts = Attempts(path, fingerprint, start)
            stack.callback(attempts.over)
            done = sum(map(len, batches[:start]))
            if done:
                logger.info("%s: goes on after %d of %d records", path.name, done, len(indices))
            told = time.monotonic()
            for batch in batches[start:]:
                records, failures = loop.run_carefully(batch, attempts) if attempts.careful else loop.run(batch)
                for failure in failures:
                    logger.warning("%s: %s failed: %s", path.name, failure["key"], failure["error"])
                if shard.failed + len(failures) > self.max_failures:
                    raise self._too_many(path, done, shard, failures)
                shard.write(records, failures)
                attempts.over()
                done += len(batch)
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    logger.info("%s: %d of %d records", path.name, done, len(indices))
            shard.finish()
        return ShardReport(str(path), len(indices) - shard.failed, shard.failed, shard.first_error)

    def _too_many(self, path: Path, done: int, shard: ShardFile, failures: list[dict]) -> TooManyFailures:
        count = shard.failed + len(failures)
        first = shard.first_error or f"{failures[0]['key']}: {failures[0]['error']}"
        error = TooManyFailures(
            f"{path}: {count} records failed and max_failures is {self.max_failures}; the first is {first}"
        )
        error.report = ShardReport(str(path), done - shard.failed, count, first)
        error.__cause__ = RuntimeError(failures[0]["traceback"])
        return error


@functools.cache
def _source_digest(kind: type) -> str:
    """A digest of the module that defines a class, so that a shard of other code is not taken up again."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[kind.__module__]).encode()).hexdigest()[:16]
    except (OSError, TypeError, KeyError):
        return ""
