"""ESPnet2's batch types: for the same shape files and keys, the batches that its samplers make.

Their rules are those of ``espnet2.samplers`` (espnet 202511), at array speed: sorting is stable, batches are cut greedily in
the order of length, and what ``min_batch_size`` refuses goes to the batches before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from espnet3.errors import UserError


class Batches(Sequence):
    """Batches as slices of one array: ``batches[k]`` is a list of positions.

    Args:
        order: int64 (N,), positions. starts, ends: int64 (K,), the slices.
    """

    def __init__(self, order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.order, self.starts, self.ends = order, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> list[int]:
        return self.order[self.starts[index] : self.ends[index]].tolist()


def make_batches(
    type: str,
    shapes: list[np.ndarray],
    *,
    batch_size: int | None = None,
    batch_bins: int | None = None,
    sort_in_batch: str = "descending",
    sort_batch: str = "ascending",
    drop_last: bool = False,
    min_batch_size: int = 1,
    fold_lengths: Sequence[int] = (),
    padding: bool = True,
) -> Batches:
    """Batches of rows of *shapes*, as ESPnet2 makes them.

    Args:
        type: ``unsorted``, ``sorted``, ``folded``, ``length`` or ``numel``.
        shapes: one array (N, D) for each shape file.
        batch_size: of ``unsorted``, ``sorted`` (at least so many) and ``folded`` (for utterances below *fold_lengths*).
        batch_bins: of ``length`` (summed lengths) and ``numel`` (summed elements): a batch ends with the utterance that
            exceeds it.
        fold_lengths: one for each shape file; utterances of twice (three times, ...) that length halve (...) the batch.
        padding: count padding.

    Raises:
        UserError: there are no utterances, or a key does not fit the shapes.
    """
    count = len(shapes[0]) if shapes else 0
    if not count:
        raise UserError("dataloader.sampler: there are no utterances to make batches of")
    first = shapes[0][:, 0]
    if type in ("unsorted", "sorted"):
        order = np.arange(count)
        if type == "sorted":
            order = np.argsort(-first if sort_in_batch == "descending" else first, kind="stable")
        number = max(count // batch_size, 1)
        edges = np.arange(number + 1) * count // number
        if drop_last:
            edges = np.minimum(np.arange(number + 1) * batch_size, count)
        starts, ends = edges[:-1], edges[1:]
        if type == "sorted" and sort_in_batch != sort_batch:
            starts, ends = starts[::-1], ends[::-1]
        return Batches(order, starts, ends)
    order = np.argsort(first, kind="stable")
    ordered = [shape[order] for shape in shapes]
    if type == "folded":
        sizes = _folded(ordered, batch_size, fold_lengths, min_batch_size)
    elif type in ("length", "numel"):
        weights = _weights(ordered, elements=type == "numel", padding=padding)
        sizes = _greedy(weights, batch_bins, min_batch_size, padding, drop_last)
        if len(sizes) > 1 and sizes[-1] < min_batch_size:
            for i in range(sizes.pop()):
                sizes[-(i % len(sizes)) - 1] += 1
    else:
        raise UserError(f"dataloader.sampler.type: '{type}' makes no list of batches")
    ends = np.cumsum(sizes)
    starts = ends - sizes
    if sort_in_batch == "descending":
        # each batch backwards
        order = order[np.repeat(starts + ends - 1, sizes) - np.arange(ends[-1])]
    if sort_batch == "descending":
        starts, ends = starts[::-1], ends[::-1]
    return Batches(order, starts, ends)


def _weights(ordered: list[np.ndarray], elements: bool, padding: bool) -> list[int]:
    """What each utterance adds to a batch's bins."""
    total = np.zeros(len(ordered[0]), dtype=np.int64)
    for shape in ordered:
        dims = shape[:, 1:]
        if elements and padding and (dims != dims[0]).any():
            row = dims[(dims != dims[0]).any(axis=1)][0].tolist()
            raise UserError(
                f"dataloader.sampler: type 'numel' needs one feature size, found {dims[0].tolist()} and {row}; use 'length'"
            )
        total += shape[:, 0] * (dims.prod(axis=1) if elements else 1)
    return total.tolist()


def _greedy(weights: list[int], bins: int, least: int, padding: bool, drop_last: bool) -> list[int]:
    sizes, size, total = [], 0, 0
    for weight in weights:
        size += 1
        total += weight
        if (size * weight if padding else total) > bins and size >= least:
            sizes.append(size)
            size = total = 0
    if size and (not drop_last or not sizes):
        sizes.append(size)
    return sizes


def _folded(ordered: list[np.ndarray], batch_size: int, fold_lengths: Sequence[int], least: int) -> list[int]:
    if len(fold_lengths) != len(ordered):
        raise UserError(
            f"dataloader.sampler: {len(fold_lengths)} fold_lengths for {len(ordered)} shape files; give one for each"
        )
    # the shortest utterance decides; drop_last has no effect in ESPnet2 either
    folds = np.max([shape[:, 0] // fold for shape, fold in zip(ordered, fold_lengths, strict=True)], axis=0)
    sizes, start, count = [], 0, len(folds)
    while start < count:
        size = min(count - start, max(least, int(batch_size / (1 + folds[start]))))
        sizes.append(size)
        start += size
    if len(sizes) > 1 and sizes[-1] < least:
        for i in range(sizes.pop()):
            # from the last but one on, as ESPnet2 does; where that ends in an IndexError, from the last again
            sizes[(-(i % len(sizes)) - 2) % len(sizes)] += 1
    return sizes


class TypedBatchSampler:
    """Batches of a data set by one of ESPnet2's types.

    The batches are made once; *shuffle* changes their order from epoch to epoch, as ESPnet2 does (its epochs count from 1,
    these from 0). In distributed training each rank takes its part of each batch, so that all have the same number of
    batches.

    Args:
        lengths: :class:`~espnet3.data.batching.lengths.Lengths`.
        rank, world_size: None: those of torch.distributed.
        keys: of :func:`make_batches`.

    Raises:
        UserError: a batch has fewer utterances than there are ranks.
    """

    def __init__(
        self,
        lengths: Any,
        type: str,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        **keys: Any,
    ) -> None:
        self.lengths, self.type, self.keys = lengths, type, keys
        self.given = rank, world_size
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self._ranks, self.batches = 0, Batches(*[np.empty(0, dtype=np.int64)] * 3)
        self._share()

    def _share(self) -> tuple[int, int]:
        """Rank and ranks, which may be known only once training has begun; the batches are made for that many ranks."""
        rank, world = rank_and_world(*self.given)
        if world == self._ranks:
            return rank, world
        keys = dict(self.keys)
        if world > 1 and self.type in ("folded", "length", "numel"):
            keys["min_batch_size"] = max(keys.get("min_batch_size", 1), world)
        batches = make_batches(self.type, self.lengths.shapes, **keys)
        smallest = int((batches.ends - batches.starts).min())
        if smallest < world:
            raise UserError(
                f"dataloader.sampler: a batch has {smallest} utterances, {world} ranks need one each; raise batch_size"
            )
        self.batches = Batches(self.lengths.positions[batches.order], batches.starts, batches.ends)
        self._ranks = world
        return rank, world

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self._share()
        order = np.arange(len(self.batches))
        if self.shuffle:
            np.random.RandomState((self.seed + self.epoch + 1) % 2**32).shuffle(order)
        return (self.batches[number][rank::world] for number in order)


def rank_and_world(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """This process's rank and the number of ranks, of torch.distributed where neither is given; (0, 1) without it."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if rank is None and world_size is None and distributed and distributed.is_available():
        if distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    return rank or 0, world_size or 1
