"""Training killed with SIGKILL at 20 random instants, one run after another: the weights of a training that nobody touched."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path


def test_twenty_kills_end_in_the_very_weights(tmp_path: Path):
    seed = int(os.environ.get("ESPNET3_SEED", random.SystemRandom().randrange(1 << 20)))
    print(f"ESPNET3_SEED={seed}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path), "20", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    found = json.loads(done.stdout)
    print(found)
    assert len(found["kills"]) == 20 and sum(kill["command"] for kill in found["kills"]) == 3
    assert len({kill["step"] for kill in found["kills"]}) > 5, "the kills were meant to come in many places"
