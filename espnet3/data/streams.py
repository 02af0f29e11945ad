"""Data that comes as a stream: no positions, no length, batches as it comes."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch

from espnet3.data.batching.typed import rank_and_world
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.data.sources import TableSource
from espnet3.data.wrapped import as_pair
from espnet3.errors import UserError


def is_stream(source: Any) -> bool:
    """Whether *source* is a streamed Hugging Face data set or a torch IterableDataset."""
    if isinstance(source, torch.utils.data.IterableDataset):
        return True
    return (
        type(source).__module__.startswith("datasets.")
        and hasattr(source, "__iter__")
        and not hasattr(source, "__len__")
    )


class StreamDataset(ESPnet3Dataset, torch.utils.data.IterableDataset):
    """What :class:`ESPnet3Dataset` makes of a stream: ``for uid, data in dataset``.

    Rows without an id are numbered.
    """

    def _make_source(self, source: Any, columns: dict[str, Any], sampling_rate: int | None) -> Any:
        self.rows, self._table = source, None
        if isinstance(source, torch.utils.data.IterableDataset) and not hasattr(source, "column_names"):
            return None
        first = next(iter(source.take(1)), None) if hasattr(source, "features") and source.features is None else None
        names = source.column_names or list(first or ())
        features = source.features or {}
        for name in names:
            if type(features.get(name)).__name__ == "Audio" and features[name].decode:
                from datasets import Audio

                # decoding by the data set needs torchcodec; soundfile reads the stored bytes as well
                self.rows = self.rows.cast_column(name, Audio(decode=False))
        self._table = TableSource([dict.fromkeys(names, "")] if names else [], columns, sampling_rate)
        return None

    def __len__(self) -> int:
        raise TypeError("a streamed data set has no length")

    @property
    def ids(self) -> Any:
        """Raises UserError: a stream has none beforehand."""
        raise UserError("a streamed data set has no ids beforehand, and no items by position; use batch_size")

    @property
    def cuts(self) -> Any:
        """Raises UserError: a stream has none."""
        raise UserError("a streamed data set has no cuts: use batch_size, or a lazy CutSet with Lhotse's samplers")

    def __getitem__(self, key: Any) -> Any:
        raise UserError("a streamed data set has no items by position: iterate over it")

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return (self.read(number, row) for number, row in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """Rows as they come, not decoded, with their numbers; all of them, in each loader process."""
        rows = iter(self.rows)
        # streams divide themselves among loader processes, where the batches then depend on the number of these
        with _no_worker():
            first = list(itertools.islice(rows, 1))
        return enumerate(itertools.chain(first, rows))

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream, which may shuffle its files by the epoch."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def read(self, number: int, row: Any) -> tuple[str, dict[str, Any]]:
        """The item of a row."""
        if self._table is None:
            uid, data = as_pair(row, str(number))
            return self._finish(uid, lambda: data)
        uid = str(number) if self._table.uid is None else str(row[self._table.uid])
        return self._finish(uid, lambda: self._table.decode(row))


@contextlib.contextmanager
def _no_worker() -> Iterator[None]:
    """Let ``get_worker_info`` say that this is no loader process."""
    module = torch.utils.data._utils.worker
    info, module._worker_info = module._worker_info, None
    try:
        yield
    finally:
        module._worker_info = info


class StreamBatches(torch.utils.data.IterableDataset):
    """Collated batches of a :class:`StreamDataset`, the same ones for any number of loader processes.

    In distributed training each rank takes every world-size-th row; what does not suffice for all ranks is left out, so
    that all have the same number of batches.

    Args:
        finish: applied to each item and the epoch.
        collate: makes a batch of items.
        batch_size: items a batch, of each rank.
        shuffle_buffer: rows among which the next one is drawn, by (seed, epoch); 0: in their order.
    """

    def __init__(
        self, dataset: StreamDataset, finish: Any, collate: Any, batch_size: int, shuffle_buffer: int, seed: int
    ) -> None:
        self.dataset, self.finish, self.collate = dataset, finish, collate
        self.batch_size, self.shuffle_buffer, self.seed = batch_size, shuffle_buffer, seed
        self.place = (0, 0)

    def start(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at *batch* of *epoch*; rows before it are passed over without decoding."""
        self.place = (epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of *epoch*."""
        if epoch != self.place[0]:
            self.place = (epoch, 0)

    def __iter__(self) -> Iterator[Any]:
        epoch, skip = self.place
        self.dataset.set_epoch(epoch)
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._shared(self._shuffled(epoch))
        for batch in itertools.count():
            drawn = list(itertools.islice(rows, self.batch_size))
            if not drawn:
                return
            if batch >= skip and (batch - skip) % workers == number:
                yield self.collate([self.finish(self.dataset.read(*row), epoch) for row in drawn])

    def _shuffled(self, epoch: int) -> Iterator[tuple[int, Any]]:
        rows = self.dataset.numbered()
        if not self.shuffle_buffer:
            yield from rows
            return
        generator = random.Random(f"{self.seed} {epoch}")
        buffer = list(itertools.islice(rows, self.shuffle_buffer))
        for row in rows:
            at = generator.randrange(len(buffer))
            yield buffer[at]
            buffer[at] = row
        generator.shuffle(buffer)
        yield from buffer

    @staticmethod
    def _shared(rows: Iterator[Any]) -> Iterator[Any]:
        rank, world = rank_and_world()
        while len(group := list(itertools.islice(rows, world))) == world:
            yield group[rank]
