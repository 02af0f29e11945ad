"""Private SLURM clusters, and Snakemake runs on them with the plugin's own executor and with ours, side by side."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
INTERVAL = {"slurm": "init_seconds_before_status_checks", "slurm-espnet3": "seconds_between_status_checks"}
PATIENCE = 300  # seconds for what does happen; on a busy machine a job's three Snakemakes take a minute to start
SCRIPT = REPOSITORY / "tests" / "slurm" / "slurm-cluster.sh"

# `hold` keeps a job until the test lets it go; `once` is lost in its first attempt only
SNAKEFILE = """
rule all:
    input: {targets}
    localrule: True
rule hold:
    output: "hold.txt"
    shell: "touch started; until test -e go; do sleep 0.3; done; echo done > {{output}}"
rule once:
    output: "once.txt"
    shell: "test -e started || {{{{ touch started; sleep 600; }}}}; echo done > {{output}}"
rule short:
    input: "hold.txt"
    output: "short.{{i}}.txt"
    shell: "echo done > {{output}}"
"""


def until(condition: Callable[[], object], what: str) -> object:
    """Wait until *condition* holds; its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain: {what}"
        time.sleep(0.3)
    return value


class Cluster:
    """A running private cluster."""

    def __init__(self, accounting: str):
        self.root = Path(tempfile.mkdtemp(prefix="slurm-x", dir="/tmp"))  # short: unix sockets lie below it
        self.accounting = accounting
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SNAKEMAKE_"))}
        packages = {name: value for name, value in os.environ.items() if name.startswith("SLURM_MINI_")}
        self.script_environment = {**inherited, **packages, "SLURM_MINI_ROOT": str(self.root)}
        self.environment = {
            **inherited,
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "SLURM_CONF": str(self.root / "etc" / "slurm.conf"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }

    def script(self, *arguments: str) -> subprocess.CompletedProcess:
        # files, not pipes: the daemons would hold a pipe open
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                ["bash", str(SCRIPT), *arguments], env=self.script_environment, stdout=output, stderr=output
            )
            output.seek(0)
            done.stdout = output.read()
        return done

    def up(self) -> None:
        done = self.script("up", "--acct", self.accounting)
        if done.returncode:
            self.down()
            reason = f"no private SLURM cluster: {done.stdout.strip()[-600:]}"
            if os.environ.get("ESPNET3_REQUIRE_SLURM") == "1":
                pytest.fail(reason)
            pytest.skip(reason)

    def down(self) -> None:
        self.script("down", "--purge")
        for process in Path("/proc").glob("[0-9]*"):  # of a job that was just starting
            with suppress(OSError):
                if f"SLURM_CONF={self.environment['SLURM_CONF']}\0".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def command(self, line: str) -> str:
        done = subprocess.run(line, shell=True, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def configure(self, **settings: int) -> None:
        """Write settings to slurm.conf: clients read them at once, daemons with their start or `scontrol reconfigure`."""
        file = self.root / "etc" / "slurm.conf"
        text = file.read_text()
        for name, value in settings.items():
            text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        file.write_text(text)

    def job(self, job_id: str) -> dict[str, str]:
        """The controller's facts about a job; the empty dict when it has forgotten it."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command(f"scontrol --oneliner show job {job_id}")))


class Run:
    """One Snakemake on a cluster, in a folder of its own."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        executor: str,
        targets: str,
        retries: int = 0,
        **settings: str | int | None,
    ):
        folder.mkdir(parents=True)
        (folder / "Snakefile").write_text(SNAKEFILE.format(targets=targets))
        self.cluster, self.folder, self.log = cluster, folder, folder / "log"
        # the plugin's best case is a first check after one second
        settings |= {INTERVAL[executor]: 1}
        command = [sys.executable, "-m", "snakemake", "--executor", executor, "--jobs", "20", "--latency-wait", "5"]
        command += ["--verbose", "--nocolor", "--retries", str(retries)]
        for name, value in settings.items():
            command += [f"--{executor}-{name.replace('_', '-')}", *([] if value is None else [str(value)])]
        command += ["--default-resources", "mem_mb=650", "runtime=10", "slurm_partition=cpu"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=cluster.environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def waits(self) -> bool:
        return self.process.poll() is None

    @property
    def jobs(self) -> list[str]:
        """The SLURM jobs it sent, in order."""
        return re.findall(r"has been submitted with SLURM jobid (\d+)", self.text)

    def started(self) -> bool:
        return (self.folder / "started").exists()

    def release(self) -> None:
        (self.folder / "go").touch()

    def ends(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            state = self.cluster.command("squeue --all --states=all; sinfo -N -l; sinfo -R")
            raise AssertionError(f"{self.folder.name} waits on: {self.jobs}\n{state}\n{self.text[-3000:]}") from None

    @property
    def rounds(self) -> int:
        """Status rounds that the plugin's executor has begun."""
        return self.text.count("Checking the status of ")

    def seconds_since_round(self) -> float:
        """Since the last line of the log."""
        return time.time() - self.log.stat().st_mtime

    def gives_up(self) -> bool:
        """Whether a status round of the plugin's executor failed, with all its attempts."""
        return bool(re.search(r"could not check status of job \S+ \(final attempt\)", self.text))

    def lost(self) -> bool:
        """Whether the plugin's executor has then found itself without a job to ask for."""
        return bool(re.search(r"\(final attempt\)[\s\S]*No active jobs; skipping", self.text))

    def content(self, name: str) -> str:
        return (self.folder / name).read_text()

    def noticed(self, rule: str, number: int = 0) -> float:
        """Seconds between the end of a rule's SLURM job and its being reported as finished."""
        block = re.compile(rf"\[([^\]]+)\]\nFinished jobid: (\d+) \(Rule: {rule}\)")
        stamp, internal = block.findall(self.text)[number]
        [job] = re.findall(rf"Job {internal} has been submitted with SLURM jobid (\d+)", self.text)
        end = datetime.fromisoformat(self.cluster.job(job)["EndTime"])
        return (datetime.strptime(stamp, "%a %b %d %H:%M:%S %Y") - end).total_seconds()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.waits:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
