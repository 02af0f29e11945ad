"""The runner: shards, resumption, quarantine, and the same bytes everywhere."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from parallel_toys import BatchedSquares, Squares, Table, TwoFiles

from espnet3.errors import UserError
from espnet3.parallel import BaseRunner, EnvironmentProvider, TooManyFailures, read_failures, set_parallel

SIZE = 60


def calls(path: Path) -> collections.Counter:
    return collections.Counter(int(line) for line in path.read_text().splitlines()) if path.exists() else {}


def run_killed(tmp_path: Path, runner: str, faults: dict, path: Path, **settings) -> int:
    """Run one shard in a process that a record kills; its exit status."""
    code = (
        "import sys, json, parallel_toys as toys\n"
        "from espnet3.parallel import runner\n"
        "runner.FSYNC_SECONDS = 0.0\n"
        "kind, faults, path, settings = json.loads(sys.argv[1])\n"
        "getattr(toys, kind)(toys.Table(faults), **settings).run_shard(range(faults['size']), path)\n"
    )
    argument = json.dumps([runner, faults, str(path), settings])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.run([sys.executable, "-c", code, argument], env=environment).returncode


def test_five_lines_are_enough():
    class Provider(EnvironmentProvider):
        def build_env_local(self):
            return {"offset": self.config["offset"]}

    class Runner(BaseRunner):
        @staticmethod
        def forward(idx, offset, **env):
            return idx + offset

    assert Runner(Provider({"offset": 10}))([3, 1, 2]) == [13, 11, 12]
    # the classes live in a function here, in a notebook's __main__ elsewhere: workers get them all the same
    assert Runner(Provider({"offset": 10}), parallel={"env": "multiprocessing", "n_workers": 2})([3, 1, 2]) == [
        13,
        11,
        12,
    ]


@pytest.mark.parametrize("kind, batch", [(Squares, {}), (BatchedSquares, {"batch_size": 7})])
def test_the_same_bytes_on_every_engine_and_worker_count(tmp_path, kind, batch):
    weights = [1 + index * 37 % 11 for index in range(SIZE)]
    merged = {}
    for env, workers in [("local", 1), ("multiprocessing", 2), ("local", 5), ("dask", 2)]:
        folder = tmp_path / f"{env}-{workers}"
        runner = kind(
            Table({"size": SIZE}),
            output_dir=folder,
            shards=4,
            weights=weights,
            parallel={"env": env, "n_workers": workers},
            **batch,
        )
        path = runner(range(SIZE))
        merged[folder.name] = path.read_bytes()
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            ["run.jsonl", "run.plan.json", *(f"shard-{i}-of-4.jsonl" for i in range(1, 5))]
        )
    assert len(set(merged.values())) == 1
    lines = merged["local-1"].decode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"utt{index:05d}" for index in range(SIZE)]
    assert "größe 語" in lines[0]


def test_results_come_in_the_order_of_the_indices():
    results = BatchedSquares(Table({"size": 50}), batch_weight=30.0, weights=[1 + i % 7 for i in range(50)])(
        range(49, 9, -3)
    )
    assert [result["square"] for result in results] == [index * index for index in range(49, 9, -3)]


def test_set_parallel_is_what_runners_use():
    set_parallel({"env": "multiprocessing", "n_workers": 2})
    try:
        pids = {result for result in Pids(EnvironmentProviderOfNothing(), shards=6)(range(6))}
        assert os.getpid() not in pids and 1 <= len(pids) <= 2
    finally:
        set_parallel(None)


class EnvironmentProviderOfNothing(EnvironmentProvider):
    def build_env_local(self):
        return {}


class Pids(BaseRunner):
    @staticmethod
    def forward(idx):
        return os.getpid()


def test_a_shard_killed_by_sigkill_goes_on_after_its_last_record(tmp_path):
    faults = {"size": 20, "calls": str(tmp_path / "calls"), "kill_once": {"12": str(tmp_path / "dead")}}
    path = tmp_path / "shard-1-of-1.jsonl"
    assert run_killed(tmp_path, "Squares", faults, path) == -9
    assert not path.exists() and len((tmp_path / "shard-1-of-1.jsonl.partial").read_text().splitlines()) == 12
    assert run_killed(tmp_path, "Squares", faults, path) == 0
    # record 12 was begun twice and is there once
    assert calls(tmp_path / "calls") == {index: 2 if index == 12 else 1 for index in range(20)}
    assert [json.loads(line)["square"] for line in path.read_text().splitlines()] == [i * i for i in range(20)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calls", "dead", path.name]


def test_every_torn_tail_is_cut_and_the_bytes_are_the_same(tmp_path):
    faults = {"size": 12, "poison": [3, 4]}
    settings = {"batch_size": 3, "max_failures": 2}
    whole = tmp_path / "whole.jsonl"
    BatchedSquares(Table(faults), **settings).run_shard(range(12), whole)
    torn = tmp_path / "torn.jsonl"
    dead = {**faults, "kill_once": {"10": str(tmp_path / "dead")}}
    assert run_killed(tmp_path, "BatchedSquares", dead, torn, **settings) == -9
    partial = {p: p.read_bytes() for p in tmp_path.glob("torn.jsonl.*") if p.suffix != ".lock"}
    records = partial[tmp_path / "torn.jsonl.partial"]
    for size in [*range(150), *range(150, len(records), 11), len(records)]:
        for p, data in partial.items():
            p.write_bytes(data)
        (tmp_path / "torn.jsonl.partial").write_bytes(records[:size])
        BatchedSquares(Table(dead), **settings).run_shard(range(12), torn)
        assert torn.read_bytes() == whole.read_bytes()
        assert [f["index"] for f in read_failures(torn)] == [3, 4]
    failures = partial[tmp_path / "torn.jsonl.failed.jsonl.partial"]
    for size in range(0, len(failures), 50):
        for p, data in partial.items():
            p.write_bytes(data)
        # failures reach the disk before the records of their batch, so these cannot be there
        (tmp_path / "torn.jsonl.failed.jsonl.partial").write_bytes(failures[:size])
        (tmp_path / "torn.jsonl.partial").write_bytes(b"".join(records.splitlines(keepends=True)[:3]))
        BatchedSquares(Table(dead), **settings).run_shard(range(12), torn)
        assert torn.read_bytes() == whole.read_bytes()
        assert [f["index"] for f in read_failures(torn)] == [3, 4]


def test_an_unfinished_shard_of_another_configuration_is_not_taken_up(tmp_path):
    faults = {"size": 20, "calls": str(tmp_path / "calls"), "kill_once": {"12": str(tmp_path / "dead")}}
    path = tmp_path / "shard-1-of-1.jsonl"
    run_killed(tmp_path, "Squares", faults, path)
    Squares(Table(faults), fingerprint="other weights").run_shard(range(20), path)
    assert calls(tmp_path / "calls")[0] == 2


def test_a_poison_record_is_quarantined_with_its_traceback(tmp_path):
    faults = {"size": 20, "poison": [5], "calls": str(tmp_path / "calls")}
    keys = [f"speaker-{index}" for index in range(20)]
    runner = BatchedSquares(Table(faults), 4, tmp_path / "out", shards=2, keys=keys, max_failures=1)
    lines = runner(range(20)).read_text().splitlines()
    assert [json.loads(line)["square"] for line in lines] == [i * i for i in range(20) if i != 5]
    (failure,) = [f for shard in (1, 2) for f in read_failures(tmp_path / f"out/shard-{shard}-of-2.jsonl")]
    assert failure["key"] == "speaker-5" and failure["error"] == "ValueError: record 5 is poison"
    assert "parallel_toys.py" in failure["traceback"]
    assert sum(count > 1 for count in calls(tmp_path / "calls").values()) <= 4  # its batch only


@pytest.mark.parametrize("env", ["local", "multiprocessing"])
def test_too_many_failures_end_the_run_with_each_shards_first_error(tmp_path, env):
    faults = {"size": 40, "poison": [0, 1, 2, 3]}
    settings = {"shards": 2, "max_failures": 3, "parallel": {"env": env, "n_workers": 2}}
    with pytest.raises(TooManyFailures) as caught:
        Squares(Table(faults), output_dir=tmp_path / "out", **settings)(range(40))
    message = str(caught.value)
    assert "4 records failed and max_failures is 3" in message
    assert message.count("ValueError: record") == 2 and "shard-1-of-2.jsonl: " in message
    assert not (tmp_path / "out/run.jsonl").exists()
    with pytest.raises(TooManyFailures):
        Squares(Table(faults), **settings)(range(40))


def test_out_of_memory_halves_the_batch_and_goes_on():
    runner = BatchedSquares(Table({"size": 40, "fits": 3}), batch_size=16, shards=1)
    assert [result["square"] for result in runner(range(40))] == [index * index for index in range(40)]


def test_a_record_that_never_fits_is_quarantined():
    runner = BatchedSquares(Table({"size": 4, "fits": 0}), batch_size=2, shards=1, max_failures=4)
    assert runner(range(4)) == [None] * 4


def test_complete_shards_are_kept_and_changed_ones_are_made_anew(tmp_path):
    faults = {"size": 20, "calls": str(tmp_path / "calls")}
    for expected, change in [(1, {}), (1, {}), (2, {"fingerprint": "b"}), (3, {"shards": 5})]:
        path = Squares(Table(faults), output_dir=tmp_path / "out", **{"shards": 2, **change})(range(20))
        assert calls(tmp_path / "calls") == {index: expected for index in range(20)}
        assert len(path.read_text().splitlines()) == 20
    (tmp_path / "out/shard-2-of-5.jsonl").unlink()
    Squares(Table(faults), output_dir=tmp_path / "out", shards=5)(range(20))
    assert sorted(set(calls(tmp_path / "calls").values())) == [3, 4]


def test_two_processes_never_make_one_shard_at_once(tmp_path):
    faults = {"size": 30, "sleep": 0.01, "calls": str(tmp_path / "calls")}
    path = tmp_path / "shard.jsonl"
    code = (
        "import sys, json, parallel_toys as toys\n"
        "toys.Squares(toys.Table(json.loads(sys.argv[1]))).run_shard(range(30), sys.argv[2], keep=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, json.dumps(faults), str(path)], env=environment) for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert calls(tmp_path / "calls") == {index: 1 for index in range(30)}
    assert len(path.read_text().splitlines()) == 30


def test_own_writers_make_a_folder_and_survive_sigkill(tmp_path):
    whole = tmp_path / "whole"
    TwoFiles(Table({"size": 20})).run_shard(range(20), whole)
    faults = {"size": 20, "calls": str(tmp_path / "calls"), "kill_once": {"12": str(tmp_path / "dead")}}
    torn = tmp_path / "torn"
    assert run_killed(tmp_path, "TwoFiles", faults, torn) == -9
    assert not torn.exists()
    # what a kill between two notes leaves: a file longer than its note
    with open(tmp_path / "torn.partial/text", "a") as text:
        text.write("utt000")
    assert run_killed(tmp_path, "TwoFiles", faults, torn) == 0
    for name in ("text", "squares"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()
    assert f"# sum {sum(i * i for i in range(20))}" in (torn / "squares").read_text()
    assert calls(tmp_path / "calls")[0] == 1


def test_own_writers_and_merge_on_processes(tmp_path):
    settings = {"shards": 3, "parallel": {"env": "multiprocessing", "n_workers": 2}}
    merged = TwoFiles(Table({"size": 20}), output_dir=tmp_path, **settings)(range(20))
    assert merged == [f"utt{index:05d} größe 語" for index in range(20)]


def full_disk(tmp_path: Path) -> Path:
    """A folder with 64 KiB of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here (that takes root)")
    return folder


def test_a_full_disk_says_so_and_nothing_is_lost_or_doubled(tmp_path):
    folder = full_disk(tmp_path)
    try:
        faults = {"size": 1000, "calls": str(tmp_path / "calls")}
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 20000)
        runner = Squares(Table(faults))
        with pytest.raises(UserError, match=r"shard-1-of-1.jsonl.partial: no space left on device; .* it resumes"):
            runner.run_shard(range(1000), folder / "shard-1-of-1.jsonl")
        done = len((folder / "shard-1-of-1.jsonl.partial").read_text().splitlines())
        assert 100 < done < 1000
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        runner.run_shard(range(1000), folder / "shard-1-of-1.jsonl")
        lines = (folder / "shard-1-of-1.jsonl").read_text().splitlines()
        assert [json.loads(line)["square"] for line in lines] == [i * i for i in range(1000)]
        counts = calls(tmp_path / "calls")
        assert sum(counts.values()) == 1001 and counts[done] == 2
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="needs 'table', which the provider does not build; it builds: nothing"):
        Squares(EnvironmentProviderOfNothing())([1])
    with pytest.raises(UserError, match="did you mean 'n_workers'"):
        Squares(Table({"size": 1}), parallel={"n_worker": 2})
    with pytest.raises(UserError, match="did you mean 'multiprocessing'"):
        Squares(Table({"size": 1}), parallel={"env": "multiprocess"})
    with pytest.raises(UserError, match="an index is given twice"):
        Squares(Table({"size": 2}))([1, 1])
    with pytest.raises(TooManyFailures, match="no JSON"):
        Unprintable(EnvironmentProviderOfNothing()).run_shard([0], tmp_path / "shard.jsonl")


class Unprintable(BaseRunner):
    @staticmethod
    def forward(idx):
        return threading.Lock()
