"""Sources that bring their own reading: lazy CutSets and torch data sets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet3.data.sources import cut_item
from espnet3.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet


class LazyCutSource:
    """A lazy CutSet: Lhotse's samplers stream it; only items by position or id make a list of its cuts."""

    def __init__(self, cuts: CutSet) -> None:
        self._lazy = cuts

    @functools.cached_property
    def _cuts(self) -> list[Any]:
        return list(self._lazy)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Utterance ids."""
        return [cut.id for cut in self._cuts]

    def item(self, index: int) -> dict[str, Any]:
        """The item at *index*."""
        return cut_item(self._cuts[index])

    def cuts(self) -> CutSet:
        """The CutSet as it was given."""
        return self._lazy


class ItemSource:
    """A map-style torch data set.

    Its items are ``(uid, data)``, or dictionaries, whose ids are their positions. Attributes ``ids``, ``durations`` (s) and
    ``rates`` (Hz) of the data set are used where it has them.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UserError(f"ESPnet3Dataset: {type(dataset).__name__} has no length or no items by position")
        self.dataset = dataset
        for name in ("durations", "rates"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        """Utterance ids."""
        ids = getattr(self.dataset, "ids", None)
        return [str(index) for index in range(len(self.dataset))] if ids is None else ids

    def pair(self, index: int) -> tuple[str, dict[str, Any]]:
        """The item at *index*."""
        return as_pair(self.dataset[index], self.ids[index])

    def item(self, index: int) -> dict[str, Any]:
        """The item at *index*, without its id."""
        return self.pair(index)[1]

    def cuts(self) -> CutSet:
        """Cuts with length and text, whose audio stays with the data set; needs its ``durations`` and ``rates``."""
        from lhotse import CutSet

        if not hasattr(self, "durations") or not hasattr(self, "rates"):
            raise UserError(
                f"ESPnet3Dataset: {type(self.dataset).__name__} tells no lengths; give it the attributes 'durations' (s) and "
                "'rates' (Hz), or use batch_size"
            )
        values = zip(self.ids, self.durations, np.broadcast_to(self.rates, len(self.ids)), strict=True)
        return CutSet.from_cuts(bare_cut(uid, float(duration), int(rate)) for uid, duration, rate in values)


def bare_cut(uid: str, duration: float, rate: int) -> Any:
    """A cut of a recording whose audio is found by the cut's id."""
    from lhotse import MonoCut, Recording

    recording = Recording(uid, [], rate, round(duration * rate), duration, [0])
    return MonoCut(id=uid, start=0.0, duration=duration, channel=0, supervisions=[], recording=recording)


def as_pair(item: Any, uid: str) -> tuple[str, dict[str, Any]]:
    """*item* as ``(uid, data)``. Raises UserError where it is neither that nor a dictionary."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], dict):
        return str(item[0]), dict(item[1])
    if isinstance(item, dict):
        return uid, dict(item)
    raise UserError(f"ESPnet3Dataset: item {uid} is {type(item).__name__}; give (uid, dict) or a dictionary")
