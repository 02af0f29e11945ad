"""Learning rate schedules over optimiser steps.

Each is a function of the step alone, with its length given explicitly, so that training longer or shorter (`max_epochs`)
never changes the steps that are already done. Their state is plain numbers: a checkpoint loads with ``weights_only``.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espnet3.errors import UserError


class _Schedule(LRScheduler):
    def factor(self, step: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class WarmupInverseSqrt(_Schedule):
    """Linear to the optimiser's rate over `warmup_steps`, then with the inverse square root (ESPnet's ``WarmupLR``)."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int):
        self.warmup_steps = _positive("warmup_steps", warmup_steps)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        step = step + 1
        return min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))


class _WarmupDecay(_Schedule):
    def __init__(self, optimizer: Optimizer, warmup_steps: int, steps: int, floor: float = 0.02):
        self.warmup_steps = _positive("warmup_steps", warmup_steps)
        self.steps = _positive("steps", steps)
        self.floor = floor
        if steps <= warmup_steps:
            raise UserError(f"scheduler.steps: {steps} must be more than warmup_steps, {warmup_steps}")
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
        return self.floor + (1 - self.floor) * self.shape(done)

    def shape(self, done: float) -> float:
        raise NotImplementedError


class WarmupCosine(_WarmupDecay):
    """Linear to the optimiser's rate over `warmup_steps`, a half cosine to `floor` of it at `steps`, constant after."""

    def shape(self, done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * done))


class WarmupLinear(_WarmupDecay):
    """Linear to the optimiser's rate over `warmup_steps`, linear to `floor` of it at `steps`, constant after."""

    def shape(self, done: float) -> float:
        return 1 - done


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"scheduler.{name}: must be above 0, not {value}")
    return value
