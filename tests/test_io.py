"""A file is whole or absent, whatever happens to the writer."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time

import pytest

from espnet3.errors import UserError
from espnet3.io import atomic_write, read_json, read_jsonl, write_json, write_jsonl


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_sigkill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import sys, time\nfrom espnet3.io import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f:\n"
        "    f.write('x' * 100000); f.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path.read_text() == "old"


def test_the_same_records_give_the_same_bytes(tmp_path):
    records = [{"id": "a", "text": "zażółć"}, {"id": "b", "n": 1.5}]
    write_jsonl(tmp_path / "a.jsonl.gz", records)
    time.sleep(1.1)  # gzip writes whole seconds into its header
    write_jsonl(tmp_path / "b.jsonl.gz", records)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert list(read_jsonl(tmp_path / "a.jsonl.gz")) == records


def test_damage_is_named_with_its_place(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        list(read_jsonl(tmp_path / "bad.jsonl"))
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged file"):
        list(read_jsonl(tmp_path / "cut.jsonl.gz"))


def test_writers_that_were_killed_leave_one_file_at_the_most_and_the_next_takes_it(tmp_path):
    code = (
        "import os, sys; from espnet3.io import atomic_write\n"
        "with atomic_write(sys.argv[1]) as handle:\n"
        "    handle.write('torn' * 10000); handle.flush(); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "file"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], env=environment)
    assert [p.name for p in tmp_path.iterdir()] == [".file.tmp"]
    with atomic_write(path) as slow:
        slow.write("first")
        # another writer of the same file, meanwhile
        with atomic_write(path) as quick:
            quick.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
