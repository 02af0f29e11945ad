"""``make_dataloader``: one call for Lhotse's samplers, torch's samplers, and neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from espnet3.data.dataset import ESPnet3Dataset, as_dataset
from espnet3.errors import UserError


def make_dataloader(
    dataset: Any,
    sampler: Any = None,
    *,
    batch_sampler: Iterable | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    collate_fn: Callable | None = None,
    num_workers: int = 0,
    **options: Any,
) -> DataLoader:
    """A DataLoader whose batches are ``(uids, {"speech": (B, T), "speech_lengths": (B,), ...})``.

    Args:
        dataset: an ESPnet3Dataset, or anything that one can be made of, or any torch data set (then *collate_fn* is
            needed).
        sampler: a Lhotse CutSampler over ``dataset.cuts``, which decides the batches itself and, under
            torch.distributed, each rank's share; or a torch sampler of positions, which needs *batch_size*.
        batch_sampler: lists of positions. batch_size: utterances a batch (1 where nothing else decides).
        shuffle: anew in each epoch; only without a sampler.
        collate_fn: None: the data set's own.
        num_workers: processes that read audio; they live as long as the loader.
        options: of ``torch.utils.data.DataLoader``.

    Raises:
        UserError: two of the arguments exclude each other.
    """
    dataset = as_dataset(dataset)
    if num_workers > 0:
        options.setdefault("persistent_workers", True)
    options.setdefault("pin_memory", torch.cuda.is_available())
    if sampler is not None and batch_sampler is not None:
        raise UserError("make_dataloader: give either sampler or batch_sampler")
    if _is_lhotse(sampler):
        if batch_size is not None or shuffle is not None:
            raise UserError(
                "make_dataloader: a Lhotse sampler decides the batches; say max_duration, max_cuts and shuffle to the "
                "sampler instead of batch_size and shuffle"
            )
        if not isinstance(dataset, ESPnet3Dataset) and collate_fn is None:
            collate_fn = _identity
        return DataLoader(
            dataset, sampler=sampler, batch_size=None, collate_fn=collate_fn, num_workers=num_workers, **options
        )
    collate_fn = collate_fn or getattr(dataset, "collate", None)
    if batch_sampler is not None:
        if batch_size is not None or shuffle is not None:
            raise UserError("make_dataloader: batch_sampler excludes batch_size and shuffle")
        return DataLoader(
            dataset, batch_sampler=batch_sampler, collate_fn=collate_fn, num_workers=num_workers, **options
        )
    if sampler is not None and shuffle is not None:
        raise UserError("make_dataloader: sampler excludes shuffle")
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=1 if batch_size is None else batch_size,
        shuffle=shuffle,
        collate_fn=collate_fn,
        num_workers=num_workers,
        **options,
    )


def _is_lhotse(sampler: Any) -> bool:
    return any(base.__module__.startswith("lhotse.") for base in type(sampler).__mro__)


def _identity(batch: Any) -> Any:
    return batch
