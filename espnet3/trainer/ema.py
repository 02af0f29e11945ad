"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from espnet3.errors import UserError


class EMA(pl.Callback):
    """A moving average of the weights, which is validated and published in their place; training goes on with the weights.

    After step n the average moves towards the weights by ``1 - min(decay, (1 + n) / (10 + n))``: a short memory at first, so
    that the initial weights are soon forgotten. Floating-point buffers (batch norm's) are averaged too, others are copied.

    Args:
        decay: 0.999 averages over the last thousand steps or so.
        every: optimiser steps between two updates.
        start: optimiser step at which averaging begins; before it the average is the weights.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, start: int = 0):
        if not 0 < decay < 1 or every < 1 or start < 0:
            raise UserError(
                f"trainer.ema: decay ({decay}) must be between 0 and 1, every ({every}) 1 or more, start 0 or more"
            )
        self.decay, self.every, self.start = decay, every, start
        self.average: dict[str, Tensor] = {}
        self.updates = 0
        self._seen = -1
        self._weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        state = module.model.state_dict()
        if self.average.keys() != state.keys():
            self.average = {name: value.detach().clone() for name, value in state.items()}
        self.average = {name: value.to(state[name].device) for name, value in self.average.items()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._seen or step % self.every:
            return
        self._seen = step
        state = module.model.state_dict()
        if step <= self.start:
            rate = 1.0
        else:
            rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
        floats = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[n] for n in floats], [state[n].to(self.average[n].dtype) for n in floats], rate
        )
        for name in state.keys() - set(floats):
            self.average[name].copy_(state[name])

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.average:
            self._weights = {name: value.detach().clone() for name, value in module.model.state_dict().items()}
            self.copy_to(module.model)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._weights:
            module.model.load_state_dict(self._weights)
            self._weights = {}

    def copy_to(self, model: nn.Module) -> None:
        """Put the average in the place of *model*'s weights."""
        model.load_state_dict(self.average)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = dict(state["average"])
        self.updates = state["updates"]
