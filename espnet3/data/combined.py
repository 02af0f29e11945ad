"""Several data sets as one."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet3.data.collate import Collate
from espnet3.data.dataset import ESPnet3Dataset, as_dataset
from espnet3.data.lazy import IdList
from espnet3.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet


class CombinedDataset(ESPnet3Dataset):
    """The utterances of several data sets, one after the other, under their own ids.

    Each data set keeps its transform and tokenizer; the batches are made by the first one's collate.

    Args:
        datasets: ESPnet3Datasets, or whatever one can be made of; a mapping names them for messages.

    Raises:
        UserError: an id is in two of them, or one has no items by position.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> CombinedDataset:
        return object.__new__(cls)

    def __init__(self, datasets: Sequence[Any] | Mapping[str, Any]) -> None:
        if not datasets:
            raise UserError("CombinedDataset: no data sets are given")
        named = datasets if isinstance(datasets, Mapping) else {str(i): d for i, d in enumerate(datasets, 1)}
        self.datasets = [as_dataset(dataset) for dataset in named.values()]
        for name, dataset in zip(named, self.datasets, strict=True):
            if not hasattr(dataset, "ids") or not hasattr(dataset, "__len__"):
                raise UserError(f"CombinedDataset: data set {name} has no items by position or no ids")
        self._ends = list(itertools.accumulate(len(dataset) for dataset in self.datasets))
        self._ids = IdList(itertools.chain.from_iterable(dataset.ids for dataset in self.datasets))
        twice = self._ids.first_duplicate()
        if twice is not None:
            names, uid = list(named), self._ids[twice[0]]
            first, second = (names[bisect.bisect_right(self._ends, position)] for position in twice)
            raise UserError(
                f"CombinedDataset: utterance {uid} is in data set {first} and in {second}; rename it in one"
            )
        self.source, self.transform, self.tokenizer = None, None, None
        self.collate = getattr(self.datasets[0], "collate", None) or Collate()

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def ids(self) -> IdList:
        """Utterance ids, by position."""
        return self._ids

    @functools.cached_property
    def durations(self) -> np.ndarray:
        """Seconds, float64 (N,)."""
        return np.concatenate([dataset.durations for dataset in self.datasets])

    @functools.cached_property
    def num_samples(self) -> np.ndarray:
        """Samples, int64 (N,)."""
        return np.concatenate([dataset.num_samples for dataset in self.datasets])

    @functools.cached_property
    def cuts(self) -> CutSet:
        """All cuts, lazily where the data sets have them so."""
        return functools.reduce(lambda one, other: one + other, (dataset.cuts for dataset in self.datasets))

    def __getitem__(self, key: int | str | CutSet) -> Any:
        """An item by position or id, or a collated batch for a CutSet."""
        if isinstance(key, str):
            key = self._position(key)
        if isinstance(key, (int, np.integer)):
            dataset, index = self._locate(int(key))
            return dataset[index]
        return self.collate(self.items(key))

    def _locate(self, position: int) -> tuple[Any, int]:
        index = position + (len(self) if position < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"item {position} of a data set of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return self.datasets[number], index - (self._ends[number - 1] if number else 0)

    def _cut(self, cut: Any) -> tuple[str, dict[str, Any]]:
        dataset, _ = self._locate(self._position_of(cut))
        return dataset.items([cut])[0]
