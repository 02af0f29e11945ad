"""``python -m espnet3 why exp/asr/decode``: what would be made again, and the key, code or file that is the reason.

The facts are those of ``snakemake -n``, which this runs; a slice that changes is shown key by key, old → new.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet3.config.compose import experiment_names, load_configs
from espnet3.config.experiment import Experiment
from espnet3.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Print why each file of a target is stale; exit status 0, also where nothing is."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 why", description="what a target would make again, and why"
    )
    parser.add_argument("target", help="such as exp/asr/decode")
    parser.add_argument("--overrides", default="", help='as for Snakemake: "decode.beam=4"')
    parser.add_argument("--retrain", action="store_true", help="act on a change of training code, too")
    arguments = parser.parse_args(list(argv))
    jobs, changes = dry_run(arguments.target, arguments.overrides, arguments.retrain)
    experiments = {
        name: Experiment(name, config, retrain=arguments.retrain)
        for name, config in load_configs(experiment_names(), arguments.overrides).items()
    }
    if not jobs:
        print(f"{arguments.target}: nothing to be done")
    for line in [*changes, *explain(jobs, experiments)]:
        print(line)
    for experiment in experiments.values():
        if arguments.target.rstrip("/").split("/")[:2] == ["exp", experiment.name]:
            for module in experiment.changed_training_code():
                print(f"training code changed, model kept (--retrain acts on it): {module}")
    return 0


def dry_run(target: str, overrides: str = "", retrain: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """The jobs that Snakemake would run for *target*: ``{"rule", "output": [...], "reason"}`` in its order; and what the
    workflow says of the corpora's own files that have changed.

    Raises:
        UserError: Snakemake refuses the target; its message.
    """
    command = [sys.executable, "-m", "snakemake", "-n", target, "--nocolor"]
    config = [f"overrides={overrides}"] if overrides else []
    config += ["retrain=true"] if retrain else []
    if config:
        command += ["--config", *config]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise UserError(" ".join(lines[-3:]))
    jobs: list[dict[str, Any]] = []
    changes: list[str] = []
    for line in done.stdout.splitlines():
        if line.startswith("espnet3: data/"):
            changes.append(line.removeprefix("espnet3: "))
        # the rules' own `message:`, and the line that Snakemake puts after it
        match = re.match(r"Job \d+: (\w+): (\S.*)$", line)
        if match:
            jobs.append({"rule": match.group(1), "output": match.group(2).split(), "reason": ""})
        elif jobs and line.startswith("Reason: ") and not jobs[-1]["reason"]:
            jobs[-1]["reason"] = line.removeprefix("Reason: ")
    return jobs, changes


def explain(jobs: list[dict[str, Any]], experiments: dict[str, Experiment]) -> list[str]:
    """Readable lines: a line for each rule and reason, the changed keys under the slices."""
    groups: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        groups.setdefault((job["rule"], _short(job["reason"])), []).extend(job["output"][:1])
    lines = []
    for (rule, reason), outputs in groups.items():
        shown = outputs[0] + (f" (and {len(outputs) - 1} more of its kind)" if len(outputs) > 1 else "")
        if rule in ("conf", "corpus_conf"):
            for output in outputs:
                lines.append(f"{output}:")
                lines += [f"    {change}" for change in _slice_changes(output, experiments)]
        elif rule == "recordings":
            lines.append(f"{shown}: other recordings, or other audio in them")
        else:
            lines.append(f"{shown}: {reason}{_shards_before(outputs[0])}")
    return lines


def _shards_before(path: str) -> str:
    """``, shards: 2 → 3`` where *path* is a shard of a number of them, and those of another number are there."""
    match = re.fullmatch(r"(.*/shard-)\d+(-of-)(\d+)(\.\w+)", path)
    if not match or Path(path).exists():
        return ""
    others = {other.stem.rpartition("-")[2] for other in Path(path).parent.glob("shard-*" + match[4])} - {match[3]}
    return f", shards: {' and '.join(sorted(others))} → {match[3]}" if others else ""


def _short(reason: str) -> str:
    """The direct causes first; what merely follows from another job's run is one clause."""
    parts = [part.strip() for part in reason.split("; ") if part.strip()]
    follows = [p for p in parts if p.startswith("Input files updated by another job: ")]
    direct = [p for p in parts if p not in follows]
    names = sorted({name for p in follows for name in p.partition(": ")[2].split(", ")})
    if names:
        slices = [n for n in names if "/conf/" in n]
        named = slices or names[:1]
        more = len(names) - len(named)
        direct.append("follows " + ", ".join(named) + (f" and {more} more" if more else ""))
    clauses = ((r"^Missing output files: .*", "missing"), (r"^Forced execution$", "its sources have changed"))
    for pattern, clause in clauses:
        direct = [re.sub(pattern, clause, part) for part in direct]
    return "; ".join(direct)


def _slice_changes(path: str, experiments: dict[str, Experiment]) -> list[str]:
    parts = Path(path).parts
    stage = parts[-1].removesuffix(".json")
    if parts[0] == "exp":
        experiment = experiments[parts[1]]
    else:
        experiment = next(e for e in experiments.values() if e.corpus == parts[1])
    new = json.loads(experiment.slice_text(stage))
    try:
        old = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ["not there yet"]
    changes = differences(old["config"], new["config"])
    for module in sorted(old["code"].keys() | new["code"].keys()):
        before, after = old["code"].get(module), new["code"].get(module)
        if before != after:
            what = "code changed" if before and after else "no longer imported" if before else "newly imported"
            changes.append(f"{module}: {what}")
    return changes or ["its provenance is lost; the content is the same"]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """``["decode.beam: 5 → 4", …]`` for two nested values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}".lstrip(".")
            if key not in old:
                found.append(f"{inner}: (absent) → {json.dumps(new[key])}")
            elif key not in new:
                found.append(f"{inner}: {json.dumps(old[key])} → (absent)")
            else:
                found += differences(old[key], new[key], inner)
        return found
    return [] if old == new else [f"{path}: {json.dumps(old)} → {json.dumps(new)}"]
