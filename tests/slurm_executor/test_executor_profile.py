"""The profile for clusters names the executor, and settings that it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_profile_is_understood(repository: Path, tmp_path: Path):
    (tmp_path / "Snakefile").write_text('rule train:\n    output: "x"\n    shell: "touch {output}"\n')
    command = [sys.executable, "-m", "snakemake", "--profile", str(repository / "profiles" / "slurm"), "-n"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "slurm_partition=gpu" in done.stdout + done.stderr
