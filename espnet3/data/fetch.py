"""What a loader's process does with a request: items, augmentation, features, chunks, one collated batch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from espnet3.data.batching import Chunk, Request, seed_all
from espnet3.errors import UserError

Item = tuple[str, dict[str, Any]]


class Fetcher(torch.utils.data.Dataset):
    """``fetcher[request]`` is a collated batch of *dataset*.

    Args:
        dataset: with items by position; for requests of Lhotse cuts, with ``items(cuts)`` or items by CutSet.
        collate: makes a batch of a list of items.
        augment: applied to each item, see :mod:`espnet3.data.augment`.
        features: waveform (T,) and utterance id to features (T', F), see :mod:`espnet3.data.features`.
        cut_transforms: Lhotse's, applied to a request's CutSet; their generators are seeded from *seed*, epoch and batch.
        whole: names (ESPnet2's ``excluded_key_prefixes``) of sequences that chunks repeat whole.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list], Any],
        augment: Callable[[str, dict[str, Any], int], dict[str, Any]] | None = None,
        features: Callable[[np.ndarray], np.ndarray] | None = None,
        cut_transforms: Sequence[Callable[[Any], Any]] = (),
        seed: int = 0,
        whole: Sequence[str] = (),
    ) -> None:
        self.cut_transforms, self.seed = list(cut_transforms), seed
        self.dataset, self.collate, self.augment, self.features = dataset, collate, augment, features
        self.whole = re.compile("|".join(f"{re.escape(name)}[0-9]*" for name in (*whole, "utt2category", "utt2fs")))

    def __getitem__(self, request: Request) -> Any:
        """The batch. Raises UserError where an item cannot be read, or a chunk does not fit it."""
        if request.seed is not None:
            seed_all(*request.seed)
        keys = request.keys
        if isinstance(keys, (list, tuple)):
            return self.collate([self._item(key, request.epoch) for key in keys])
        for number, transform in enumerate(self.cut_transforms):
            for name in ("random", "rng"):
                if hasattr(transform, name):
                    setattr(transform, name, random.Random(f"{self.seed} {request.epoch} {request.number} {number}"))
            keys = transform(keys)
        if hasattr(self.dataset, "items"):
            return self.collate([self.finish(item, request.epoch) for item in self.dataset.items(keys)])
        if self.augment or self.features:
            raise UserError("dataloader: augment and features need an ESPnet3Dataset")
        return self.collate(self.dataset[keys])

    def _item(self, key: Any, epoch: int) -> Any:
        chunk = isinstance(key, Chunk)
        item = self.finish(self.dataset[key.index if chunk else key], epoch)
        return self._cut(item, key) if chunk and key.length else item

    def finish(self, item: Item, epoch: int) -> Item:
        """*item* augmented, its waveform turned into features."""
        if self.augment is None and self.features is None:
            return item
        uid, data = item
        if self.augment is not None:
            data = self.augment(uid, dict(data), epoch)
        if self.features is not None:
            data = {**data, "speech": self.features(data["speech"])}
        return uid, data

    def _cut(self, item: Item, chunk: Chunk) -> Item:
        uid, data = item
        end, size, cut = chunk.start + chunk.length, None, {}
        for name, value in data.items():
            is_sequence = isinstance(value, np.ndarray) and value.ndim and not self.whole.fullmatch(name)
            if is_sequence:
                size = len(value) if size is None else size
                if len(value) != size:
                    raise UserError(
                        f"utterance {uid}: chunks need sequences of one length, '{name}' has {len(value)} and not {size}; "
                        "leave it out, or name it in sampler.excluded_key_prefixes to have it whole in each chunk"
                    )
                if len(value) < end:
                    raise UserError(
                        f"utterance {uid}: '{name}' has {len(value)} samples, its length was said to be at least {end}; "
                        "make the manifest or the shape file anew (speed perturbation cannot go with chunks)"
                    )
            cut[name] = value[chunk.start : end] if is_sequence else value
        return uid, cut
