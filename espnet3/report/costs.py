"""What each job cost, from Snakemake's benchmark tables."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Job:
    """One job: seconds of wall clock and of CPU, peak memory in MB; None where Snakemake could not measure it."""

    name: str
    wall: float
    cpu: float | None
    memory: float | None


@dataclass
class Kind:
    """All jobs of one rule."""

    name: str
    jobs: list[Job] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return sum(job.wall for job in self.jobs)

    @property
    def longest(self) -> float:
        return max(job.wall for job in self.jobs)

    @property
    def cpu(self) -> float | None:
        known = [job.cpu for job in self.jobs if job.cpu is not None]
        return sum(known) if known else None

    @property
    def memory(self) -> float | None:
        return max((job.memory for job in self.jobs if job.memory is not None), default=None)


def read_costs(folder: str | os.PathLike | None) -> list[Kind]:
    """Jobs of ``<folder>/<rule>[.<more>].tsv``, by rule, costliest first; tables that cannot be read are left out."""
    kinds: dict[str, Kind] = {}
    for path in sorted(Path(folder).glob("**/*.tsv")) if folder is not None else []:
        try:
            with open(path, encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle, delimiter="\t"))
            wall = float(rows[-1]["s"])
        except (OSError, IndexError, KeyError, ValueError, TypeError):
            continue
        kind = kinds.setdefault(path.stem.partition(".")[0], Kind(path.stem.partition(".")[0]))
        kind.jobs.append(Job(path.stem, wall, _number(rows[-1].get("cpu_time")), _number(rows[-1].get("max_rss"))))
    return sorted(kinds.values(), key=lambda kind: (-kind.wall, kind.name))


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``3 min 05 s``, ``4.2 s``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def megabytes(amount: float | None) -> str:
    """``512 MB`` or ``1.4 GB``."""
    if amount is None:
        return "-"
    return f"{amount:.0f} MB" if amount < 1000 else f"{amount / 1000:.1f} GB"
