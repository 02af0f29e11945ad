"""The trainer's loaders: the order of batches is a function of (seed, epoch), and can be continued anywhere in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from espnet3.config.batch_types import batch_type
from espnet3.data.batching import EpochSampler, SortedPools, seed_all
from espnet3.data.loader import loader_arguments

__all__ = ["EpochSampler", "SortedPools", "epoch_sampler", "make_loader", "seed_all"]


def make_loader(
    dataset: Any, node: Mapping[str, Any] | None, *, seed: int, shuffle: bool, num_workers: int = 0, allow=()
):
    """A DataLoader from a ``dataloader.train`` or ``dataloader.valid`` section.

    Keys: ``sampler``, ESPnet2's ``{type: ...}`` or a ``_target_`` (see :func:`espnet3.data.loader.build_sampler`); without one,
    ``batch_size`` items make a batch (16). ``augment``, ``features`` and ``cut_transforms``: ``_target_`` nodes. Others go to
    ``torch.utils.data.DataLoader``.

    Raises:
        UserError: a Lhotse sampler, but the data set has no cuts; or keys that do not go together.
    """
    node = {"num_workers": num_workers, **(node or {})}
    sampler = node.get("sampler")
    if sampler is None or (batch_type(sampler) is None and not sampler["_target_"].startswith("lhotse.")):
        node.setdefault("batch_size", 16)
    arguments = loader_arguments(dataset, **node, shuffle=shuffle, seed=seed, reseed=True, allow=tuple(allow))
    # not the resumable loader: the trainer keeps the place itself, and Lightning would restore it a second time
    return DataLoader(**arguments)


def epoch_sampler(loader: DataLoader) -> Any:
    """What decides the loader's order, with ``start(epoch, batch)`` and ``set_epoch``; None where it is not of our making."""
    for found in (loader.sampler, loader.dataset):
        if hasattr(found, "start") and hasattr(found, "set_epoch"):
            return found
    return None
