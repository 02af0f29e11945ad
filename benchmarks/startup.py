"""What it costs to ask: parsing every experiment, a dry run, a stage's start. CPU seconds, median of several rounds.

python benchmarks/startup.py [--rounds 5] [--target exp/asr/decode]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds(command: list[str]) -> float:
    """User and system time of *command* and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", default="exp/asr/decode")
    arguments = parser.parse_args()
    python = sys.executable
    commands = {
        "python -m espnet3 --help": [python, "-m", "espnet3", "--help"],
        "all experiments checked": [python, "-m", "espnet3", "check"],
        f"snakemake -n {arguments.target}": [python, "-m", "snakemake", "-n", arguments.target],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            times[name].append(cpu_seconds(command))
    print(f"{'command':40} {'min':>7} {'median':>7} {'max':>7}   CPU seconds")
    for name, values in times.items():
        print(f"{name:40} {min(values):7.2f} {statistics.median(values):7.2f} {max(values):7.2f}")
    bars = {"all experiments checked": 1.0, f"snakemake -n {arguments.target}": 3.0}
    short = 0
    for name, target in bars.items():
        figure = statistics.median(times[name])
        short += figure > target
        print(f"{'ok  ' if figure <= target else 'FAIL'} {name}: {figure:.2f} s, target <= {target} s")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
