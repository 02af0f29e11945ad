"""A batch that does not fit into memory is run in parts, and the step stays what it was.

ESPnet's loss is a mean over a batch's ``weight``, so the gradient of a batch is the weighted mean of its parts'. It is the
same up to rounding for a model without batch statistics, dropout or augmentation, and one fair draw of them otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from espnet3.parallel.records import free_memory, out_of_memory

log = logging.getLogger(__name__)

Batch = dict[str, Any]


def size(batch: Mapping[str, Any]) -> int:
    """Utterances in a batch."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def halves(ids: list[str], batch: Batch) -> Iterator[tuple[list[str], Batch]]:
    """A batch's first and second half, without the padding that only the other half needed."""
    number = size(batch)
    for part in (slice(0, number // 2), slice(number // 2, number)):
        half = {
            name: value[part] if isinstance(value, (Tensor, list, tuple)) and _rows(value) == number else value
            for name, value in batch.items()
        }
        for name, value in half.items():
            lengths = half.get(f"{name}_lengths")
            if isinstance(lengths, Tensor) and isinstance(value, Tensor) and value.ndim > 1:
                half[name] = value[:, : int(lengths.max())]
        yield ids[part] if len(ids) == number else ids, half


def _rows(value: Any) -> int:
    return (len(value) if value.ndim else -1) if isinstance(value, Tensor) else len(value)


class MemoryGuard:
    """Runs a module's forward and backward pass so that memory that runs out costs no more than one utterance.

    In a process of its own the graph of the loss is held here and not by Lightning, so that nothing keeps it alive when its
    backward pass fails. With several processes a forward pass that fails is run in parts; a backward pass that fails
    there has begun to exchange gradients, and ends the training with the utterances' names.

    Attributes:
        count: batches that did not fit.
        recent: ``(ids, batch)`` of all batches since the last optimiser step.
    """

    def __init__(self) -> None:
        self.count = 0
        self.recent: list[tuple[list[str], Batch]] = []
        self._loss: Tensor | None = None
        self._gate: Tensor | None = None

    def forward(self, module: Any, ids: list[str], batch: Batch) -> tuple[Tensor, Mapping[str, Any] | None, Any]:
        """``(loss, stats, weight)`` of the module's model; ``stats`` is None where memory ran out: then all is left to
        :meth:`backward`."""
        self._loss = self._gate = None
        try:
            loss, stats, weight = module.model(**batch)
        except Exception as error:
            self._raise_other(error, module)
            stats, weight = None, 0
        if stats is None:
            self._gate = torch.zeros((), device=module.device, requires_grad=True)
            return self._gate, None, 0
        if module.trainer.world_size > 1 or not loss.requires_grad:
            return loss, stats, weight
        self._loss, self._gate = loss, loss.detach().requires_grad_()
        return self._gate, stats, weight

    def backward(self, module: Any, loss: Tensor, plain: Callable[[Tensor], None], add: Callable) -> list[str]:
        """The backward pass of what :meth:`forward` gave.

        Args:
            loss: it, scaled by Lightning.
            plain: Lightning's own backward pass.
            add: called with ``(stats, weight)`` of each part of a batch that had none yet.

        Returns:
            The utterances that do not even fit alone.
        """
        if self._gate is None:
            try:
                plain(loss)
            except Exception as error:
                if out_of_memory(error):
                    log.error("out of memory; utterances: %s", " ".join(self.recent[-1][0]))
                raise
            return []
        plain(loss)
        factor, held = self._gate.grad, self._loss
        self._gate = self._loss = None
        if held is not None:
            try:
                held.backward(gradient=factor)
                return []
            except Exception as error:
                self._raise_other(error, module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        todo = self.recent[-1:]
        where = "forward" if held is None else "backward"
        if held is not None:
            # what the pass that failed has added to the gradients cannot be told from what was there
            todo, held, add = list(self.recent), None, lambda stats, weight: None
            for parameter in parameters:
                parameter.grad = None
        free_memory()
        total: list[Tensor | None] = [None] * len(parameters)
        lost: list[str] = []
        for number, (ids, batch) in enumerate(todo):
            whole = _Parts(module, parameters, factor, size(batch), add)
            if number == len(todo) - 1:
                self.count += 1
                log.warning(
                    "out of memory in the %s pass of %d utterances: in halves (%d times so far); utterances: %s",
                    *(where, size(batch), self.count, " ".join(ids)),
                )
                whole.split(ids, batch)
            else:
                whole.run(ids, batch)
            lost += whole.lost
            total = [_sum(a, b) for a, b in zip(total, whole.gradients(), strict=True)]
        if lost and all(gradient is None for gradient in total):
            total = [torch.zeros_like(parameter) for parameter in parameters]
        _set(parameters, total, module.trainer.world_size > 1)
        return lost

    def _raise_other(self, error: Exception, module: Any) -> None:
        from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

        # a strategy that shards the model needs all processes in each pass
        if not out_of_memory(error) or not isinstance(module.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise error


class _Parts:
    """The gradient of a batch of *number* utterances, summed over parts that fit."""

    def __init__(self, module: Any, parameters: list, factor: Tensor, number: int, add: Callable):
        self.module, self.parameters, self.factor, self.number, self.add = module, parameters, factor, number, add
        self.sums: list[Tensor | None] = [None] * len(parameters)
        self.weight = 0.0
        self.lost: list[str] = []

    def split(self, ids: list[str], batch: Batch) -> None:
        if size(batch) < 2:
            log.warning("out of memory with one utterance: skipped: %s", " ".join(ids))
            self.lost += ids or ["?"]
            return
        for part in halves(ids, batch):
            self.run(*part)

    def run(self, ids: list[str], batch: Batch) -> None:
        share = size(batch) / self.number
        found = None
        try:
            with self.module.trainer.strategy.precision_plugin.train_step_context():
                loss, stats, weight = self.module.model(**batch)
            # scaled before the pass and not after it, for the sake of half precision
            found = torch.autograd.grad(loss * (self.factor * share), self.parameters, allow_unused=True)
        except Exception as error:
            if not out_of_memory(error):
                raise
        if found is None:
            loss = stats = None
            free_memory()
            self.split(ids, batch)
            return
        self.add(stats, weight)
        weight = float(weight)
        self.weight += weight
        right = weight / size(batch)
        self.sums = [
            _sum(a, b if b is None or right == 1 else b * right) for a, b in zip(self.sums, found, strict=True)
        ]

    def gradients(self) -> list[Tensor | None]:
        right = self.number / self.weight if self.weight else 0.0
        return [a if a is None or right == 1 else a.mul_(right) for a in self.sums]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.add_(b)


def _set(parameters: list, gradients: list[Tensor | None], exchanged: bool) -> None:
    if exchanged:
        # a pass whose gradient is what was found: with it come the hooks that exchange gradients among processes
        pairs = zip(parameters, gradients, strict=True)
        sum((p * (torch.zeros_like(p) if g is None else g)).sum() for p, g in pairs).backward()
        return
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = _sum(parameter.grad, gradient)
