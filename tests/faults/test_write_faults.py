"""Every single write fails once: the old file is then intact or the new one whole, and the next run is not hindered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that lets a process's system calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


@pytest.mark.parametrize("operation", ["checkpoint", "shard", "manifest"])
def test_every_write_fails_in_turn(shim: Path, tmp_path: Path, operation: str):
    """EIO, a full disk, a short write and SIGKILL, each at the first, second, ... and last write."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "write_faults.py"), operation, str(tmp_path), str(shim)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    print(f"{operation}: {counts}")
    assert set(counts) == {"EIO", "ENOSPC", "short write", "kill"} and min(counts.values()) > 10
