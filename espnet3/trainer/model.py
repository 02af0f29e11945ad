"""ESPnet's model contract inside Lightning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from espnet3.config.instantiate import instantiate
from espnet3.config.tasks import expand_task
from espnet3.errors import UserError
from espnet3.trainer.distributed import share_buffers, total
from espnet3.trainer.finetune import hold
from espnet3.trainer.optimizers import configure
from espnet3.trainer.outofmemory import MemoryGuard, size

log = logging.getLogger(__name__)


class LitESPnetModel(pl.LightningModule):
    """A model with ESPnet's contract, ``loss, stats, weight = model(**batch)``, as a LightningModule.

    Losses and gradients that are not finite are skipped (the step changes nothing), counted, the utterances named and handed to
    `on_skip`; `max_nonfinite` of them in a row stop the training. A batch that does not fit into memory is run in parts
    (:mod:`espnet3.trainer.outofmemory`).

    Args:
        task: such an ``nn.Module``; a config node with ``_target_``, or with ``task`` and ``config``, that builds one; or the
            name of an ESPnet2 task, whose configuration is ``config["model"]`` or ``config["model"]["config"]``.
        config: ``optimizer`` and ``scheduler`` nodes, or ``optimizers`` and ``schedulers``, and ``allow``; the trainer passes
            its own where this is None.
    """

    def __init__(self, task: nn.Module | Mapping[str, Any], config: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = plain(config or {})
        self.model = task if isinstance(task, nn.Module) else build_task(task, self.config)
        self.frozen: list[str] = []
        self.published_state: Callable[[], dict[str, Tensor]] = lambda: unshared(self.model.state_dict())
        self.max_nonfinite = 10
        self.skipped = 0
        self._in_a_row = 0
        self.memory = MemoryGuard()
        self.on_skip: Callable[[list], None] = lambda batches: None
        self._lost: list[str] = []
        self.totals, self.valid_totals = Totals(), Totals()
        self.grad_norm = torch.zeros(())

    def forward(self, **batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return self.model(**batch)

    def collect_feats(self, **batch) -> dict[str, Tensor]:
        return self.model.collect_feats(**batch)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        ids, batch = split_batch(batch)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.memory.recent, self._lost = [], []
        self.memory.recent.append((ids, batch))
        loss, stats, weight = self.memory.forward(self, ids, batch)
        if stats is not None:
            self.totals.add(stats, weight)
        return (
            loss if self.trainer.world_size == 1 else loss * self._share(weight if stats is not None else size(batch))
        )

    def _share(self, weight: Tensor | int) -> Tensor:
        """What makes the mean of the processes' gradients that of all utterances: they may have unlike numbers of them."""
        weight = torch.as_tensor(weight, dtype=torch.float32, device=self.device)
        return weight * self.trainer.world_size / self.trainer.strategy.reduce(weight.clone(), reduce_op="sum")

    def backward(self, loss: Tensor, *args, **kwargs) -> None:
        def plain(scaled: Tensor) -> None:
            super(LitESPnetModel, self).backward(scaled, *args, **kwargs)

        self._lost += self.memory.backward(self, loss, plain, self.totals.add)

    def on_validation_epoch_start(self) -> None:
        self.valid_totals.clear()
        share_buffers(self.model)

    def validation_step(self, batch, batch_idx: int) -> None:
        _, batch = split_batch(batch)
        _, stats, weight = self.model(**batch)
        self.valid_totals.add(stats, weight, finite=False)

    def on_validation_epoch_end(self) -> None:
        means = Totals(total(self.valid_totals.state_dict())).means()
        self.log_dict({f"valid/{name}": value for name, value in means.items()})

    def configure_optimizers(self):
        """See :func:`espnet3.trainer.optimizers.configure`; biases and norms have no weight decay."""
        return configure(self, self.config, tuple(self.config.get("allow") or ()))

    def train(self, mode: bool = True) -> LitESPnetModel:
        super().train(mode)
        hold(self.model, self.frozen)
        return self

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip, and drop gradients that are not finite: an optimiser leaves parameters without gradient alone."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            self._skip(optimizer, "loss or gradient not finite")
            return
        if self._lost and not norm:
            self._skip(optimizer, "no utterance fits into memory")
            return
        self._in_a_row = 0
        self.grad_norm = norm.detach()
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, float(gradient_clip_val), norm)
        else:
            nn.utils.clip_grad_value_(parameters, float(gradient_clip_val))

    def _skip(self, optimizer, why: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        ids = [uid for uids, _ in self.memory.recent for uid in uids]
        log.warning("%s: step skipped (%d so far); utterances: %s", why, self.skipped, " ".join(ids))
        self.on_skip(self.memory.recent)
        if self._in_a_row >= self.max_nonfinite:
            last = f"the last with utterance {ids[0] if ids else '?'}"
            if self._lost:
                raise UserError(
                    f"training: {self._in_a_row} steps in a row did not fit into memory, {last}; use a smaller model"
                )
            raise UserError(
                f"training: {self._in_a_row} steps in a row had no finite loss, {last}; lower optimizer.lr, or look at that data"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["totals"] = total(self.totals.state_dict())
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the sums of all processes: the first one goes on from them
        self.totals.load_state_dict(checkpoint.get("totals", {}) if self.trainer.is_global_zero else {})
        self.skipped = checkpoint.get("skipped", 0)


def build_task(task: Any, config: Mapping[str, Any]) -> nn.Module:
    """The model that a node, or the name of an ESPnet2 task with its configuration, describes.

    Raises:
        UserError: it is neither, or refused.
    """
    node = plain(task)
    if isinstance(node, str):
        given = plain(config.get("model") or {})
        node = {"task": node, "config": given.get("config", given)}
    if not isinstance(node, Mapping) or not ("_target_" in node or "task" in node):
        raise UserError(f"LitESPnetModel: {task!r} is neither a module nor a config with _target_ or task")
    model = instantiate(expand_task(node), allow=tuple(config.get("allow") or ()))
    if hasattr(model, "load_pretrained"):
        model.load_pretrained()
    return model


class Totals:
    """Weighted sums of a step's statistics, on the model's device: nothing waits for a number until a line is printed."""

    def __init__(self, state: Mapping[str, float] | None = None):
        self.sums: dict[str, Tensor] = {}
        self.load_state_dict(state or {})

    def add(self, stats: Mapping[str, Tensor | None], weight: Tensor, finite: bool = True) -> None:
        weight = torch.as_tensor(weight).double()
        known = finite and "loss" in stats
        finite = torch.isfinite(torch.as_tensor(stats["loss"])) if known else torch.ones_like(weight).bool()
        part = {name: torch.as_tensor(value).double() * weight for name, value in stats.items() if value is not None}
        part["weight"] = weight
        zero = torch.zeros_like(weight)
        for name, value in part.items():
            self.sums[name] = self.sums.get(name, zero) + torch.where(finite, value, zero)

    def means(self) -> dict[str, float]:
        weight = float(self.sums.get("weight", 0.0))
        return {k: float(v) / weight for k, v in self.sums.items() if k != "weight"} if weight else {}

    def clear(self) -> None:
        self.sums = {}

    def state_dict(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in state.items()}


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """*state* with a copy of each tensor that is also there under another name (tied weights)."""
    seen: set[int] = set()
    found = {}
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    return found


def split_batch(batch) -> tuple[list[str], dict[str, Tensor]]:
    """ESPnet's ``(ids, batch)``, or a batch alone, as the two."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Mapping):
        return list(batch[0]), dict(batch[1])
    batch = dict(batch)
    return list(batch.pop("utt_id", [])), batch


def plain(node: Any) -> Any:
    """Plain dicts and lists of an OmegaConf node; anything else as it is."""
    if type(node).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(node, resolve=True)
    return dict(node) if isinstance(node, Mapping) else node
