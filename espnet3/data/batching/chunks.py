"""ESPnet2's ``chunk`` batches: utterances cut into pieces of one length, planned from lengths before any audio is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from espnet3.data.batching.typed import rank_and_world
from espnet3.errors import UserError


class Chunk(NamedTuple):
    """Samples *start* to *start* + *length* of the utterance at *index*; length 0: all of it."""

    index: int
    start: int
    length: int


class ChunkSampler:
    """Batches of chunks, those of ``espnet2.iterators.chunk_iter_factory`` for the same keys, seed and epoch.

    An epoch's chunks are drawn, shuffled in a cache and dealt out as ESPnet2 does it, on lengths instead of samples: so an epoch
    can be entered anywhere without reading what came before. In distributed training every rank draws all batches and takes its
    part of each.

    Args:
        lengths: :class:`~espnet3.data.batching.lengths.Lengths`; its first shapes hold samples.
        batch_size: chunks a batch; what is left over at an epoch's end is dropped.
        chunk_length: samples, or several (``"16000,32000"``, ``"100-200"``), of which each utterance draws one.
        chunk_shift_ratio: from one chunk to the next, as a part of the length.
        num_cache_chunks: of one length, kept for shuffling.
        chunk_max_abs_length: a bound on all lengths.
        discard_short_samples: leave out utterances that are not longer than the shortest chunk, instead of taking them whole.

    Raises:
        UserError: *chunk_length* is no such list, or no utterance is long enough.
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        chunk_length: int | str,
        chunk_shift_ratio: float = 0.5,
        num_cache_chunks: int = 1024,
        chunk_max_abs_length: int | None = None,
        discard_short_samples: bool = True,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.positions, self.lengths = lengths.positions.tolist(), lengths.shapes[0][:, 0].tolist()
        self.batch_size, self.cache = batch_size, max(num_cache_chunks, batch_size)
        self.candidates = parse_chunk_length(chunk_length)
        self.shift, self.longest = chunk_shift_ratio, chunk_max_abs_length or math.inf
        self.discard, self.shuffle, self.seed, self.epoch = discard_short_samples, shuffle, seed, 0
        self.given = rank, world_size
        if discard_short_samples and max(self.lengths, default=0) <= min(self.candidates):
            raise UserError(
                f"dataloader.sampler.chunk_length: no utterance is longer than {min(self.candidates)} samples; lower it"
            )

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Chunk]]:
        rank, world = rank_and_world(*self.given)
        if self.batch_size < world:
            raise UserError(f"dataloader.sampler.batch_size: {self.batch_size} chunks for {world} ranks; raise it")
        for batch in self._batches():
            yield batch[rank::world]

    def _batches(self) -> Iterator[list[Chunk]]:
        seed = (self.seed + self.epoch + 1) % 2**32
        order = np.arange(len(self.lengths))
        if self.shuffle:
            np.random.RandomState(seed).shuffle(order)
        state = np.random.RandomState(seed)
        waiting: dict[int, list[Chunk]] = {}
        for at in order.tolist():
            found = self._chunks(self.positions[at], self.lengths[at], state)
            if not found:
                continue
            length = found[0].length
            waiting.setdefault(length, []).extend(found)
            if len(waiting[length]) > self.cache:
                yield from self._deal(waiting, length, state)
        for length in waiting:
            yield from self._deal(waiting, length, state)

    def _chunks(self, index: int, length: int, state: np.random.RandomState) -> list[Chunk]:
        fitting = [min(size, self.longest) for size in self.candidates if size < length]
        if not fitting:
            return [] if self.discard else [Chunk(index, 0, 0)]
        size = int(state.choice(fitting, 1)[0])
        step = max(1, int(size * self.shift))
        number = (length - size) // step + 1
        first = int(state.randint(0, (length - size) % step + 1)) if self.shuffle else 0
        return [Chunk(index, first + i * step, size) for i in range(number)]

    def _deal(
        self, waiting: dict[int, list[Chunk]], length: int, state: np.random.RandomState
    ) -> Iterator[list[Chunk]]:
        chunks = waiting[length]
        if self.shuffle:
            order = np.arange(len(chunks))
            state.shuffle(order)
            chunks = [chunks[i] for i in order]
        full = len(chunks) // self.batch_size * self.batch_size
        for start in range(0, full, self.batch_size):
            yield chunks[start : start + self.batch_size]
        waiting[length] = chunks[full:]


def parse_chunk_length(value: int | str | Sequence[int]) -> list[int]:
    """``16000``, ``"16000,32000"`` or ``"100-200"`` as a list of lengths.

    Raises:
        UserError: it is none of these.
    """
    try:
        lengths: list[int] = []
        for part in str(value).split(",") if isinstance(value, (int, str)) else map(str, value):
            low, _, high = part.partition("-")
            lengths += range(int(low), int(high) + 1) if high else [int(low)]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise UserError(
            f"dataloader.sampler.chunk_length: give samples such as 32000, '16000,32000' or '100-200', not {value!r}"
        )
    return lengths
