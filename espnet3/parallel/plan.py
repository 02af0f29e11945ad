"""Shard and batch plans: which records go together. A shard is a unit of work, never a worker."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet3.errors import UserError

DEFAULT_SHARDS = 32


def plan_shards(keys: Sequence[str], weights: Sequence[float], n: int) -> list[list[int]]:
    """Split ``range(len(keys))`` into *n* lists of nearly equal total weight.

    Longest processing time first (Graham, 1969): the heaviest record left goes to the lightest shard. Ties go by key
    and by shard number, so the plan depends neither on the order of the input nor on the number of workers. Each
    shard runs from heavy to light, so that consecutive indices make even batches. There may be fewer records than
    shards: some are empty then.

    Args:
        keys: one unique name a record.
        weights: its cost, for example a duration in seconds; finite and not negative.
        n: the number of shards, at least 1.

    Raises:
        UserError: *n* < 1, lengths that differ, or a weight that is negative or not finite.
    """
    if n < 1:
        raise UserError(f"shards: {n} is not a number of shards; give 1 or more")
    if len(keys) != len(weights):
        raise UserError(f"shard plan: {len(keys)} keys but {len(weights)} weights; give one weight a key")
    for key, weight in zip(keys, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"shard plan: the weight of {key} is {weight}; it must be finite and not negative")
    shards: list[list[int]] = [[] for _ in range(n)]
    lightest = [(0.0, shard) for shard in range(n)]
    for index in sorted(range(len(keys)), key=lambda i: (-weights[i], keys[i])):
        total, shard = lightest[0]
        shards[shard].append(index)
        # a weightless record still counts, or all of them would pile up in the first shard
        heapq.heapreplace(lightest, (total + (weights[index] or 1e-9), shard))
    return shards


def plan_batches(
    indices: Sequence[int],
    batch_size: int | None = None,
    batch_weight: float | None = None,
    weights: Sequence[float] | Mapping[int, float] | None = None,
) -> list[list[int]]:
    """Cut *indices* into batches of neighbours.

    A batch holds at most *batch_size* indices, and its padded cost (its length times its largest weight) is at most
    *batch_weight*; a record that is heavier than that makes a batch of its own.
    """
    if batch_weight is not None and weights is None:
        raise UserError("batch_weight needs weights (one a record); give weights= or use batch_size=")
    batches: list[list[int]] = []
    heaviest = 0.0
    for index in indices:
        weight = float(weights[index]) if weights is not None else 0.0
        if batches:
            size, largest = len(batches[-1]) + 1, max(heaviest, weight)
            if (batch_size is None or size <= batch_size) and (batch_weight is None or size * largest <= batch_weight):
                batches[-1].append(index)
                heaviest = largest
                continue
        batches.append([index])
        heaviest = weight
    return batches


def default_shards(records: int) -> int:
    """The number of shards where the user gives none: it follows the records and never the workers."""
    return max(1, min(records, DEFAULT_SHARDS))


def shard_name(i: int, n: int, suffix: str = ".jsonl") -> str:
    """``shard-3-of-16.jsonl``: shard *i* (from 1) of *n*."""
    if not 1 <= i <= n:
        raise UserError(f"shard {i} of {n}: shards count from 1 to {n}")
    return f"shard-{i}-of-{n}{suffix}"


def parse_shard_name(path: str | Path) -> tuple[int, int]:
    """``(3, 16)`` from ``shard-3-of-16.jsonl``."""
    match = re.match(r"shard-(\d+)-of-(\d+)(\.|$)", Path(path).name)
    if not match:
        raise UserError(f"{path}: not the name of a shard (shard-<i>-of-<n>...)")
    return int(match[1]), int(match[2])
