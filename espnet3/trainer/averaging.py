"""The mean of several checkpoints' weights, one tensor at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from espnet3.errors import UserError
from espnet3.io import atomic_write

# safetensors' names of what a model's state may hold
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def average(
    inputs: Sequence[str | os.PathLike], output: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Write the mean of safetensors files, all of one model, to *output*, atomically.

    Each tensor is summed in float64 and rounded once to its own type; values are sorted by the size of what they add, so the
    order of *inputs* does not matter. Integer and boolean tensors (counters, masks) are not averaged: the last file's, by name,
    is taken, and a mask must be equal in all. At no time is more than one tensor of each file in memory.

    Raises:
        UserError: no files, tensors that differ in name, shape or type, or a value that is not finite; the tensor is named.
    """
    paths = sorted(Path(p) for p in inputs)
    if not paths:
        raise UserError(f"{output}: no checkpoints to average")
    with ExitStack() as stack:
        files = [stack.enter_context(_open(path)) for path in paths]
        names = sorted(files[0].keys())
        for path, file in zip(paths, files, strict=True):
            if sorted(file.keys()) != names:
                odd = sorted(set(file.keys()) ^ set(names))[0]
                raise UserError(
                    f"{path}: tensor '{odd}' is not in all of the checkpoints; average checkpoints of one model"
                )
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        offset = 0
        first = files[0]
        for name in names:
            shape, kind = first.get_slice(name).get_shape(), first.get_slice(name).get_dtype()
            size = _bytes(shape, kind)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(output, "wb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                mean = _mean(name, paths, files)
                handle.write(mean.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _open(path: Path):
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train again, or average fewer") from None
    except Exception as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


def _bytes(shape: Sequence[int], kind: str) -> int:
    dtype = next(d for d, name in _NAMES.items() if name == kind)
    return torch.Size(shape).numel() * torch.empty((), dtype=dtype).element_size()


def _mean(name: str, paths: list[Path], files: list) -> torch.Tensor:
    total = None
    first = files[0].get_tensor(name)
    for path, file in zip(paths, files, strict=True):
        value = file.get_tensor(name)
        if value.shape != first.shape or value.dtype != first.dtype:
            raise UserError(
                f"{path}: tensor '{name}' is {tuple(value.shape)} {value.dtype}, not {tuple(first.shape)} {first.dtype}"
            )
        if not value.dtype.is_floating_point:
            total = value
            continue
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor '{name}' is not finite; leave this checkpoint out")
        total = value.double() if total is None else total.add_(value)
    return total if not first.dtype.is_floating_point else (total / len(files)).to(first.dtype)
