"""Asynchronous runs as background processes of one machine, from Python and from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parallel_toys import Squares, Table

from espnet3.errors import UserError
from espnet3.parallel import BaseRunner, TooManyFailures
from espnet3.parallel.cli import main
from espnet3.parallel.detached import load_run

TWO = {"env": "local", "n_workers": 2}

DRIVER = """
import json, os, signal, sys
import parallel_toys as toys
faults, folder = json.loads(sys.argv[1]), sys.argv[2]
runner = toys.Squares(toys.Table(faults), output_dir=folder + "/out", shards=4, async_mode=True,
                      async_specs_dir=folder + "/specs", parallel={"env": "local", "n_workers": 2})
print(json.dumps(runner(range(faults["size"]))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def submit(tmp_path: Path, faults: dict, **settings) -> list[dict]:
    runner = Squares(
        Table(faults), async_mode=True, async_specs_dir=tmp_path / "specs", **{"parallel": TWO, "shards": 4, **settings}
    )
    return runner(range(faults["size"]))


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def alive_in_group(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(") ")[2].split()[:3]
        except OSError:
            continue
        if pgrp == str(group) and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_the_driver_is_killed_and_a_new_process_collects(tmp_path, capfd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    faults = {"size": 40, "gate": str(tmp_path / "gate"), "calls": str(tmp_path / "calls")}
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(faults), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert driver.returncode == -9
    jobs = json.loads(driver.stdout)
    assert len(jobs) == 4 and all(set(job) == {"job_id", "spec", "result"} for job in jobs)
    spec = json.loads(Path(jobs[2]["spec"]).read_text())
    assert Path(jobs[2]["spec"]).name.endswith("-r2.json")
    assert (spec["world_size"], spec["world_rank"], spec["result_path"]) == (4, 2, jobs[2]["result"])
    assert (spec["runner_cls"], spec["provider_cls"]) == ("parallel_toys:Squares", "parallel_toys:Table")
    assert spec["config"] == faults and len(spec["indices"]) == 10
    assert main(["status", str(tmp_path / "specs")]) == 3
    assert main(["collect", str(tmp_path / "specs"), "--partial", str(tmp_path / "so-far.jsonl")]) == 3
    assert not (tmp_path / "out/run.jsonl").exists()
    (tmp_path / "gate").touch()
    done = subprocess.run(
        [sys.executable, "-m", "espnet3.parallel.cli", "collect", "--wait", str(tmp_path / "specs")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "4 done" in done.stdout, done.stderr
    lines = (tmp_path / "out/run.jsonl").read_text().splitlines()
    assert [json.loads(line)["square"] for line in lines] == [i * i for i in range(40)]
    assert sorted(map(int, (tmp_path / "calls").read_text().split())) == list(range(40))


def test_a_killed_job_is_seen_and_only_it_is_resubmitted(tmp_path):
    faults = {"size": 40, "calls": str(tmp_path / "calls"), "kill_once": {"7": str(tmp_path / "dead")}}
    submit(tmp_path, faults, async_result_dir=tmp_path / "results")
    run = load_run(tmp_path / "specs")
    states = run.wait(0.1)
    (failed,) = [shard for shard in states if shard.state == "failed"]
    assert "SIGKILL" in failed.detail and sum(shard.state == "done" for shard in states) == 3
    partial = run.collect()
    assert not partial.complete and len(partial.result) == 30
    assert [job["spec"] for job in run.resubmit()] == [failed.spec]
    run.wait(0.1)
    collected = run.collect()
    assert collected.complete and [result["square"] for result in collected.result] == [i * i for i in range(40)]
    assert sorted(map(int, (tmp_path / "calls").read_text().split())) == sorted([*range(40), 7])


def test_a_failed_job_shows_its_first_error_and_bad_records_are_counted(tmp_path, capsys):
    submit(tmp_path, {"size": 20, "poison": [11]}, shards=2, output_dir=tmp_path / "out")
    run = load_run(tmp_path / "specs")
    run.wait(0.1)
    assert main(["status", str(run.path)]) == 1
    out = capsys.readouterr().out
    assert "1 done, 1 failed" in out and "record 11 is poison" in out
    assert main(["status", "--json", str(run.path)]) == 1
    assert {json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()} == {"done", "failed"}


def test_the_limit_of_failures_holds_over_all_shards(tmp_path):
    submit(tmp_path, {"size": 20, "poison": [0, 1]}, shards=2, output_dir=tmp_path / "out", max_failures=1)
    run = load_run(tmp_path / "specs")
    assert {shard.state for shard in run.wait(0.1)} == {"done"}
    with pytest.raises(TooManyFailures, match="2 records failed and max_failures is 1"):
        run.collect()
    assert main(["collect", str(run.path)]) == 2


def test_cancel_ends_the_processes_and_resubmit_goes_on(tmp_path):
    faults = {"size": 40, "gate": str(tmp_path / "gate"), "calls": str(tmp_path / "calls")}
    jobs = submit(tmp_path, faults, output_dir=tmp_path / "out")
    run = load_run(tmp_path / "specs")
    deadline = time.monotonic() + 60
    while sum(map(lines_in, (tmp_path / "out").glob("*.partial"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [shard.state for shard in run.status()] == ["running", "running", "queued", "queued"]
    assert run.cancel() == 4
    pid = int(jobs[0]["job_id"].split(":")[1])
    while alive_in_group(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive_in_group(pid)
    assert {shard.state for shard in run.status()} == {"failed"}
    (tmp_path / "gate").touch()
    assert len(run.resubmit()) == 4
    shards = run.wait(0.2)
    assert {shard.state for shard in shards} == {"done"}
    lines = run.collect().result.read_text().splitlines()
    assert [json.loads(line)["square"] for line in lines] == [i * i for i in range(40)]
    assert lines_in(tmp_path / "calls") == 42


def test_a_class_that_cannot_be_imported_is_refused_before_anything_is_submitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Local(BaseRunner):
        @staticmethod
        def forward(idx, **env):
            return idx

    with pytest.raises(UserError, match="move the class into a module"):
        Local(Table({"size": 2}), async_mode=True, async_specs_dir=tmp_path / "specs", parallel=TWO)(range(2))
    with pytest.raises(UserError, match="a configuration that is JSON"):
        submit(tmp_path, {"size": 2, "model": object()})
    with pytest.raises(UserError, match="no detached jobs on pbs"):
        submit(tmp_path, {"size": 2}, parallel={"env": "pbs"})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no asynchronous run here"):
        load_run(tmp_path)


def test_every_command_explains_itself(capsys):
    before = signal.getsignal(signal.SIGTERM)
    for command in ("status", "collect", "resubmit", "cancel", "run"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0 and len(capsys.readouterr().out) > 150
    assert main(["status", "/nonexistent/run-1.json"]) == 2
    assert capsys.readouterr().err.strip() == "error: /nonexistent/run-1.json: no such file"
    assert signal.getsignal(signal.SIGTERM) is before
