"""Copies of the product that a test may edit and run Snakemake in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile",
    "workflow",
    "espnet3",
    "config",
    "profiles",
    "local",
    "slurm",
    "snakemake_executor_plugin_slurm_espnet3",
)


@dataclass
class Project:
    """A copy of the product in a folder of its own."""

    root: Path

    def snakemake(self, *arguments: str, check: bool = True, profile: str | None = "local", **env: str):
        """Run Snakemake there as a user would; returns the completed process, its output in ``stdout``."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        if profile:
            command += ["--profile", profile]
        return self.run(command, check=check, **env)

    def run(self, command: list[str], check: bool = True, **env: str):
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "2", **env}
        done = subprocess.run(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done

    def jobs(self, *arguments: str) -> dict[str, int]:
        """``{rule: jobs}`` that a dry run announces; the empty dict where there is nothing to be done."""
        out = self.snakemake("-n", *arguments, "--quiet", "reason").stdout
        counts: dict[str, int] = {}
        lines = iter(out.splitlines())
        for line in lines:
            if line.startswith("job ") and line.rstrip().endswith("count"):
                next(lines)
                for row in lines:
                    parts = row.split()
                    if len(parts) != 2 or parts[0] == "total":
                        break
                    counts[parts[0]] = int(parts[1])
                break
        if not counts:
            assert "Nothing to be done" in out, out
        return counts


def copy_product(root: Path) -> Project:
    """Copy the product's files to *root*."""
    root.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_symlink():
            (root / part).symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, root / part)
    return Project(root)


DEFAULTS = """
defaults:
  - recipe: base
  - data: commands
  - tokenizer: char
  - model: conformer_small
  - trainer: small
  - decode: joint
  - parallel: local
  - _self_
"""

# small enough to train in seconds; its WER says that the chain is whole, not that the model is good
TINY = (
    DEFAULTS
    + """\
data:
  corpus: tiny
  builder: {hours: 0.03, minutes_valid: 0.3, test_utterances: 6}
model:
  encoder: {blocks: 2, output_size: 48, hidden: 96, heads: 2}
  decoder: {blocks: 1, size: 48, hidden: 96, heads: 2}
trainer: {max_epochs: 2}
decode: {beam: 2, shards: 2, average: valid.loss.ave_2best}
"""
)


def tiny_project(root: Path) -> Project:
    project = copy_product(root)
    for path in (root / "config").glob("*.yaml"):
        path.unlink()
    (root / "config/tiny.yaml").write_text(TINY.lstrip())
    return project
