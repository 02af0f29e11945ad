"""Asynchronous runs: shards as detached jobs that need no living driver, and what can be asked of them later.

run = submit(runner)            # or runner(indices) with async_mode=True
run = load_run("_async_specs")  # any time later, from another process
run.status(); run.collect(); run.resubmit(); run.cancel(); run.wait()
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import read_json, read_jsonl, write_json
from espnet3.parallel import background, slurm
from espnet3.parallel.config import ParallelConfig
from espnet3.parallel.driver import discard_shard, failure_summary, prepare_folder
from espnet3.parallel.hook import submission_hook
from espnet3.parallel.runner import BaseRunner, TooManyFailures
from espnet3.parallel.shardfile import read_failures
from espnet3.parallel.spec import JobSpec, error_path, started_path

logger = logging.getLogger("espnet3.parallel")

ACTIVE = ("queued", "running", "unknown")


@dataclasses.dataclass
class ShardStatus:
    """How a shard stands.

    Attributes:
        state: ``done``, ``queued``, ``running``, ``failed`` (it ended without a result), ``lost`` (the scheduler knows
            nothing of it, and there is no result) or ``unknown`` (the scheduler cannot be asked).
        detail: the first error of a shard that failed, the scheduler's words otherwise.
    """

    rank: int
    state: str
    job_id: str | None
    detail: str
    spec: str
    result: str
    failed: int = 0


@dataclasses.dataclass
class Collected:
    """What :meth:`Run.collect` found: *result* of all shards when *complete*, else of those that are done."""

    complete: bool
    result: Any
    shards: list[ShardStatus]

    def summary(self) -> str:
        """``3 done, 1 failed`` and a line for each shard that has failed or is lost."""
        return summary(self.shards)


class Run:
    """An asynchronous run, as its file ``run-<hex>.json`` describes it."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.record = read_json(self.path)
        if not isinstance(self.record, dict) or "jobs" not in self.record:
            raise UserError(f"{self.path}: not the file of an asynchronous run (run-<hex>.json)")

    @property
    def jobs(self) -> list[dict]:
        """One entry a shard: ``job_id``, ``spec``, ``result``, ``log``."""
        return self.record["jobs"]

    @property
    def config(self) -> ParallelConfig:
        """The ``parallel:`` section that it was submitted with."""
        return ParallelConfig.of(self.record["parallel"])

    def listing(self) -> list[dict]:
        """``[{"job_id", "spec", "result"}]``, one a shard."""
        return [{key: job[key] for key in ("job_id", "spec", "result")} for job in self.jobs]

    def runner(self) -> BaseRunner:
        """The runner with its whole plan, built from the specifications."""
        specs = [JobSpec.read(job["spec"]) for job in self.jobs]
        runner = specs[0].runner()
        runner.output_dir = Path(self.record["output_dir"]) if self.record["output_dir"] else None
        runner.plan, runner.indices = [spec.indices for spec in specs], self.record["indices"]
        return runner

    def status(self) -> list[ShardStatus]:
        """Each shard's state: from its result, then its scheduler, then the error that it left."""
        self._find_lost_answers()
        try:
            known, detail = self._scheduler_jobs(), ""
        except slurm.Unreachable as error:
            known, detail = None, str(error)
        return [self._shard_status(rank, job, known, detail) for rank, job in enumerate(self.jobs)]

    def collect(self) -> Collected:
        """Merge what is done.

        When every shard is done this is the final result: what the runner's ``merge`` returns, or without an output
        folder the list of results. Before that, the results so far (a list), under no final name.

        Raises:
            TooManyFailures: the shards that are done have quarantined more than ``max_failures`` records.
        """
        shards = self.status()
        done = [shard for shard in shards if shard.state == "done"]
        runner = self.runner()
        failed = sum(shard.failed for shard in done)
        if failed > runner.max_failures:
            errors = {
                Path(shard.result).name: "{key}: {error}".format(**read_failures(shard.result)[0])
                for shard in done
                if shard.failed
            }
            raise TooManyFailures(failure_summary(runner.name, failed, runner.max_failures, errors))
        complete = len(done) == len(shards)
        if complete and runner.output_dir is not None:
            return Collected(True, runner.merge([Path(shard.result) for shard in shards]), shards)
        values: dict[int, Any] = {}
        for shard in done:
            if Path(shard.result).is_file():
                bad = {failure["index"] for failure in read_failures(shard.result)}
                good = [index for index in runner.plan[shard.rank] if index not in bad]
                values.update(zip(good, read_jsonl(shard.result), strict=True))
        wanted = runner.indices if complete else [index for index in runner.indices if index in values]
        return Collected(complete, [values.get(index) for index in wanted], shards)

    def resubmit(self) -> list[dict]:
        """Submit again what failed or is lost, and nothing else; a killed shard goes on where it stopped.

        Returns:
            the entries of :meth:`listing` that were submitted.
        """
        shards = self.status()
        runner = self.runner()
        wanted = [shard.rank for shard in shards if shard.state in ("failed", "lost")]
        if sum(shard.failed for shard in shards) > runner.max_failures:
            for shard in shards:
                if shard.state == "done" and shard.failed:
                    discard_shard(Path(shard.result))
                    wanted.append(shard.rank)
        self.submit(runner, sorted(wanted))
        return [self.listing()[rank] for rank in sorted(wanted)]

    def cancel(self) -> int:
        """Cancel what is queued or running; how many shards that were."""
        active = [shard for shard in self.status() if shard.state in ("queued", "running") and shard.job_id]
        engine = slurm if self.config.env == "slurm" else background
        engine.cancel([shard.job_id for shard in active])
        return len(active)

    def wait(self, poll_seconds: float = 2.0, timeout: float | None = None) -> list[ShardStatus]:
        """Wait until nothing is queued or running any more (or *timeout* seconds); the last status."""
        started = told = time.monotonic()
        while True:
            shards = self.status()
            now = time.monotonic()
            if not any(shard.state in ACTIVE for shard in shards) or (timeout and now - started > timeout):
                return shards
            if now - told > 10:
                told = now
                logger.info("%s: %s", self.record["name"], summary(shards).splitlines()[0])
            time.sleep(poll_seconds)

    def submit(self, runner: BaseRunner, ranks: Sequence[int]) -> None:
        """Submit the jobs of these shards."""
        if not ranks:
            return
        config, folder = self.config, self.path.parent
        for rank in ranks:
            error_path(self.jobs[rank]["spec"]).unlink(missing_ok=True)
            started_path(self.jobs[rank]["spec"]).unlink(missing_ok=True)
        size = slurm.max_array_size() if config.env == "slurm" else len(ranks)
        hook = submission_hook(config, runner.submit_hook)
        for chunk in slurm.chunks(ranks, size):
            tag = f"{self.record['hex']}-{len(self.record['arrays'])}"
            specs = [self.jobs[rank]["spec"] for rank in chunk]
            array = slurm.Array(folder, tag, self.record["name"], specs)
            self.record["arrays"].append({"job_name": array.job_name, "ranks": list(chunk)})
            for number, rank in enumerate(chunk):
                self.jobs[rank].update(job_id=None, log=str(slurm.log_path(array, config, number)))
            # before the submission: whoever is killed between it and the next line can still find the jobs by name
            self.save()
            if config.env == "slurm":
                array_id = slurm.submit(array, config, hook)
                ids = [f"{array_id}_{number}" for number in range(len(chunk))]
            else:
                ids = background.submit(folder, tag, specs, config)
            for rank, job_id in zip(chunk, ids, strict=True):
                self.jobs[rank]["job_id"] = job_id
                if config.env != "slurm":
                    self.jobs[rank]["log"] = str(background.log_path(self.jobs[rank]["spec"]))
            self.save()

    def save(self) -> None:
        """Write the run's file."""
        write_json(self.path, self.record)

    def _scheduler_jobs(self) -> dict[str, slurm.Job]:
        ids = {job["job_id"]: job["spec"] for job in self.jobs if job["job_id"] and not Path(job["result"]).exists()}
        if not ids:
            return {}
        return slurm.jobs(ids) if self.config.env == "slurm" else background.jobs(ids)

    def _find_lost_answers(self) -> None:
        """Job ids that a killed driver did not live to write down."""
        if self.config.env != "slurm":
            return
        for array in self.record["arrays"]:
            missing = [rank for rank in array["ranks"] if self.jobs[rank]["job_id"] is None]
            if missing and any(not Path(self.jobs[rank]["result"]).exists() for rank in missing):
                try:
                    array_id = slurm.find_array(array["job_name"])
                except UserError:
                    return
                if array_id:
                    for number, rank in enumerate(array["ranks"]):
                        self.jobs[rank]["job_id"] = f"{array_id}_{number}"
                    self.save()

    def _shard_status(self, rank: int, job: dict, known: dict[str, slurm.Job] | None, said: str) -> ShardStatus:
        made = ShardStatus(rank, "lost", job["job_id"], "", job["spec"], job["result"])
        # asked after the scheduler: a job that ended in between has its result by now
        if Path(job["result"]).exists():
            made.state, made.failed = "done", len(read_failures(job["result"]))
            made.detail = f"{made.failed} records quarantined" if made.failed else ""
            return made
        if known is None:
            made.state, made.detail = "unknown", said
            return made
        scheduled = known.get(job["job_id"] or "")
        if scheduled is not None and scheduled.state in ACTIVE:
            made.state, made.detail = scheduled.state, scheduled.detail
        elif error_path(job["spec"]).exists():
            made.state, made.detail = "failed", read_json(error_path(job["spec"]))["error"]
        elif scheduled is not None:
            made.state, made.detail = "failed", _join(scheduled.detail, last_words(job.get("log")))
        else:
            never = "it was never submitted" if job["job_id"] is None else "the scheduler does not know it"
            made.detail = _join(never, last_words(job.get("log")))
        return made


def submit(runner: BaseRunner) -> Run:
    """Submit a planned runner's shards as detached jobs; those whose result is already there are left alone.

    Raises:
        UserError: the engine has no detached jobs, a class or the configuration cannot travel, or sbatch refuses.
    """
    config = runner.parallel
    if config.env not in ("local", "multiprocessing", "dask", "slurm"):
        raise UserError(f"parallel.env: no detached jobs on {config.env}; use slurm, or local for this machine")
    folder, code, ranks = runner.async_specs_dir.absolute(), secrets.token_hex(4), range(len(runner.plan))
    if runner.output_dir is not None:
        results = [runner.shard_path(rank).absolute() for rank in ranks]
    else:
        results = [runner.async_result_dir.absolute() / f"result-{code}-r{rank}.jsonl" for rank in ranks]
    specs = [JobSpec.of(runner, rank, results[rank]) for rank in ranks]
    folder.mkdir(parents=True, exist_ok=True)
    if runner.output_dir is not None:
        prepare_folder(runner, [str(path) for path in results])
    jobs = []
    for rank, spec in enumerate(specs):
        path = folder / f"spec-{code}-r{rank}.json"
        spec.write(path)
        jobs.append({"job_id": None, "spec": str(path), "result": str(results[rank]), "log": None})
    record = {
        "name": runner.name,
        "hex": code,
        "parallel": dataclasses.asdict(config),
        "output_dir": str(runner.output_dir.absolute()) if runner.output_dir is not None else None,
        "indices": runner.indices,
        "created": time.time(),
        "arrays": [],
        "jobs": jobs,
    }
    write_json(folder / f"run-{code}.json", record)
    run = Run(folder / f"run-{code}.json")
    run.submit(runner, [rank for rank in ranks if not results[rank].exists()])
    logger.info("%s: %d shards submitted; python -m espnet3 shards status %s", runner.name, len(jobs), run.path)
    return run


def load_run(path: str | os.PathLike) -> Run:
    """A run by its file, or the only run of a specifications folder."""
    path = Path(path)
    if not path.is_dir():
        return Run(path)
    runs = sorted(path.glob("run-*.json"), key=lambda run: run.stat().st_mtime)
    if not runs:
        raise UserError(f"{path}: no asynchronous run here (run-<hex>.json)")
    if len(runs) > 1:
        raise UserError(f"{path}: {len(runs)} runs here, name one; the newest is {runs[-1]}")
    return Run(runs[0])


def summary(shards: Sequence[ShardStatus]) -> str:
    """``3 done, 1 failed`` and a line for each shard that has failed or is lost."""
    counts = collections.Counter(shard.state for shard in shards)
    lines = [", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no shards"]
    for shard in shards:
        if shard.state in ("failed", "lost", "unknown"):
            lines.append(f"  {Path(shard.result).name} ({shard.job_id or 'no job'}): {shard.state}: {shard.detail}")
    return "\n".join(lines)


def last_words(log: str | None) -> str:
    """The last line of a job's log, which is where a scheduler says that it has ended the job."""
    if not log or not Path(log).exists():
        return ""
    with open(log, "rb") as handle:
        handle.seek(max(0, os.path.getsize(log) - 4096))
        lines = handle.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
