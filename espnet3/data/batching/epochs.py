"""The order of batches as a function of (seed, epoch), which can be continued anywhere in an epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet3.data.batching.typed import rank_and_world


def seed_all(*parts: int) -> None:
    """Seed Python, NumPy and torch from several numbers: randomness becomes a function of where training stands."""
    import torch

    value = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)


@dataclass
class Request:
    """What a loader's process is asked for: batch *number* of *epoch*.

    Attributes:
        keys: positions, chunks, or a Lhotse CutSet.
        seed: what the global generators are seeded from before the batch is read; None leaves them alone.
    """

    epoch: int
    number: int
    keys: Any
    seed: tuple[int, ...] | None = None


class EpochSampler:
    """Batches of *sampler* in an order fixed by (seed, epoch), from the batch that :meth:`start` names.

    A Lhotse sampler shuffles by its own seed and epoch, a torch one by its generator, unless it was given one; both are set
    here. An epoch that is set on *sampler* itself counts as well.

    Args:
        reseed: seed the global generators from (seed, epoch, batch) before each batch is read, so that augmentation in the
            data set is the same whether or not training was interrupted, and in any loader process.
        share: *sampler* (one of torch's) knows nothing of ranks: this one takes every world-size-th batch of it.
    """

    def __init__(self, sampler: Any, seed: int, reseed: bool = False, share: bool = False):
        self.sampler, self.seed, self.reseed, self.share = sampler, seed, reseed, share
        self.inner = getattr(sampler, "sampler", sampler)
        self.epoch = self._told = getattr(self.inner, "epoch", 0)
        self._skip, self._generator = 0, None

    def start(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at *batch* of *epoch*."""
        self.epoch, self._skip = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*; where :meth:`start` has named a batch of it, from there."""
        self.epoch, self._skip = epoch, self._skip if epoch == self.epoch else 0

    def count(self) -> int:
        """Batches an epoch, of each rank. Raises TypeError where the sampler does not know.

        Not ``__len__``: Lightning would wait for so many of an epoch that is entered in its middle.
        """
        return len(self.sampler) // (rank_and_world()[1] if self.share else 1)

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and batch at which the next iteration begins."""
        told = getattr(self.inner, "epoch", self._told)
        if told != self._told:
            self.epoch = self._told = told
        return self.epoch, self._skip

    def __iter__(self) -> Iterator[Request]:
        (epoch, skip), self._skip = self.place, 0
        rank, world = rank_and_world()
        if world > 1 and getattr(self.inner, "world_size", None) == 1:
            # a Lhotse sampler that was built before the process group
            self.inner.rank, self.inner.world_size = rank, world
        if hasattr(self.inner, "set_epoch"):
            if getattr(self.inner, "epoch", None) != epoch:
                self.inner.set_epoch(epoch)
            self._told = getattr(self.inner, "epoch", self._told)
        elif getattr(self.inner, "generator", self) is self._generator:
            import torch

            self.inner.generator = self._generator = torch.Generator()
            self._generator.manual_seed(
                int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
            )
        for number, keys in enumerate(self._shared() if self.share else self.sampler):
            if number >= skip:
                yield Request(epoch, number, keys, (self.seed, 1, epoch, number) if self.reseed else None)

    def _shared(self) -> Iterator[Any]:
        rank, world = rank_and_world()
        batches = iter(self.sampler)
        # the ranks stay in step: what does not suffice for all of them is left out
        while len(group := list(itertools.islice(batches, world))) == world:
            yield group[rank]
