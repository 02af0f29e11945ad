"""Detached shards and Dask workers on a real SLURM, with the faults that clusters have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parallel_toys import Squares, Table

from espnet3.errors import UserError
from espnet3.parallel import slurm as slurm_engine
from espnet3.parallel.cli import main
from espnet3.parallel.detached import Run, load_run

OPTIONS = {"queue": "cpu", "memory": "500MB", "job_extra_directives": ["--no-requeue"]}
HOOK = {"submit": {"_target_": "parallel_toys.add_comment", "comment": "night-shift"}, "allow": ["parallel_toys"]}


def section(**changes) -> dict:
    return {"env": "slurm", "n_workers": 8, "options": OPTIONS, **changes}


def submit(tmp_path: Path, faults: dict, parallel: dict | None = None, **settings) -> Run:
    Squares(
        Table(faults),
        output_dir=tmp_path / "out",
        **{"shards": 4, **settings},
        parallel=parallel or section(),
        async_mode=True,
        async_specs_dir=tmp_path / "specs",
    )(range(faults["size"]))
    return load_run(tmp_path / "specs")


def squares(path: Path) -> list[int]:
    return [json.loads(line)["square"] for line in path.read_text().splitlines()]


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def reference(tmp_path: Path, size: int, shards: int) -> bytes:
    return Squares(Table({"size": size}), output_dir=tmp_path / "reference", shards=shards)(range(size)).read_bytes()


def test_many_short_shards_go_out_as_one_array(slurm, tmp_path):
    started = time.monotonic()
    run = submit(tmp_path, {"size": 200}, shards=50, parallel=section(n_workers=12))
    assert len({job["job_id"].split("_")[0] for job in run.jobs}) == 1
    run.wait(0.5)
    took = time.monotonic() - started
    assert run.collect().result.read_bytes() == reference(tmp_path, 200, 50)
    assert took < 60, f"{took:.0f} s for 50 short shards"


def test_scancel_of_one_task_then_resubmit_runs_only_that(slurm, tmp_path, capsys):
    calls = tmp_path / "calls"
    gate = tmp_path / "gate"
    run = submit(tmp_path, {"size": 40, "gate": str(gate), "calls": str(calls)})
    victim = run.jobs[2]
    partial = Path(victim["result"] + ".partial")
    slurm.wait_for(lambda: lines_in(partial) == 5)
    slurm.command("scancel", victim["job_id"])
    slurm.wait_for(lambda: run.status()[2].state == "failed")
    gate.touch()
    assert main(["collect", "--wait", str(run.path)]) == 1
    out = capsys.readouterr().out
    assert "3 done, 1 failed" in out and f"({victim['job_id']}): failed: CANCELLED" in out
    assert lines_in(partial) == 5
    assert main(["resubmit", str(run.path)]) == 0
    assert "1 shards submitted again" in capsys.readouterr().out
    assert main(["collect", "--wait", str(run.path)]) == 0
    merged = tmp_path / "out/run.jsonl"
    assert merged.read_bytes() == reference(tmp_path, 40, 4)
    # only the record in hand was begun twice
    assert len(calls.read_text().split()) == 41


def test_a_node_that_dies(slurm, tmp_path):
    calls, gate = tmp_path / "calls", tmp_path / "gate"
    run = submit(tmp_path, {"size": 40, "gate": str(gate), "calls": str(calls)}, section(n_workers=12))
    slurm.wait_for(lambda: all(lines_in(Path(job["result"] + ".partial")) == 5 for job in run.jobs))
    node = slurm.command("squeue", "--noheader", "--format=%N", "--jobs", run.jobs[1]["job_id"]).strip()
    there = slurm.command("squeue", "--noheader", "--array", "--format=%i", "--nodelist", node).split()
    slurm.control("kill-node", node)
    gate.touch()
    try:
        shards = run.wait(1, timeout=120)
        failed = {shard.job_id for shard in shards if shard.state == "failed"}
        assert failed == set(there), [vars(shard) for shard in shards]
        assert all("NODE_FAIL" in shard.detail for shard in shards if shard.state == "failed")
        assert {job["result"] for job in run.resubmit()} == {s.result for s in shards if s.state == "failed"}
        run.wait(0.5)
        assert squares(run.collect().result) == [i * i for i in range(40)]
        assert len(calls.read_text().split()) == 40 + len(there)
    finally:
        slurm.control("start-node", node)
        slurm.wait_for(lambda: node in slurm.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split(), 60)


DRIVER = """
import json, sys
import parallel_toys as toys
faults, folder, parallel = json.loads(sys.argv[1])
toys.Squares(toys.Table(faults), output_dir=folder + "/out", shards=4, async_mode=True,
             async_specs_dir=folder + "/specs", parallel=parallel)(range(faults["size"]))
"""


@pytest.mark.parametrize("moment", ["after sbatch", "at the end"])
def test_the_driver_is_killed_and_a_new_process_collects(slurm, tmp_path, monkeypatch, moment):
    if moment == "after sbatch":
        # the jobs are in the queue, and nobody has lived to write their number down
        (tmp_path / "bin").mkdir()
        wrapper = tmp_path / "bin/sbatch"
        wrapper.write_text(f'#!/bin/sh\n{slurm.root}/bin/sbatch "$@" > /dev/null\nkill -9 $PPID\n')
        wrapper.chmod(0o755)
        driver = DRIVER
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
    else:
        driver, path = DRIVER + "import os; os.kill(os.getpid(), 9)", os.environ["PATH"]
    toys = Path(__file__).parents[1] / "parallel"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(toys), *sys.path])}
    faults = {"size": 40, "sleep": 0.05, "calls": str(tmp_path / "calls")}
    arguments = json.dumps([faults, str(tmp_path), section()])
    assert subprocess.run([sys.executable, "-c", driver, arguments], env=environment).returncode == -9
    environment["PATH"] = os.environ["PATH"]
    command = [sys.executable, "-m", "espnet3.parallel.cli"]
    states = subprocess.run(
        [*command, "status", str(tmp_path / "specs")], env=environment, capture_output=True, text=True
    )
    assert states.returncode in (0, 3), states.stdout
    done = subprocess.run([*command, "collect", "--wait", str(tmp_path / "specs")], env=environment)
    assert done.returncode == 0
    assert squares(tmp_path / "out/run.jsonl") == [i * i for i in range(40)]
    assert sorted(map(int, (tmp_path / "calls").read_text().split())) == list(range(40))


def test_a_failing_job_shows_its_first_error_and_a_full_queue_its_reason(slurm, tmp_path):
    run = submit(tmp_path, {"size": 8, "poison": [5]}, shards=2)
    (failed,) = [shard for shard in run.wait(0.3) if shard.state == "failed"]
    assert "000000000005: ValueError: record 5 is poison" in failed.detail
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition"):
        submit(tmp_path / "other", {"size": 8}, section(options={"queue": "nowhere"}))


def test_the_hook_changes_the_comment_and_the_script_of_an_array(slurm, tmp_path):
    run = submit(tmp_path, {"size": 8, "gate": str(tmp_path / "gate")}, section(**HOOK))
    job = run.jobs[0]["job_id"]
    slurm.wait_for(lambda: run.status()[0].state == "running")
    shown = slurm.command("scontrol", "show", "job", job)
    assert "Comment=night-shift" in shown
    slurm.command("scontrol", "write", "batch_script", job, str(tmp_path / "script.sh"))
    assert "# changed by the hook\n" in (tmp_path / "script.sh").read_text()
    (tmp_path / "gate").touch()
    run.wait(0.3)
    assert run.collect().complete


class Asking(Squares):
    """Its own hook, and records that ask SLURM about their job."""

    @staticmethod
    def forward(idx, table):
        job = os.environ["SLURM_JOB_ID"]
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
        name = f"/tmp/script-{os.getuid()}-{job}-{idx}.sh"
        subprocess.run(["scontrol", "write", "batch_script", job, name], capture_output=True)
        script = Path(name).read_text()
        Path(name).unlink()
        return re.search(r"Comment=(\S*)", shown)[1], "# changed by the hook" in script, table[idx]

    def submit_hook(self, script, command):
        return script.replace("\nexport ", "\n# changed by the hook\nexport ", 1), [*command, "--comment=by-method"]


DASK = {**OPTIONS, "memory": "700MB", "scheduler_options": {"host": "127.0.0.1"}}


def test_dask_jobs_go_through_the_hook_and_give_the_same_bytes(slurm, tmp_path):
    options = {**DASK, "log_directory": str(tmp_path)}
    two = {"env": "slurm", "n_workers": 2, "options": options}
    results = Asking(Table({"size": 6}), shards=3, parallel=two)(range(6))
    assert {(comment, changed) for comment, changed, _ in results} == {("by-method", True)}
    merged = Squares(Table({"size": 40}), output_dir=tmp_path / "out", shards=4, parallel=two)(range(40))
    assert merged.read_bytes() == reference(tmp_path, 40, 4)
    slurm.wait_for(lambda: not slurm.command("squeue", "--noheader").strip(), 20)  # no job is left behind


def test_a_dask_job_that_is_cancelled_is_replaced(slurm, tmp_path):
    calls, gate = tmp_path / "calls", tmp_path / "gate"
    faults = {"size": 40, "gate": str(gate), "calls": str(calls)}
    code = (
        "import json, sys, parallel_toys as toys\n"
        "faults, folder, parallel = json.loads(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    toys.Squares(toys.Table(faults), output_dir=folder, shards=4, parallel=parallel)(range(40))\n"
    )
    one = {"env": "slurm", "n_workers": 1, "options": {**DASK, "log_directory": str(tmp_path)}}
    toys = Path(__file__).parents[1] / "parallel"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(toys), *sys.path])}
    environment["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "1s"  # 15 s otherwise
    arguments = json.dumps([faults, str(tmp_path / "out"), one])
    driver = subprocess.Popen([sys.executable, "-c", code, arguments], env=environment)
    try:
        slurm.wait_for(lambda: lines_in(calls) == 6)
        (job,) = slurm.command("squeue", "--noheader", "--format=%i").split()
        slurm.command("scancel", job)  # the only worker
        # the gate is closed: these are another worker's
        slurm.wait_for(lambda: lines_in(calls) > 6, 120)
        gate.touch()
        assert driver.wait(180) == 0
    finally:
        driver.kill()
    assert squares(tmp_path / "out/run.jsonl") == [i * i for i in range(40)]
    # the record in hand is all that is done twice
    assert lines_in(calls) == 41


def test_dask_says_when_no_job_is_accepted(slurm, tmp_path):
    refused = {"env": "slurm", "n_workers": 1, "options": {**DASK, "queue": "nowhere"}}
    with pytest.raises(UserError, match=r"no job was accepted: .*invalid partition"):
        Squares(Table({"size": 4}), parallel=refused)(range(4))


def test_gpu_jobs_see_their_own_devices(slurm, tmp_path):
    options = {**OPTIONS, "queue": "gpu", "job_extra_directives": ["--gres=gpu:1"]}
    Devices(
        Table({"size": 4}),
        output_dir=tmp_path / "out",
        shards=2,
        parallel=section(options=options),
        async_mode=True,
        async_specs_dir=tmp_path / "specs",
    )(range(4))
    run = load_run(tmp_path / "specs")
    run.wait(0.3)
    seen = {json.loads(line) for line in run.collect().result.read_text().splitlines()}
    assert seen <= {"0", "1"} and seen


class Devices(Squares):
    @staticmethod
    def forward(idx):
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_with_accounting_old_states_come_from_sacct_and_large_arrays_are_cut(accounting, tmp_path):
    run = submit(tmp_path, {"size": 60, "gate": str(tmp_path / "gate")}, section(n_workers=2), shards=6)
    arrays = [job["job_id"].split("_") for job in run.jobs]
    assert [number for _, number in arrays] == ["0", "1", "2", "3", "0", "1"] and len({base for base, _ in arrays}) == 2
    accounting.wait_for(lambda: run.status()[0].state == "running")
    time.sleep(1)
    assert run.cancel() == 6
    bases = sorted({base for base, _ in arrays})

    def recorded():
        records = slurm_engine._sacct(bases)
        # the two tasks of the first array that never began are one record
        wanted = (bases[0], f"{bases[0]}_0")
        return all(job_id in records and records[job_id].state == "ended" for job_id in wanted) and records

    records = accounting.wait_for(recorded, 30)
    assert {records[bases[0]].detail, records[f"{bases[0]}_0"].detail} == {"CANCELLED"}  # sacct says CANCELLED by 0
    shards = run.wait(0.2)
    assert all(shard.state == "failed" and shard.detail.startswith("CANCELLED") for shard in shards)
    (tmp_path / "gate").touch()
    assert len(run.resubmit()) == 6
    run.wait(0.5)
    assert squares(run.collect().result) == [i * i for i in range(60)]
    # a controller that does not answer is no reason to call a shard lost
    broken = {"PATH": str(tmp_path)}
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    for job in run.jobs:
        Path(job["result"]).unlink()
    old = os.environ["PATH"]
    os.environ.update(broken)
    try:
        shards = run.status()
    finally:
        os.environ["PATH"] = old
    assert {shard.state for shard in shards} == {"unknown"} and "Unable to contact" in shards[0].detail


def test_without_accounting_sacct_says_nothing(slurm, tmp_path):
    assert slurm_engine._sacct(["1"]) == {}
    assert slurm_engine.jobs(["999_0"]) == {}
