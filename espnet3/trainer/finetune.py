"""Beginning from another model's weights, and training only a part of a model."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from espnet3.errors import UserError, did_you_mean
from espnet3.io import sha256_file

log = logging.getLogger(__name__)

SHOWN = 8


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """A model's tensors, on the CPU, from safetensors, ``last.ckpt``, or ESPnet2's ``*epoch.pth`` and ``*.ave_*best.pth``.

    No code in the file is run.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors (ESPnet2's checkpoint.pth?); give an *epoch.pth or an *.ave_*best.pth"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:200]})") from None
    if isinstance(content, Mapping) and "state_dict" in content:
        # Lightning's: the model is the attribute `model` of its module
        tensors = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    else:
        tensors = content
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise UserError(f"{path}: not a model's tensors by name")
    return dict(tensors)


def initialise(model: nn.Module, node: str | Mapping[str, Any]) -> dict[str, Any]:
    """Copy into *model* what fits of a checkpoint, and say what did not.

    Args:
        node: a path, or ``path``; ``prefixes``, ``{theirs: ours}`` (a name that begins with *theirs* is renamed, the longest first;
            null drops it); ``only`` and ``exclude``, beginnings of our names; ``strict``, which refuses anything missing or
            of another shape.

    Returns:
        Names: ``matched``, ``missing`` (ours that the checkpoint lacks), ``unused`` (theirs), ``mismatched`` (with both shapes).

    Raises:
        UserError: the file cannot be read, nothing fits, or something does not and ``strict`` is set.
    """
    node = {"path": node} if isinstance(node, (str, os.PathLike)) else dict(node)
    known = {"path", "prefixes", "only", "exclude", "strict", "sha256"}
    for key in node:
        if key not in known:
            raise UserError(f"init: unknown key '{key}'{did_you_mean(key, known)}")
    path = node.get("path")
    if not path:
        raise UserError("init: the key 'path' is missing")
    theirs = _renamed(read_weights(path), node.get("prefixes") or {})
    only, exclude = tuple(node.get("only") or ()), tuple(node.get("exclude") or ())
    ours = model.state_dict()
    wanted = {n for n in ours if (not only or n.startswith(only)) and not (exclude and n.startswith(exclude))}
    fits = sorted(n for n in wanted & theirs.keys() if ours[n].shape == theirs[n].shape)
    report = {
        "path": str(path),
        "matched": fits,
        "missing": sorted(wanted - theirs.keys()),
        "unused": sorted(theirs.keys() - wanted),
        "mismatched": {
            n: [list(theirs[n].shape), list(ours[n].shape)]
            for n in sorted(wanted & theirs.keys())
            if n not in set(fits)
        },
    }
    if not fits:
        raise UserError(
            f"init: nothing of {path} fits this model (it has {', '.join(sorted(theirs)[:2])}; the model has "
            f"{', '.join(sorted(ours)[:2])}); map the names with init.prefixes"
        )
    if node.get("strict") and (report["missing"] or report["mismatched"]):
        raise UserError(f"init: {path} does not fill this model: {_summary(report)}")
    with torch.no_grad():
        for name in fits:
            ours[name].copy_(theirs[name])
    log.info("init: %s", _summary(report))
    return report


def _renamed(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str | None]) -> dict[str, Tensor]:
    found = {}
    order = sorted(prefixes, key=len, reverse=True)
    for name, value in tensors.items():
        prefix = next((p for p in order if name.startswith(p)), None)
        if prefix is None:
            found[name] = value
        elif prefixes[prefix] is not None:
            found[prefixes[prefix] + name[len(prefix) :]] = value
    return found


def _summary(report: Mapping[str, Any]) -> str:
    text = f"{report['path']}: {len(report['matched'])} tensors taken"
    for kind, words in (("missing", "not in it"), ("unused", "of it not used"), ("mismatched", "of another shape")):
        names = list(report[kind])
        if names:
            text += f"; {len(names)} {words} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
    return text


def init_digest(node: str | Mapping[str, Any] | None) -> Any:
    """*node* with its file's SHA-256 in place of its path: what a training's identity holds of it."""
    if not node:
        return None
    node = {"path": node} if isinstance(node, (str, os.PathLike)) else dict(node)
    path = node.pop("path", None)
    if not path or not Path(path).is_file():
        raise UserError(f"init: {path}: no such file")
    return {**node, "sha256": sha256_file(path)}


def freeze(model: nn.Module, names: Sequence[str]) -> int:
    """Train no parameter whose name begins with one of *names*; their modules stay in evaluation mode (see :func:`hold`).

    Returns:
        The number of frozen parameters (elements).

    Raises:
        UserError: a name begins no parameter, or nothing is left to train.
    """
    count = 0
    for prefix in names:
        found = [p for n, p in model.named_parameters() if matches(n, prefix)]
        if not found:
            known = {part for n, _ in model.named_parameters() for part in (n, n.split(".")[0])}
            raise UserError(f"freeze: no parameter begins with '{prefix}'{did_you_mean(prefix, sorted(known))}")
        for parameter in found:
            count += parameter.numel() if parameter.requires_grad else 0
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("freeze: nothing is left to train")
    return count


def hold(model: nn.Module, names: Sequence[str]) -> None:
    """Put frozen modules into evaluation mode: batch norm keeps its statistics, dropout is off."""
    for name, module in model.named_modules():
        if name and any(matches(name, prefix) for prefix in names):
            module.eval()


def matches(name: str, prefix: str) -> bool:
    """Whether *prefix* names *name* or a part of the model above it."""
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")
