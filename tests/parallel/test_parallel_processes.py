"""Worker processes: replaced when they die, one GPU each, no guard needed in the main script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from parallel_toys import BatchedSquares, Squares, Table

from espnet3.errors import UserError
from espnet3.parallel import EnvironmentProvider, TooManyFailures, parallel_map

TWO = {"env": "multiprocessing", "n_workers": 2}


def children_of(pid: int) -> list[int]:
    """The worker processes that *pid* has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(") ")[2].split()[1] if entry.name.isdigit() else ""
            if parent == str(pid) and b"processes import serve" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("env", ["multiprocessing", "dask"])
def test_kill_9_of_a_worker_mid_shard_loses_nothing_and_doubles_nothing(tmp_path, env):
    calls = tmp_path / "calls"
    faults = {"size": 40, "calls": str(calls), "kill_once": {"7": str(tmp_path / "dead")}}
    settings = {"shards": 4, "parallel": {**TWO, "env": env}}
    merged = Squares(Table(faults), output_dir=tmp_path / "out", **settings)(range(40))
    assert (tmp_path / "dead").exists()
    assert [json.loads(line)["square"] for line in merged.read_text().splitlines()] == [i * i for i in range(40)]
    counts = [int(line) for line in calls.read_text().splitlines()]
    # the record in hand is begun again, and none of those before it
    assert sorted(counts) == sorted([*range(40), 7])


def test_a_worker_killed_from_outside_is_replaced():
    killed = []

    def killer():
        while not killed:
            for pid in children_of(os.getpid())[:1]:
                time.sleep(0.3)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=killer)
    thread.start()
    results = Squares(Table({"size": 60, "sleep": 0.02}), shards=6, parallel=TWO)(range(60))
    thread.join()
    assert [result["square"] for result in results] == [index * index for index in range(60)]


def test_a_record_that_always_kills_its_worker_is_reported(tmp_path):
    faults = {"size": 10, "kill_once": {"4": "always"}}
    with pytest.raises(TooManyFailures, match=r"shard-1-of-2.jsonl: 000000000004: its process died each time"):
        Squares(Table(faults), output_dir=tmp_path, shards=2, parallel=TWO)(range(10))
    assert not children_of(os.getpid())


@pytest.mark.parametrize(
    "env, kind, batch",
    [("multiprocessing", Squares, None), ("multiprocessing", BatchedSquares, 3), ("dask", BatchedSquares, 3)],
)
def test_records_that_kill_their_worker_are_quarantined(tmp_path, env, kind, batch):
    deadly = [4] if env == "dask" else [4, 13]
    faults = {"size": 20, "kill_once": {str(index): "always" for index in deadly}}
    settings = {"shards": 2, "max_failures": 2, "parallel": {**TWO, "env": env}}
    merged = kind(Table(faults), batch, output_dir=tmp_path, **settings)(range(20))
    lines = merged.read_text().splitlines()
    assert [json.loads(line)["square"] for line in lines] == [i * i for i in range(20) if i not in deadly]
    assert not list(tmp_path.glob("*.attempts.json"))


def test_results_without_a_folder_name_what_died():
    with pytest.raises(UserError, match=r"shard 1 of 2: WorkerDied: worker processes died 5 times .*SIGKILL"):
        Squares(Table({"size": 10, "kill_once": {"4": "always"}}), shards=2, parallel=TWO)(range(10))


class Broken(EnvironmentProvider):
    def build_env_local(self):
        raise FileNotFoundError("no model at m.safetensors")


@pytest.mark.parametrize("env", ["multiprocessing", "dask"])
def test_an_environment_that_cannot_be_built_is_the_error_that_is_raised(env):
    with pytest.raises(FileNotFoundError, match=r"no model at m.safetensors") as caught:
        Squares(Broken(), parallel={**TWO, "env": env})(range(4))
    assert "build_env_local" in "".join(caught.value.__notes__)


def device(_):
    time.sleep(0.05)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("env", ["multiprocessing", "dask"])
def test_each_worker_sees_one_gpu(env):
    seen = dict(parallel_map(device, range(24), config={**TWO, "env": env, "options": {"devices": [3, 5]}}))
    assert sorted(seen.values()) == ["3", "5"]


SCRIPT = """
from espnet3.parallel import BaseRunner, EnvironmentProvider
class P(EnvironmentProvider):
    def build_env_local(self): return {"k": 3}
class R(BaseRunner):
    @staticmethod
    def forward(idx, k): return idx * k
print(sum(R(P(), parallel={"env": "multiprocessing", "n_workers": 2})(range(100))))
"""


def test_a_script_needs_no_main_guard(tmp_path, repository):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{sum(range(100)) * 3}\n", done.stderr


def test_workers_end_with_their_driver(tmp_path, repository):
    script = SCRIPT.replace("return idx * k", "import time; time.sleep(60)")
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    driver = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 20
    while len(workers := children_of(driver.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    driver.kill()
    driver.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
