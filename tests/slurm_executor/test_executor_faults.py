"""Faults that the plugin's executor waits for in vain, and ours does not: each befalls both, side by side.

The runs of a group are begun together, because nearly all of the time is waiting.
"""

from __future__ import annotations

import signal
import time

import pytest
from slurm_runs import Cluster, Run, until


def begin(cluster: Cluster, start, name: str, targets: str, **settings) -> tuple[Run, Run]:
    """The same run with our executor and with the plugin's."""
    return tuple(start(cluster, name, executor, targets, **settings) for executor in ("slurm-espnet3", "slurm"))


def wait_until_started(*runs: Run) -> None:
    for run in runs:
        until(run.started, f"the job of {run.folder.name} has started")


@pytest.fixture(scope="module")
def node_runs(accounted: Cluster, start) -> tuple[Run, Run, Run]:
    """Three runs whose jobs were on a node that died."""
    accounted.configure(SlurmdTimeout=300)  # a busy machine is no dead node
    accounted.command("scontrol reconfigure")
    ours, plain = begin(accounted, start, "requeued", '"once.txt"', retries=1, status_command="sacct")
    profile = start(
        accounted, "node", "slurm-espnet3", '"once.txt"', retries=1, status_command="squeue", no_requeue=None
    )
    wait_until_started(ours, plain, profile)
    assert {accounted.job(run.jobs[0])["BatchHost"] for run in (ours, plain, profile)} == {"cpu1"}
    accounted.script("kill-node", "cpu1")
    accounted.command("scontrol update NodeName=cpu1 State=DOWN Reason=killed")  # spares the SlurmdTimeout
    return ours, plain, profile


@pytest.fixture(scope="module")
def cancelled_runs(accounted: Cluster, start, node_runs) -> tuple[Run, Run]:
    return begin(accounted, start, "cancelled", '"once.txt"', retries=1, status_command="sacct")


@pytest.fixture(scope="module")
def short_runs(accounted: Cluster, start, cancelled_runs) -> tuple[Run, Run]:
    wait_until_started(*cancelled_runs)
    shorts = '"short.1.txt", "short.2.txt"'
    return (
        start(accounted, "short", "slurm-espnet3", shorts, status_command="squeue"),
        start(accounted, "short", "slurm", '"hold.txt"', status_command="squeue"),
    )


def test_job_cancelled_by_user(accounted: Cluster, cancelled_runs, short_runs):
    """sacct calls it "CANCELLED by 0", which is none of the words that the plugin knows."""
    ours, plain = cancelled_runs
    accounted.command(f"scancel {ours.jobs[0]} {plain.jobs[0]}")
    until(lambda: "CANCELLED by" in accounted.command(f"sacct -nXPo State -j {plain.jobs[0]}"), "sacct knows")
    rounds = plain.rounds
    assert ours.ends() == 0
    assert ours.content("once.txt") == "done\n" and len(ours.jobs) == 2
    until(lambda: plain.rounds > rounds and plain.seconds_since_round() > 3, "the plugin has asked as well")
    assert plain.waits and len(plain.jobs) == 1
    plain.kill()


def test_node_dies(node_runs):
    """With the profile's settings: one error, and the retry elsewhere."""
    *_, ours = node_runs
    assert ours.ends() == 0
    assert ours.content("once.txt") == "done\n"
    assert len(ours.jobs) == 2 and ours.text.count("ended as NODE_FAIL") == 1


def test_node_dies_and_slurm_requeues(accounted: Cluster, node_runs):
    """The plugin reports an error for a job that will run again, and sends no job any more ("--exclude=None assigned")."""
    ours, plain, _ = node_runs
    (job,) = ours.jobs
    until(
        lambda: accounted.job(job)["Restarts"] == "1" or accounted.job(job)["JobState"] == "PENDING", "it is requeued"
    )
    accounted.command(f"scontrol update JobId={job} StartTime=now")  # SLURM waits two minutes
    assert ours.ends() == 0
    assert ours.content("once.txt") == "done\n"
    assert ours.jobs == [job] and "None assigned" not in ours.text
    assert plain.ends() != 0
    assert "Unable to open file assigned" in plain.text
    accounted.command(f"scancel {plain.jobs[0]}")  # the requeued job, of which the plugin has taken leave


@pytest.fixture(scope="module")
def held_runs(accounted: Cluster, start, short_runs) -> dict[str, tuple[Run, ...]]:
    """Runs for `outage_runs`, begun while the short ones wait."""
    accounted.script("start-node", "cpu1")
    status = {"accounting": "sacct", "forgotten": "squeue", "interrupted": "squeue", "outage": "squeue"}
    runs = {name: begin(accounted, start, name, '"hold.txt"', status_command=how) for name, how in status.items()}
    lost = start(accounted, "lost", "slurm-espnet3", '"once.txt"', retries=1, status_command="squeue")
    return {**runs, "lost": (lost,)}


def test_job_noticed_soon(short_runs, held_runs):
    """The plugin asks after 1, 11, 21, 31 ... s; ours after every second, here."""
    ours, plain = short_runs
    wait_until_started(ours, plain)
    rounds = max(plain.rounds, 1)
    until(lambda: plain.rounds > rounds, "the plugin has asked once more")
    for run in (ours, plain):
        run.release()
    assert ours.ends() == 0
    until(lambda: "(Rule: hold)" in plain.text, "the plugin notices the end of its job")
    late = [ours.noticed("hold"), *(ours.noticed("short", number) for number in range(2))]
    print(f"seconds from a job's end to its notice: ours {late}, the plugin {plain.noticed('hold')}")
    assert 2 * max(late) < plain.noticed("hold") > 10
    plain.kill()


@pytest.fixture(scope="module")
def outage_runs(accounted: Cluster, start, held_runs) -> dict[str, tuple[Run, ...]]:
    """Runs during which accounting stopped for good, and the controller for a minute, or until a round of the plugin failed."""
    runs = held_runs
    wait_until_started(*(run for pair in runs.values() for run in pair))
    accounted.configure(MinJobAge=3)
    accounted.command("scontrol reconfigure")
    accounted.configure(MessageTimeout=3)  # how long a client tries to reach a controller that is down
    # Snakemake's own machine sleeps, while SLURM finishes two jobs, cancels one and forgets them
    paused = (*runs["forgotten"], *runs["lost"])
    for run in paused:
        run.signal(signal.SIGSTOP)
    for run in (*runs["forgotten"], *runs["accounting"]):
        run.release()
    accounted.command(f"scancel {runs['lost'][0].jobs[0]}")
    accounted.script("stop-dbd")
    for run in paused:
        until(lambda run=run: not accounted.job(run.jobs[0]), "SLURM has forgotten the job")
    accounted.script("stop-ctld")
    back = time.monotonic() + 60
    runs["begun"] = begin(accounted, start, "begun", '"once.txt"', status_command="squeue")
    for run in runs["outage"]:
        run.release()
    for run in runs["begun"]:
        (run.folder / "started").touch()
    runs["begun"][1].ends()
    for name in ("accounting", "interrupted", "outage"):
        until(runs[name][1].gives_up, f"a status round of the plugin failed: {name}")
    accounted.configure(MessageTimeout=20)
    time.sleep(max(0.0, back - time.monotonic()))
    accounted.script("start-ctld")
    for run in paused:
        run.signal(signal.SIGCONT)
    return runs


def test_interrupt_after_outage(accounted: Cluster, outage_runs):
    """Ctrl-C cancels every job; the plugin forgets those that a failed round lost."""
    ours, plain = outage_runs["interrupted"]
    until(lambda: accounted.job(plain.jobs[0]).get("JobState") == "RUNNING", "the controller is back")
    for run in (ours, plain):
        run.signal(signal.SIGINT)
    assert ours.ends() != 0
    until(lambda: accounted.job(ours.jobs[0]).get("JobState") in ("CANCELLED", None), "our job is cancelled")
    until(lambda: "Terminating processes on user request" in plain.text, "the plugin has the signal")
    assert accounted.job(plain.jobs[0])["JobState"] == "RUNNING"


def test_accounting_stops(outage_runs):
    """sacct worked and does no more: ours asks squeue."""
    ours, plain = outage_runs["accounting"]
    assert ours.ends() == 0
    assert ours.content("hold.txt") == plain.content("hold.txt") == "done\n" and len(ours.jobs) == 1
    until(plain.lost, "the plugin has lost its job")
    assert plain.waits


def test_job_forgotten_by_slurm(outage_runs):
    """Older than MinJobAge: its files say how it ended."""
    ours, plain = outage_runs["forgotten"]
    assert ours.ends() == 0
    assert ours.content("hold.txt") == plain.content("hold.txt") == "done\n" and len(ours.jobs) == 1
    assert plain.waits


def test_job_forgotten_without_its_files(outage_runs):
    (ours,) = outage_runs["lost"]
    assert ours.ends() == 0
    assert "is unknown to SLURM, and its output files are missing" in ours.text
    assert ours.content("once.txt") == "done\n" and len(ours.jobs) == 2


def test_job_sent_while_controller_is_down(outage_runs):
    ours, plain = outage_runs["begun"]
    assert plain.process.returncode != 0 and "Unable to contact slurm controller" in plain.text
    assert ours.ends() == 0
    assert ours.content("once.txt") == "done\n"


def test_controller_down(outage_runs):
    """The jobs ended meanwhile; SLURM itself takes up to two minutes to hear of it."""
    ours, plain = outage_runs["outage"]
    assert ours.ends() == 0
    assert ours.content("hold.txt") == plain.content("hold.txt") == "done\n" and len(ours.jobs) == 1
    until(plain.lost, "the plugin has lost its job")
    assert plain.waits
