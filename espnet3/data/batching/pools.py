"""Sorted pools: little padding, another order in each epoch, and few batches that are not full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from espnet3.data.batching.typed import rank_and_world
from espnet3.errors import UserError


class SortedPools:
    """Batches of nearly equal lengths that still differ from epoch to epoch: shuffle, cut into pools, sort within each.

    A pool leaves one batch that is not full, where buckets leave one each: on an hour of speech, 1 % of padding and 2 % of
    small batches instead of 2 % and 15 %.

    Args:
        dataset: with ``durations``, in seconds, or with ``cuts``.
        max_duration: seconds of audio in a batch, padding included; a longer utterance is a batch of its own.
        pool: batches that make a pool.
        shuffle: without it, one pool in the order of length.
        ascending: so many epochs, from the first, go from the shortest batch to the longest (SortaGrad, arXiv 1512.02595,
            section 3.2): alignments are learnt where there is least to align.
        quadratic_duration: seconds at which an utterance counts twice, as in Lhotse's samplers: long utterances, whose
            attention costs more, then make smaller batches.
        rank, world_size: None: those of torch.distributed. Each rank takes every *world_size*-th batch; batches that are left
            over are left out, others in each epoch.
    """

    def __init__(
        self,
        dataset: Any,
        max_duration: float,
        pool: int = 100,
        shuffle: bool = True,
        seed: int = 0,
        quadratic_duration: float | None = None,
        ascending: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        durations = getattr(dataset, "durations", None)
        self.durations = np.array(
            [cut.duration for cut in dataset.cuts] if durations is None else durations, dtype=float
        )
        if max_duration <= 0 or pool < 1:
            raise UserError(f"dataloader: max_duration ({max_duration}) and pool ({pool}) must be above 0")
        if quadratic_duration:
            self.durations = self.durations + self.durations**2 / quadratic_duration
        self.max_duration, self.pool, self.shuffle, self.seed = max_duration, pool, shuffle, seed
        self.ascending = ascending
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.durations))
        generator = np.random.default_rng((self.seed, self.epoch))
        pools = 1
        if self.shuffle:
            generator.shuffle(order)
            pools = max(1, round(self.durations.sum() / (self.pool * self.max_duration)))
        batches = [batch for part in np.array_split(order, pools) for batch in self._batches(part)]
        if self.epoch < self.ascending:
            batches.sort(key=lambda batch: self.durations[batch[-1]])
        elif self.shuffle:
            generator.shuffle(batches)
        rank, world = rank_and_world(self.rank, self.world_size)
        if world > 1:
            batches = batches[: len(batches) // world * world][rank::world]
        return iter(batches)

    def _batches(self, part: np.ndarray) -> Iterator[list[int]]:
        part = part[np.lexsort((part, self.durations[part]))]
        batch: list[int] = []
        for index, duration in zip(part.tolist(), self.durations[part].tolist(), strict=True):
            if batch and (len(batch) + 1) * duration > self.max_duration:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
