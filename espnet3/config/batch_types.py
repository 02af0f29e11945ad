"""ESPnet2's batch types and the keys that each takes: what ``dataloader.<part>.sampler: {type: ...}`` may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet3.errors import UserError, did_you_mean

_SORTING = frozenset({"sort_in_batch", "sort_batch"})
_ANY = frozenset({"type", "shape_file", "shape_files", "drop_last", "shuffle", "seed"})

BATCH_TYPES: dict[str, tuple[str, frozenset[str]]] = {
    "unsorted": ("batch_size", frozenset()),
    "sorted": ("batch_size", _SORTING),
    "folded": ("batch_size", _SORTING | {"fold_length", "fold_lengths", "min_batch_size"}),
    "length": ("batch_bins", _SORTING | {"min_batch_size", "padding"}),
    "numel": ("batch_bins", _SORTING | {"min_batch_size", "padding"}),
    "chunk": (
        "batch_size",
        frozenset(
            {
                "chunk_length",
                "chunk_shift_ratio",
                "num_cache_chunks",
                "chunk_max_abs_length",
                "discard_short_samples",
                "excluded_key_prefixes",
            }
        ),
    ),
}
"""Of each type, the key that says how large a batch is, and those that it may have besides."""

_COUNTS = ("batch_size", "batch_bins", "min_batch_size", "num_cache_chunks", "chunk_max_abs_length")


def batch_type(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """A ``{type: ...}`` node without its empty keys; None where it is a ``_target_`` node.

    A key that is null counts as absent, so that an experiment can put a batch type in the place of a sampler that it inherits.
    """
    return None if node.get("_target_") is not None else {k: v for k, v in node.items() if v is not None}


def check_batch_type(sampler: Mapping[str, Any], where: str) -> None:
    """Refuse a ``{type: ...}`` node with an unknown type or key, or without what its type needs.

    Raises:
        UserError: naming *where* and the key.
    """
    node = batch_type(sampler)
    if node is None:
        if sampler.get("type") in BATCH_TYPES:
            rest = ", ".join(
                f"{key}: null" for key in sampler if key not in _ANY and key not in _sizes(sampler["type"])
            )
            raise UserError(f"{where}: has both type and _target_; say {{{rest}}} beside the type, or leave it out")
        return
    kind = node.get("type")
    if kind not in BATCH_TYPES:
        known = ", ".join(BATCH_TYPES)
        raise UserError(
            f"{where}.type: unknown batch type {kind!r}{did_you_mean(str(kind), BATCH_TYPES)}; known: {known}"
        )
    size, others = BATCH_TYPES[kind]
    known = _ANY | others | {size}
    for key in node:
        if key not in known:
            raise UserError(f"{where}: type '{kind}' has no key '{key}'{did_you_mean(key, known)}")
    needed = [size] + ["chunk_length"] * (kind == "chunk")
    missing = [key for key in needed if node.get(key) is None]
    if kind == "folded" and not (node.get("fold_length") or node.get("fold_lengths")):
        missing.append("fold_length")
    if missing:
        raise UserError(f"{where}: type '{kind}' needs the key '{missing[0]}'")
    for key in _COUNTS:
        value = node.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{where}.{key}: must be a whole number above 0, not {value!r}")
    for key in _SORTING:
        if node.get(key, "ascending") not in ("ascending", "descending"):
            raise UserError(f"{where}.{key}: must be ascending or descending, not {node[key]!r}")
    ratio = node.get("chunk_shift_ratio", 0.5)
    if kind == "chunk" and not (isinstance(ratio, (int, float)) and 0 < ratio <= 1):
        raise UserError(f"{where}.chunk_shift_ratio: must be above 0 and at most 1, not {ratio!r}")


def _sizes(kind: str) -> frozenset[str]:
    return BATCH_TYPES[kind][1] | {BATCH_TYPES[kind][0]}
