"""Keys that trade time for memory or compilation for speed, and leave the training what it is."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from espnet3.errors import UserError, did_you_mean

log = logging.getLogger(__name__)


def recompute(model: nn.Module, names: bool | Sequence[str]) -> int:
    """Gradient checkpointing: blocks forget what is inside them and compute it again in the backward pass.

    Dropout draws the same numbers again, batch norm does not count the batch twice: gradients and buffers stay the same.

    Args:
        names: of modules that hold blocks, such as ``encoder.blocks``; true: every list of blocks of one kind.

    Returns:
        The number of blocks.

    Raises:
        UserError: there is no such list.
    """
    lists = _stacks(model)
    chosen = list(lists) if names is True else list(names or ())
    for name in chosen:
        if name not in lists:
            raise UserError(f"trainer.gradient_checkpointing: no list of blocks '{name}'{did_you_mean(name, lists)}")
    if names is True and not chosen:
        raise UserError("trainer.gradient_checkpointing: this model has no list of blocks; name none, or another model")
    blocks = [block for name in chosen for block in lists[name]]
    for block in blocks:
        if not hasattr(block, "computed_once"):
            block.computed_once = block.forward
            block.forward = functools.partial(_checkpointed, block)
    return len(blocks)


def _stacks(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if _is_stack(module)}


def _is_stack(module: nn.Module) -> bool:
    """Several blocks of one kind, each with blocks inside: not a list of convolutions."""
    children = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(children) > 1
        and len({type(child) for child in children}) == 1
        and len(list(children[0].modules())) > 4
    )


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return block.computed_once(*args, **kwargs)
    contexts = lambda: (contextlib.nullcontext(), _uncounted(block))  # noqa: E731
    return checkpoint(block.computed_once, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextlib.contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked -= 1
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def compile_model(model: nn.Module, node: bool | Mapping[str, Any], device: str) -> list[str]:
    """``torch.compile`` parts of a model, in place: names of tensors stay what they are.

    Each block is compiled by itself, so that all of a kind share their code, and convolutions stay outside: of
    their backward pass the compiler (torch 2.13) would make one for each length of a batch, and give up after eight.

    Args:
        node: true, or ``modules`` (default: every list of blocks of one kind, or without one the model) and arguments of
            ``torch.compile``; ``dynamic`` is true unless it is given, since batches differ in their lengths.
        device: ``cpu`` needs a C++ compiler.

    Returns:
        The names of the modules; a list of blocks stands for its blocks.

    Raises:
        UserError: there is no such module, or no compiler.
    """
    settings = {"dynamic": True, **(dict(node) if isinstance(node, Mapping) else {})}
    known, lists = dict(model.named_modules()), _stacks(model)
    names = settings.pop("modules", None) or list(lists) or [""]
    for name in names:
        if name not in known:
            raise UserError(f"trainer.compile: no module '{name}'{did_you_mean(name, known)}")
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError(
            "trainer.compile: torch.compile on the CPU needs a C++ compiler (g++); install one, or set it to false"
        )
    for name in names:
        for module in lists.get(name, [known[name]]):
            for part in module.modules():
                if isinstance(part, nn.modules.conv._ConvNd):
                    part.forward = functools.partial(_as_it_is, part)
            if hasattr(module, "computed_once"):
                # what is computed again is compiled, not the computing again
                module.computed_once = torch.compile(module.computed_once, **settings)
            else:
                module.compile(**settings)
    return names


@torch.compiler.disable
def _as_it_is(part: nn.Module, *args: Any) -> Any:
    return type(part).forward(part, *args)
