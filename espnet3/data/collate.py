"""Items to a batch in ESPnet's form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Collate:
    """``[(uid, {name: array}), ...]`` to ``(uids, {name: padded, name_lengths: int64 (B,)})``, as ESPnet2's
    CommonCollateFn.

    Arrays (T, ...) are padded at their end and stacked to (B, T_max, ...): floating-point ones as float32 with
    *float_pad*, integers as int64 with *int_pad*. Numbers become a vector (B,) without lengths; what is no number
    (strings) stays a list.

    Args:
        float_pad, int_pad: the padding; -1 is the id that ESPnet's losses ignore.
        not_sequence: names of arrays that need no lengths.
    """

    def __init__(self, float_pad: float = 0.0, int_pad: int = -1, not_sequence: tuple[str, ...] = ()) -> None:
        self.float_pad, self.int_pad = float_pad, int_pad
        self.not_sequence = set(not_sequence)

    def __call__(self, items: list[tuple[str, dict[str, Any]]]) -> tuple[list[str], dict[str, Any]]:
        """Raises ValueError where the items do not have the same names, or an array's further dimensions differ."""
        uids = [uid for uid, _ in items]
        names = items[0][1].keys()
        for uid, data in items:
            if data.keys() != names:
                raise ValueError(f"utterance {uid} has {sorted(data)}, utterance {uids[0]} has {sorted(names)}")
        batch: dict[str, Any] = {}
        for name in names:
            values = [data[name] for _, data in items]
            if isinstance(values[0], torch.Tensor):
                values = [value.numpy() for value in values]
            if not isinstance(values[0], (np.ndarray, np.generic, int, float)):
                batch[name] = values
            elif np.ndim(values[0]) == 0:
                batch[name] = torch.as_tensor(np.asarray(values))
            else:
                batch[name] = self._pad(name, values, uids)
                if name not in self.not_sequence:
                    batch[f"{name}_lengths"] = torch.tensor([len(value) for value in values], dtype=torch.int64)
        return uids, batch

    def _pad(self, name: str, values: list[np.ndarray], uids: list[str]) -> torch.Tensor:
        is_float = values[0].dtype.kind == "f"
        shape = (len(values), max(len(value) for value in values), *values[0].shape[1:])
        padded = torch.empty(shape, dtype=torch.float32 if is_float else torch.int64)
        view, pad = padded.numpy(), self.float_pad if is_float else self.int_pad
        for row, value, uid in zip(view, values, uids, strict=True):
            if value.shape[1:] != shape[2:]:
                raise ValueError(f"utterance {uid}: '{name}' is (T, {value.shape[1:]}), not (T, {shape[2:]})")
            row[: len(value)] = value
            row[len(value) :] = pad
        return padded
