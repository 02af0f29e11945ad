"""The ``callbacks`` of a configuration, and which of the trainer's own it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError, did_you_mean

DEFAULTS = ("log", "state")
"""``log``: the lines that a person reads. ``state``: checkpoints, history and everything that a later run goes on from."""


def read_callbacks(node: Any, allow: tuple[str, ...] = ()) -> tuple[list[pl.Callback], set[str]]:
    """Callbacks of a ``callbacks:`` section, and the names of the trainer's own that stay.

    Args:
        node: a list of ``_target_`` nodes or callbacks; or a mapping of names to them, in which ``defaults: false`` removes
            the trainer's own, and ``log: null`` or ``state: null`` one of them; null removes an inherited one of the user's, too.

    Raises:
        UserError: what is there is neither.
    """
    if node is None or (isinstance(node, (pl.Callback, Sequence)) and not isinstance(node, str)):
        items = [] if node is None else [node] if isinstance(node, pl.Callback) else list(node)
        return [_built(str(number), item, allow) for number, item in enumerate(items)], set(DEFAULTS)
    if not isinstance(node, Mapping):
        raise UserError(f"trainer.callbacks: a list or a mapping of _target_ nodes, not {node!r}")
    if "_target_" in node:
        return [_built("", dict(node), allow)], set(DEFAULTS)
    node = dict(node)
    kept = set(DEFAULTS) if node.pop("defaults", True) else set()
    for name in DEFAULTS:
        if name in node:
            value = node.pop(name)
            if isinstance(value, bool) or value is None:
                kept = kept | {name} if value else kept - {name}
            else:
                raise UserError(f"trainer.callbacks.{name}: true, false or null, not {value!r}")
    return [_built(name, item, allow) for name, item in node.items() if item is not None], kept


def _built(name: str, item: Any, allow: tuple[str, ...]) -> pl.Callback:
    if isinstance(item, Mapping) and "_target_" in item:
        item = instantiate(dict(item), allow=allow)
    if not isinstance(item, pl.Callback):
        raise UserError(
            f"trainer.callbacks.{name}: not a callback, nor a _target_ node of one{did_you_mean(name, DEFAULTS)}"
        )
    return item
