"""The order of batches: a function of (seed, epoch), which can be continued anywhere in an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError


def seed_all(*parts: int) -> None:
    """Seed Python, NumPy and torch from several numbers: randomness becomes a function of where training stands."""
    value = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)


class EpochSampler(Sampler):
    """Batches of *sampler* in an order fixed by (seed, epoch), from the batch that :meth:`start` names.

    A Lhotse sampler shuffles by its own seed and epoch, a torch one by its generator; both are set here. Before each batch
    is fetched the global generators are seeded from (seed, epoch, batch), so that augmentation in the data set is the
    same whether or not training was interrupted (with loader workers: whose generators torch seeds, only from the start
    of an epoch).
    """

    def __init__(self, sampler: Sampler, seed: int):
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0
        self._skip = 0

    def start(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at *batch* of *epoch*."""
        self.epoch, self._skip = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        epoch = self.epoch
        inner = self.sampler.sampler if isinstance(self.sampler, BatchSampler) else self.sampler
        if hasattr(inner, "set_epoch"):
            inner.set_epoch(epoch)
        elif hasattr(inner, "generator"):
            inner.generator = torch.Generator()
            inner.generator.manual_seed(
                int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
            )
        for number, batch in enumerate(self.sampler):
            if number >= skip:
                seed_all(self.seed, 1, epoch, number)
                yield batch


class SortedPools(Sampler[list[int]]):
    """Batches of nearly equal lengths that still differ from epoch to epoch: shuffle, cut into pools, sort within each.

    A pool leaves one batch that is not full, where buckets leave one each: on an hour of speech, 1 % of padding and 2 % of
    small batches instead of 2 % and 15 %.

    Args:
        dataset: with ``cuts``.
        max_duration: seconds of audio in a batch, padding included; a longer utterance is a batch of its own.
        pool: batches that make a pool.
        shuffle: without it, one pool in the order of length.
    """

    def __init__(self, dataset: Any, max_duration: float, pool: int = 100, shuffle: bool = True, seed: int = 0):
        self.durations = np.array([cut.duration for cut in dataset.cuts])
        if max_duration <= 0 or pool < 1:
            raise UserError(f"dataloader: max_duration ({max_duration}) and pool ({pool}) must be above 0")
        self.max_duration, self.pool, self.shuffle, self.seed = max_duration, pool, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.durations))
        generator = np.random.default_rng((self.seed, self.epoch))
        pools = 1
        if self.shuffle:
            generator.shuffle(order)
            pools = max(1, round(self.durations.sum() / (self.pool * self.max_duration)))
        batches = [batch for part in np.array_split(order, pools) for batch in self._batches(part)]
        if self.shuffle:
            generator.shuffle(batches)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
            batches = batches[: len(batches) // world * world][rank::world]
        return iter(batches)

    def _batches(self, part: np.ndarray) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in part[np.lexsort((part, self.durations[part]))].tolist():
            if batch and (len(batch) + 1) * self.durations[index] > self.max_duration:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def make_loader(
    dataset: Any, node: Mapping[str, Any] | None, *, seed: int, shuffle: bool, num_workers: int = 0, allow=()
):
    """A DataLoader from a ``dataloader.train`` or ``dataloader.valid`` section.

    Its ``sampler`` node gets the data set's ``cuts`` (a Lhotse sampler) or the data set itself (a torch one); without one,
    ``batch_size`` items make a batch. Other keys go to ``torch.utils.data.DataLoader``.

    Raises:
        UserError: a Lhotse sampler, but the data set has no cuts.
    """
    node = dict(node or {})
    sampler_node = node.pop("sampler", None)
    batch_size = node.pop("batch_size", None)
    node.setdefault("num_workers", num_workers)
    if node["num_workers"]:
        node.setdefault("persistent_workers", True)
    if sampler_node is not None and str(sampler_node.get("_target_", "")).startswith("lhotse."):
        cuts = getattr(dataset, "cuts", None)
        if cuts is None:
            raise UserError(
                f"dataloader: {sampler_node['_target_']} needs a data set with cuts; use batch_size instead"
            )
        settings = {"seed": seed, "shuffle": shuffle, **sampler_node, "_partial_": True}
        sampler = instantiate(settings, allow=allow)(cuts)
        return DataLoader(dataset, sampler=EpochSampler(sampler, seed), batch_size=None, **node)
    if sampler_node is not None:
        if sampler_node.get("_target_") == f"{__name__}.{SortedPools.__name__}":
            sampler_node = {"seed": seed, "shuffle": shuffle, **sampler_node}
        sampler = instantiate({**sampler_node, "_partial_": True}, allow=allow)(dataset)
    else:
        sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    from espnet3.data.collate import Collate

    node.setdefault("collate_fn", Collate())
    batches = sampler if isinstance(sampler, SortedPools) else BatchSampler(sampler, batch_size or 16, drop_last=False)
    return DataLoader(dataset, batch_sampler=EpochSampler(batches, seed), **node)


def epoch_sampler(loader: DataLoader) -> EpochSampler | None:
    """The loader's EpochSampler, where it has one."""
    for sampler in (loader.sampler, loader.batch_sampler):
        if isinstance(sampler, EpochSampler):
            return sampler
    return None
