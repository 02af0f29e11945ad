"""Training over two nodes of a real SLURM: one job starts a process on each, and they agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "trainer/tiny_ddp.py"


def test_two_nodes_train_as_one(slurm, tmp_path):
    # the nodes are this machine under other names, which nothing resolves
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    command = f"{sys.executable} {SCRIPT} {tmp_path}/exp 1 --devices 1 --nodes 2"
    job = ["sbatch", "--wait", "--parsable", "--partition=cpu", "--nodes=2", "--ntasks-per-node=1", "--mem=1500"]
    done = subprocess.run(
        [*job, f"--output={tmp_path}/log", "--wrap", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else done.stderr
    assert done.returncode == 0, log[-3000:]
    first, second = (json.loads((tmp_path / f"exp/rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["world"] == 2 and first["nodes"] != second["nodes"]
    assert first["weights"] == second["weights"]
    assert sorted(first["valid"] + second["valid"]) == [f"u{i:03d}" for i in range(8)]
    assert (tmp_path / "exp/checkpoints.json").exists()
