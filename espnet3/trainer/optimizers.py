"""One optimiser, or several by name, each with its part of the parameters and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError, did_you_mean

_CONTROL = ("interval", "frequency", "monitor")
_DEFAULT = {"_target_": "torch.optim.AdamW", "lr": 1e-3}


def configure(module: nn.Module, config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> Any:
    """What Lightning's ``configure_optimizers`` returns, for ``optimizer`` and ``scheduler``, or ``optimizers`` and ``schedulers``.

    ``optimizers`` is ``{name: {optimizer: node, params: substring or list of substrings}}``: each trained parameter must be chosen
    by exactly one of them. ``schedulers`` is ``{name: {scheduler: node}}``, with the names of optimisers.

    Raises:
        UserError: a parameter is in none or in two of them, an optimiser has none, or a schedule has no optimiser.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    several = config.get("optimizers")
    if not several:
        node = config.get("optimizer") or _DEFAULT
        optimizer = _optimizer(node, [p for _, p in trained], allow)
        scheduler = config.get("scheduler")
        if not scheduler:
            return optimizer
        schedule, control = _schedule(scheduler, optimizer, allow)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", **control}}
    parts = _share(trained, several)
    optimizer = Optimizers({name: _optimizer(several[name]["optimizer"], parts[name], allow) for name in several})
    nodes = config.get("schedulers") or {}
    for name in nodes:
        if name not in several:
            raise UserError(f"schedulers: '{name}' is no optimiser's name{did_you_mean(name, several)}")
    if not nodes:
        return optimizer
    built = {n: _schedule(node.get("scheduler", node), optimizer.named[n], allow) for n, node in nodes.items()}
    controls = {tuple(sorted(control.items())) for _, control in built.values()}
    if len(controls) > 1:
        raise UserError("schedulers: interval, frequency and monitor must be the same in all of them")
    schedulers = Schedulers(optimizer, {name: schedule for name, (schedule, _) in built.items()})
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedulers, "interval": "step", **dict(controls.pop())},
    }


def _optimizer(node: Mapping[str, Any], parameters: Sequence[nn.Parameter], allow: tuple[str, ...]) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if node.get("weight_decay"):
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return instantiate(dict(node), allow=allow, params=[g for g in groups if g["params"]])


def _schedule(node: Mapping[str, Any], optimizer: Optimizer, allow: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    control = {key: node[key] for key in _CONTROL if key in node}
    rest = {key: value for key, value in node.items() if key not in control}
    return instantiate(rest, allow=allow, optimizer=optimizer), control


def _share(trained: Sequence[tuple[str, nn.Parameter]], several: Mapping[str, Any]) -> dict[str, list[nn.Parameter]]:
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in several}
    for name, part in several.items():
        if not isinstance(part, Mapping) or "optimizer" not in part or not part.get("params"):
            raise UserError(
                f"optimizers.{name}: needs 'optimizer' (a _target_ node) and 'params' (a part of parameters' names)"
            )
    for parameter, value in trained:
        parameter = parameter.removeprefix("model.")
        owners = [name for name, part in several.items() if any(s in parameter for s in _listed(part["params"]))]
        if len(owners) != 1:
            found = f"both {owners[0]} and {owners[1]}" if owners else "none of them"
            raise UserError(
                f"optimizers: parameter {parameter} is in {found}; mend params, or name it in trainer.freeze"
            )
        parts[owners[0]].append(value)
    for name, values in parts.items():
        if not values:
            raise UserError(f"optimizers.{name}: no parameter's name contains {several[name]['params']!r}")
    return parts


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


class Optimizers(Optimizer):
    """Several optimisers that step together, as one.

    Attributes:
        named: by name; their parameter groups are this one's.
    """

    def __init__(self, named: Mapping[str, Optimizer]):
        self.named = dict(named)
        super().__init__([p for o in self.named.values() for g in o.param_groups for p in g["params"]], {})
        self._join()

    def _join(self) -> None:
        # the very dicts, so that a schedule of one of them is seen here
        self.param_groups = [group for optimizer in self.named.values() for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {p: state for optimizer in self.named.values() for p, state in optimizer.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """Each optimiser keeps its own."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.named.values():
            optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.named.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.named.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.keys() != self.named.keys():
            raise UserError(
                f"optimizers: the checkpoint has {sorted(state_dict)}, the configuration {sorted(self.named)}"
            )
        for name, optimizer in self.named.items():
            optimizer.load_state_dict(state_dict[name])
        self._join()


class Schedulers(LRScheduler):
    """The schedules of :class:`Optimizers`, as one."""

    def __init__(self, optimizer: Optimizers, named: Mapping[str, LRScheduler]):
        self.optimizer = optimizer
        self.named = dict(named)

    def step(self, *values: Any) -> None:
        for scheduler in self.named.values():
            scheduler.step(*values)

    def get_last_lr(self) -> list[float]:
        return [rate for scheduler in self.named.values() for rate in scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        return {name: scheduler.state_dict() for name, scheduler in self.named.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, scheduler in self.named.items():
            scheduler.load_state_dict(state_dict[name])
