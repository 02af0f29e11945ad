"""``ESPnet3Dataset``: any source as ESPnet's ``(uid, dict)`` items, or as whole batches for Lhotse's samplers."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch

from espnet3.data.collate import Collate
from espnet3.data.lazy import IdList
from espnet3.data.sources import cut_item, make_source
from espnet3.data.wrapped import ItemSource, LazyCutSource
from espnet3.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet

    from espnet3.text.tokenizer import Tokenizer


class ESPnet3Dataset(torch.utils.data.Dataset):
    """A map-style data set of utterances.

    ``dataset[i]`` and ``dataset["uid"]`` give ``(uid, {"speech": float32 (T,), "text": str, ...})``; with a
    tokenizer, ``text`` is an int64 array (L,). ``dataset[CutSet]``, which is what a DataLoader asks for when a
    Lhotse sampler drives it, gives a collated batch (see :class:`espnet3.data.collate.Collate`).

    Args:
        source: a Hugging Face ``datasets.Dataset``, a Lhotse CutSet (eager or lazy), the path of a manifest, a list of
            dictionaries, or a torch data set whose items are ``(uid, dict)`` or dictionaries. A streamed Hugging Face data set
            or a torch IterableDataset gives a :class:`espnet3.data.streams.StreamDataset`, which has no items by position.
        transform: applied to each item: a function of ``(uid, data)``, as in ESPnet2, or of ``data`` alone.
        tokenizer: turns ``text`` into ids, after *transform*.
        sampling_rate: Hz; what a Hugging Face or list source is resampled to, and the rate of its plain samples.
            None: files as they are. A manifest's cuts have their own.
        audio_column, text_column, id_column: of a Hugging Face or list source; None: the usual names.
        extra_columns: further columns to hand on.
        collate: makes a batch of items; None: :class:`Collate` with ESPnet's padding.

    Raises:
        UserError: *source* is none of these, or lacks a column.
    """

    def __new__(cls, source: Any = None, *args: Any, **kwargs: Any) -> ESPnet3Dataset:
        if cls is ESPnet3Dataset:
            from espnet3.data.streams import StreamDataset, is_stream

            cls = StreamDataset if is_stream(source) else cls
        return super().__new__(cls)

    def __init__(
        self,
        source: Any,
        transform: Callable[..., dict[str, Any]] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        sampling_rate: int | None = None,
        audio_column: str | None = None,
        text_column: str | None = None,
        id_column: str | None = None,
        extra_columns: tuple[str, ...] = (),
        collate: Callable[[list], Any] | None = None,
    ) -> None:
        columns = {"audio": audio_column, "text": text_column, "id": id_column, "extra": tuple(extra_columns)}
        self.source = self._make_source(source, columns, sampling_rate)
        self.sampling_rate = sampling_rate
        self.transform, self.tokenizer = transform, tokenizer
        self.collate = collate or Collate()
        self._pass_uid = transform is not None and _takes_uid(transform)

    def _make_source(self, source: Any, columns: dict[str, Any], sampling_rate: int | None) -> Any:
        if getattr(source, "is_lazy", False) and hasattr(source, "cuts"):
            return LazyCutSource(source)
        if isinstance(source, torch.utils.data.Dataset):
            return ItemSource(source)
        return make_source(source, columns, sampling_rate)

    def __len__(self) -> int:
        return len(self.source.ids)

    @property
    def ids(self) -> list[str]:
        """Utterance ids, by position."""
        return self.source.ids

    @functools.cached_property
    def _index(self) -> IdList:
        return self.ids if isinstance(self.ids, IdList) else IdList(self.ids)

    @functools.cached_property
    def durations(self) -> np.ndarray:
        """Seconds, float64 (N,); a manifest's are at hand, of other sources files' headers are read once."""
        known = getattr(self.source, "durations", None)
        return np.array([cut.duration for cut in self.cuts]) if known is None else np.asarray(known, dtype=np.float64)

    @functools.cached_property
    def num_samples(self) -> np.ndarray:
        """Samples at each utterance's own rate, int64 (N,); see :attr:`durations`."""
        rates = getattr(self.source, "rates", None)
        if rates is None:
            if self.sampling_rate is not None:
                rates = self.sampling_rate
            else:
                rates = [cut.sampling_rate for cut in self.cuts]
        # rounded as Lhotse does, half up
        return np.floor(self.durations * np.asarray(rates) + 0.5).astype(np.int64)

    @functools.cached_property
    def cuts(self) -> CutSet:
        """A view as Lhotse cuts, for Lhotse's samplers; reads every file's header where the source has no durations."""
        # the cuts of one's own data are in memory anyway
        warnings.filterwarnings("ignore", message="You are using DynamicBucketingSampler with an eagerly read CutSet")
        return self.source.cuts()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: int | str | CutSet) -> Any:
        """An item by position or id, or a collated batch for a CutSet.

        Raises:
            IndexError, KeyError: there is no such item. UserError: its audio cannot be read.
        """
        if isinstance(key, (int, np.integer)):
            index = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= index < len(self):
                raise IndexError(f"item {key} of a data set of {len(self)}")
            uid = self.source.ids[index]
            if isinstance(self.source, ItemSource):
                uid, data = self.source.pair(index)
                return self._finish(uid, lambda: data)
            return self._finish(uid, lambda: self.source.item(index))
        if isinstance(key, str):
            return self[self._position(key)]
        return self.collate(self.items(key))

    def items(self, cuts: CutSet) -> list[tuple[str, dict[str, Any]]]:
        """The items of *cuts*."""
        return [self._cut(cut) for cut in cuts]

    def _position(self, uid: str) -> int:
        try:
            return self._index.position(uid)
        except KeyError:
            raise KeyError(f"no utterance '{uid}' in this data set of {len(self)}") from None

    def _cut(self, cut: Any) -> tuple[str, dict[str, Any]]:
        if getattr(getattr(cut, "recording", None), "sources", None) == []:
            if cut.recording.transforms:
                raise UserError(
                    f"utterance {cut.id}: its audio lies in a Hugging Face data set, where Lhotse cannot transform it; "
                    "transform it with ESPnet3Dataset(..., transform=...)"
                )
            index = self._position_of(cut)
            if isinstance(self.source, ItemSource):
                return self[index]
            return self._finish(cut.id, lambda: self.source.item(index))
        return self._finish(cut.id, lambda: cut_item(cut))

    def _position_of(self, cut: Any) -> int:
        try:
            return self._index.position(cut.id)
        except KeyError:
            # CutSet.repeat and duplicates for other ranks append to the ids
            return self._position(re.sub(r"(_repeat[0-9]+|_dup[0-9]+)+$", "", cut.id))

    def _finish(self, uid: str, read: Callable[[], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        try:
            data = read()
        except (OSError, soundfile.SoundFileError, ValueError) as error:
            raise UserError(f"utterance {uid}: its audio cannot be read ({' '.join(str(error).split())})") from None
        if self.transform is not None:
            data = self.transform(uid, data) if self._pass_uid else self.transform(data)
        if self.tokenizer is not None and isinstance(data.get("text"), str):
            data["text"] = np.asarray(self.tokenizer.encode(data["text"]), dtype=np.int64)
        return uid, data


def _takes_uid(transform: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(needed) >= 2


def as_dataset(source: Any, **kwargs: Any) -> torch.utils.data.Dataset:
    """*source* itself where it is a torch data set already, otherwise an ESPnet3Dataset of it."""
    # a streamed Hugging Face data set is one of torch's as well, but its rows are not decoded
    if isinstance(source, torch.utils.data.Dataset) and not type(source).__module__.startswith("datasets."):
        return source
    return ESPnet3Dataset(source, **kwargs)
