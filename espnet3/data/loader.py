"""``make_dataloader``: one call for Lhotse's samplers, ESPnet2's batch types, torch's samplers, and none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from espnet3.config.batch_types import batch_type, check_batch_type
from espnet3.config.instantiate import instantiate, locate
from espnet3.data.augment import Augmenter
from espnet3.data.batching import ChunkSampler, EpochSampler, Lengths, SortedPools, TypedBatchSampler
from espnet3.data.dataset import ESPnet3Dataset, as_dataset
from espnet3.data.fetch import Fetcher
from espnet3.data.streams import StreamBatches, StreamDataset
from espnet3.errors import UserError


class ESPnet3DataLoader(DataLoader):
    """A DataLoader that knows its epoch, and can be continued within one.

    Each pass over it is the next epoch, which data orders and augmentation depend on; :meth:`set_epoch` says another one.
    ``state_dict`` counts the batches that were handed out, whatever loader processes have read ahead.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.order: Any = self.dataset if isinstance(self.dataset, StreamBatches) else self.sampler
        self._done: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of *epoch*, from 0."""
        self.order.set_epoch(epoch)
        self._done = None

    def state_dict(self) -> dict[str, int]:
        """``{"epoch", "batch"}``: the epoch, and how many of its batches are done."""
        epoch, batch = self._done or self.order.place
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass begin where *state* was taken; what came before is not read."""
        self.order.start(int(state["epoch"]), int(state["batch"]))
        self._done = None

    def __iter__(self) -> Iterator[Any]:
        epoch, batch = self.order.place
        self._done = (epoch, batch)
        for value in super().__iter__():
            batch += 1
            self._done = (epoch, batch)
            yield value
        self.order.start(epoch + 1, 0)
        self._done = None

    def __len__(self) -> int:
        """Batches an epoch. Raises TypeError where the sampler does not know."""
        return self.order.count() if isinstance(self.order, EpochSampler) else super().__len__()


def make_dataloader(
    dataset: Any,
    sampler: Any = None,
    *,
    batch_sampler: Iterable | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    collate_fn: Callable | None = None,
    num_workers: int = 0,
    seed: int = 0,
    **options: Any,
) -> DataLoader:
    """A DataLoader whose batches are ``(uids, {"speech": (B, T), "speech_lengths": (B,), ...})``.

    Args:
        dataset: an ESPnet3Dataset, or anything that one can be made of, or any torch data set (then *collate_fn* is
            needed).
        sampler: a Lhotse CutSampler over ``dataset.cuts``, which decides the batches itself and, under
            torch.distributed, each rank's share; ``{"type": "numel", "batch_bins": ...}``, one of ESPnet2's batch types;
            a ``{"_target_": ...}`` node of a sampler; or a torch sampler of positions, which needs *batch_size*.
        batch_sampler: lists of positions. batch_size: utterances a batch (1 where nothing else decides).
        shuffle: anew in each epoch; not with a sampler object. A stream is shuffled in a buffer of *shuffle_buffer* rows.
        collate_fn: None: the data set's own.
        num_workers: processes that read audio; they live as long as the loader.
        seed: of the order and the augmentation.
        options: ``augment`` (a list of steps, see :mod:`espnet3.data.augment`), ``features`` (see
            :mod:`espnet3.data.features`), ``cut_transforms`` (Lhotse's, for Lhotse's samplers), ``shuffle_buffer``,
            ``drop_last`` (with *batch_size*), and those of ``torch.utils.data.DataLoader``.

    Raises:
        UserError: two of the arguments exclude each other.
    """
    options.setdefault("pin_memory", torch.cuda.is_available())
    given = {"batch_sampler": batch_sampler, "batch_size": batch_size, "shuffle": shuffle, "collate_fn": collate_fn}
    dataset = as_dataset(dataset)
    if isinstance(dataset, torch.utils.data.IterableDataset) and not isinstance(dataset, StreamDataset):
        if sampler is not None or batch_sampler is not None:
            raise UserError("make_dataloader: an IterableDataset takes no sampler; use batch_size")
        return DataLoader(dataset, batch_size=batch_size, collate_fn=collate_fn, num_workers=num_workers, **options)
    return ESPnet3DataLoader(
        **loader_arguments(dataset, sampler, **given, num_workers=num_workers, seed=seed, **options)
    )


def loader_arguments(
    dataset: Any,
    sampler: Any = None,
    *,
    batch_sampler: Iterable | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    collate_fn: Callable | None = None,
    num_workers: int = 0,
    seed: int = 0,
    augment: Sequence[Any] | None = None,
    features: Any = None,
    cut_transforms: Sequence[Any] = (),
    shuffle_buffer: int = 1000,
    drop_last: bool = False,
    reseed: bool = False,
    allow: tuple[str, ...] = (),
    **options: Any,
) -> dict[str, Any]:
    """What :func:`make_dataloader` hands to torch's DataLoader.

    Args:
        reseed: seed the global generators before each batch, see :class:`espnet3.data.batching.EpochSampler`.
        allow: packages that ``_target_`` may name besides.
    """
    _check(sampler, batch_sampler, batch_size, shuffle)
    steps = instantiate(list(augment or ()), allow=allow)
    augmenter = Augmenter(steps, seed) if steps else None
    features = instantiate(features, allow=allow)
    arguments = {"batch_size": None, "num_workers": num_workers, **options}
    if isinstance(dataset, StreamDataset):
        if sampler is not None or batch_sampler is not None:
            raise UserError("make_dataloader: a stream takes no sampler; use batch_size and shuffle")
        collate = collate_fn or dataset.collate
        finish = Fetcher(None, None, augmenter, features).finish
        buffer = shuffle_buffer if shuffle else 0
        batches = StreamBatches(dataset, finish, collate, batch_size or 1, buffer, seed)
        return {**arguments, "dataset": batches}
    if num_workers > 0:
        arguments.setdefault("persistent_workers", True)
    whole: Sequence[str] = ()
    if isinstance(sampler, Mapping):
        whole = sampler.get("excluded_key_prefixes") or ()
        sampler = build_sampler(dataset, sampler, bool(shuffle), seed, allow)
    share = False
    if batch_sampler is not None:
        sampler = batch_sampler
    elif is_lhotse(sampler):
        if not isinstance(dataset, ESPnet3Dataset) and collate_fn is None:
            collate_fn = _identity
    elif not _makes_batches(sampler):
        # ranks each get their share of what knows nothing of ranks
        share = not hasattr(sampler, "num_replicas")
        if sampler is None:
            sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
        sampler = BatchSampler(sampler, batch_size or 1, drop_last=drop_last)
    if cut_transforms and not is_lhotse(sampler):
        raise UserError(
            "dataloader.cut_transforms: they change Lhotse cuts and need one of Lhotse's samplers; use augment"
        )
    fetcher = Fetcher(
        dataset,
        collate_fn or getattr(dataset, "collate", None) or default_collate,
        augmenter,
        features,
        instantiate(list(cut_transforms), allow=allow),
        seed,
        whole,
    )
    return {**arguments, "dataset": fetcher, "sampler": EpochSampler(sampler, seed, reseed, share)}


def build_sampler(dataset: Any, node: Mapping[str, Any], shuffle: bool, seed: int, allow: tuple[str, ...] = ()) -> Any:
    """The sampler of a configuration: ``{type: ...}`` (ESPnet2's) or ``{_target_: ...}`` (Lhotse's or torch's).

    ESPnet2's types take lengths from ``shape_files`` (or ``shape_file``), or from the data set's own durations. A Lhotse sampler
    gets the data set's ``cuts``, another one the data set.

    Raises:
        UserError: the node is neither, or the data set has no cuts.
    """
    check_batch_type(node, "dataloader.sampler")
    typed = batch_type(node)
    if typed is not None:
        return _typed(dataset, typed, shuffle, seed)
    node, target = dict(node), str(node["_target_"])
    ours = locate(target, allow)
    if target.startswith("lhotse."):
        cuts = getattr(dataset, "cuts", None)
        if cuts is None:
            raise UserError(f"dataloader: {target} needs a data set with cuts; use batch_size instead")
        return instantiate({"seed": seed, "shuffle": shuffle, **node, "_partial_": True}, allow=allow)(cuts)
    if ours is SortedPools:
        node = {"seed": seed, "shuffle": shuffle, **node}
    return instantiate({**node, "_partial_": True}, allow=allow)(dataset)


def _typed(dataset: Any, node: dict[str, Any], shuffle: bool, seed: int) -> Any:
    kind, files = node.pop("type"), []
    for key in ("shape_files", "shape_file"):
        value = node.pop(key, None) or ()
        files += [value] if isinstance(value, str) else list(value)
    order = {"shuffle": node.pop("shuffle", shuffle), "seed": node.pop("seed", seed)}
    lengths = Lengths.of(dataset, files)
    if kind == "chunk":
        node.pop("excluded_key_prefixes", None)
        node.pop("drop_last", None)
        return ChunkSampler(lengths, **node, **order)
    fold = node.pop("fold_lengths", None) or node.pop("fold_length", None)
    node.pop("fold_length", None)
    if fold:
        node["fold_lengths"] = [fold] if isinstance(fold, int) else list(fold)
    return TypedBatchSampler(lengths, kind, **node, **order)


def _check(sampler: Any, batch_sampler: Any, batch_size: Any, shuffle: Any) -> None:
    if sampler is not None and batch_sampler is not None:
        raise UserError("make_dataloader: give either sampler or batch_sampler")
    if is_lhotse(sampler) and (batch_size is not None or shuffle is not None):
        raise UserError(
            "make_dataloader: a Lhotse sampler decides the batches; say max_duration, max_cuts and shuffle to the "
            "sampler instead of batch_size and shuffle"
        )
    if batch_sampler is not None and (batch_size is not None or shuffle is not None):
        raise UserError("make_dataloader: batch_sampler excludes batch_size and shuffle")
    if sampler is not None and not isinstance(sampler, Mapping) and shuffle is not None:
        raise UserError("make_dataloader: sampler excludes shuffle")
    if isinstance(sampler, Mapping) and batch_type(sampler) is not None and batch_size is not None:
        raise UserError("make_dataloader: say batch_size to the sampler of an ESPnet2 batch type")


def is_lhotse(sampler: Any) -> bool:
    """Whether *sampler* is one of Lhotse's, which make batches of cuts."""
    return any(base.__module__.startswith("lhotse.") for base in type(sampler).__mro__)


def _makes_batches(sampler: Any) -> bool:
    return isinstance(sampler, (SortedPools, TypedBatchSampler, ChunkSampler, BatchSampler))


def _identity(batch: Any) -> Any:
    return batch
