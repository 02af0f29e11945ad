"""Snakemake's SLURM executor with status rounds that cannot lose a job; docs/slurm.md lists what it mends.

Jobs are sent by the plugin's own executor (snakemake-executor-plugin-slurm 2.8.0) and run by its slurm-jobstep. What is
here: the questions about the jobs' states, their cancelling, and the wait for a controller that is down.
"""

import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmExecutorSettings
from snakemake_executor_plugin_slurm import common_settings
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_slurm_espnet3.runs import RunRecord, ask, await_jobs_of_killed_runs

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

QUERIES = {
    "squeue": "squeue --all --states=all --noheader --name {name} --format '%i|%T|%r|%N'",
    "sacct": "sacct -X --parsable2 --noheader --clusters all --starttime {since:%Y-%m-%dT%H:00} --endtime now "
    "--name {name} --format JobIdRaw,State,Reason,NodeList",
}
ROW = re.compile(r"^(\w+)\|(\w+)[^|]*\|(.*)\|(.*)$", re.MULTILINE)  # of "CANCELLED by 0" the first word
FAILED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
UNLISTED_ROUNDS = 3  # an accounting database lists a new job some seconds late
PATIENCE = 60  # questions, ten seconds apart, before a job is sent to a controller that seems to be down


@dataclass
class ExecutorSettings(SlurmExecutorSettings):
    """The plugin's settings, of which init_seconds_before_status_checks and status_attempts mean nothing here."""

    seconds_between_status_checks: int = field(
        default=5, metadata={"help": "Seconds from one status check to the next, always the same."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.array_jobs:
            raise WorkflowError("slurm-espnet3-array-jobs: the plugin's job arrays lose jobs; use the setting no more.")
        if self.seconds_between_status_checks < 1:
            raise WorkflowError("slurm-espnet3-seconds-between-status-checks must be 1 or more.")


class Executor(SlurmExecutor):
    """Waits for every job until SLURM, or the job's own files, say how it ended."""

    def __post_init__(self, test_mode: bool = False):
        super().__post_init__(test_mode)
        self._cancelled = threading.Event()
        self._sent: dict = {}  # job: when it was handed to sbatch
        self._silent: set[str] = set()  # programs that did not answer when last asked
        try:
            await_jobs_of_killed_runs(self.logger.warning)
        except RuntimeError as error:
            raise WorkflowError(str(error)) from None
        self._record = RunRecord(self.run_uuid)

    def run_job(self, job):
        for question in range(PATIENCE):  # sbatch would fail, and so would the retries, one straight after the other
            answered, text = ask("scontrol ping")
            if answered or " UP" in text:  # it fails where one of two controllers is down
                break
            if not question:
                self.logger.warning("The SLURM controller does not answer: jobs are sent when it does.")
            if self._cancelled.wait(10):
                break
        if not self._cancelled.is_set():
            self._sent[job] = time.time()
            super().run_job(job)

    def cancel_jobs(self, active_jobs):
        """Cancel by the run's name: that takes in the jobs a status round holds, and those just being sent."""
        self._cancelled.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        clusters = f" --clusters {','.join(self._submitted_job_clusters)}" if self._submitted_job_clusters else ""
        command = f"scancel --name {self.run_uuid}{clusters}"
        answered, text = ask(command)
        if not answered:
            self._record = None  # stays for the next run to find
            self.logger.error(f"SLURM does not answer, jobs may run on ({text.strip()}). When it does: {command}")

    def shutdown(self):
        super().shutdown()
        if self._record:
            self._record.forget()

    async def check_active_jobs(self, active_jobs):
        settings = self.workflow.executor_settings
        self.next_seconds_between_status_checks = settings.seconds_between_status_checks
        answers: dict = {}
        for info in active_jobs:
            done, why = await self._fate(info, answers)
            if done is None:
                yield info
            elif done:
                self.report_job_success(info)
                if not settings.keep_successful_logs:
                    with suppress(OSError):
                        info.aux["slurm_logfile"].unlink()
            else:
                message = f"SLURM job {info.external_jobid} {why}. "
                self.report_job_error(info, msg=message, aux_logs=[str(info.aux["slurm_logfile"])])

    async def _fate(self, info, answers: dict) -> tuple[bool | None, str]:
        """True for a finished job, False and the reason for a failed one, None for one that SLURM still has."""
        order = ("sacct", "squeue") if self.get_status_command() == "sacct" else ("squeue", "sacct")
        listed = next((jobs for program in order if (jobs := self._list(program, answers)) is not None), None)
        if listed is None:
            return None, ""
        state, _ = listed.get(info.external_jobid, ("", ""))
        info.aux["unlisted"] = 0 if state else info.aux.get("unlisted", 0) + 1
        if state in FAILED or info.aux["unlisted"] >= UNLISTED_ROUNDS:
            return await self._verdict(info, answers)
        return (True if state == "COMPLETED" else None), ""

    async def _verdict(self, info, answers: dict) -> tuple[bool | None, str]:
        """As `_fate`, by the controller: accounting calls a job failed that is being requeued, or still being ended."""
        queue = self._list("squeue", answers)
        if queue is None:
            return None, ""
        state, why = queue.get(info.external_jobid, ("", ""))
        if not state:  # forgotten after MinJobAge, or renamed
            _, text = ask(f"scontrol --oneliner show job {info.external_jobid}")
            if known := re.search(r"JobState=(\w+)", text):
                state = known[1]
            elif "Invalid job id" not in text:
                return None, ""
            else:
                state, why = (self._list("sacct", answers) or {}).get(info.external_jobid, ("", ""))
                if state not in FAILED | {"COMPLETED"}:
                    why = "is unknown to SLURM, and its output files are missing or incomplete"
                    return await self._left_its_files(info.job), why
        return (True if state == "COMPLETED" else False if state in FAILED else None), f"ended as {state}{why}"

    def _list(self, program: str, answers: dict) -> dict[str, tuple[str, str]] | None:
        """``{job: (state, reason and nodes)}`` of this run by *program*, asked once a round; None: no answer."""
        if program not in answers:
            query = QUERIES[program].format(name=self.run_uuid, since=datetime.now() - timedelta(days=2))
            answered, text = ask(query)
            rows = ROW.findall(text)
            jobs = {job: (state, f" ({reason}; {nodes or 'no node'})") for job, state, reason, nodes in rows}
            answers[program] = jobs if answered else None
            if answered == (program in self._silent):
                self._silent ^= {program}
                news = "answers again" if answered else f"does not answer; no job is given up for that ({text.strip()})"
                self.logger.warning(f"{program} {news}.")
        return answers[program]

    async def _left_its_files(self, job) -> bool:
        """Whether its output files are there, newer than the submission, and not marked as incomplete by Snakemake."""
        persistence = self.workflow.persistence
        persistence._clear_cache()  # the Snakemake inside the job takes the mark away when all went well
        try:
            fresh = all(os.stat(file).st_mtime >= self._sent[job] for file in job.output)
        except OSError:
            return False
        return fresh and not any([await persistence.incomplete(part) for part in (job if job.is_group() else [job])])
