"""ESPnet's model contract inside Lightning."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError

log = logging.getLogger(__name__)


class LitESPnetModel(pl.LightningModule):
    """A model with ESPnet's contract, ``loss, stats, weight = model(**batch)``, as a LightningModule.

    Losses and gradients that are not finite are skipped (the step changes nothing), counted, and the utterances named;
    `max_nonfinite` of them in a row stop the training.

    Args:
        task: such an ``nn.Module``, or a config node with ``_target_`` that builds one.
        config: with ``optimizer`` and ``scheduler`` nodes, and ``allow``; the trainer passes its own where this is None.
    """

    def __init__(self, task: nn.Module | Mapping[str, Any], config: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = plain(config or {})
        if isinstance(task, nn.Module):
            self.model = task
        elif isinstance(plain(task), dict) and "_target_" in task:
            self.model = instantiate(plain(task), allow=tuple(self.config.get("allow", ())))
        else:
            raise UserError(f"LitESPnetModel: {task!r} is neither a module nor a config with _target_")
        self.max_nonfinite = 10
        self.skipped = 0
        self._in_a_row = 0
        self._recent: deque[list[str]] = deque(maxlen=1)
        self.totals = Totals()
        self.grad_norm = torch.zeros(())

    def forward(self, **batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return self.model(**batch)

    def collect_feats(self, **batch) -> dict[str, Tensor]:
        return self.model.collect_feats(**batch)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        ids, batch = split_batch(batch)
        self._recent.append(ids)
        loss, stats, weight = self.model(**batch)
        self.totals.add(stats, weight)
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        _, batch = split_batch(batch)
        _, stats, weight = self.model(**batch)
        named = {f"valid/{name}": value for name, value in stats.items() if value is not None}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=int(weight), sync_dist=True)

    def configure_optimizers(self):
        """The ``optimizer`` node with this model's parameters; without weight decay on biases and norms."""
        node = plain(self.config.get("optimizer") or {"_target_": "torch.optim.AdamW", "lr": 1e-3})
        allow = tuple(self.config.get("allow", ()))
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list = [{"params": trained}]
        if node.get("weight_decay"):
            groups = [
                {"params": [p for p in trained if p.ndim > 1]},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ]
        optimizer = instantiate(node, allow=allow, params=[g for g in groups if g["params"]])
        scheduler = plain(self.config.get("scheduler"))
        if not scheduler:
            return optimizer
        interval = {k: scheduler.pop(k) for k in ("interval", "frequency", "monitor") if k in scheduler}
        schedule = instantiate(scheduler, allow=allow, optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", **interval}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip, and drop gradients that are not finite: an optimiser leaves parameters without gradient alone."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            self._skip(optimizer)
            return
        self._in_a_row = 0
        self.grad_norm = norm.detach()
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, float(gradient_clip_val), norm)
        else:
            nn.utils.clip_grad_value_(parameters, float(gradient_clip_val))

    def _skip(self, optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        ids = [uid for batch in self._recent for uid in batch]
        log.warning(
            "loss or gradient not finite: step skipped (%d so far); utterances: %s", self.skipped, " ".join(ids)
        )
        if self._in_a_row >= self.max_nonfinite:
            raise UserError(
                f"training: {self._in_a_row} steps in a row had no finite loss, the last with utterance "
                f"{ids[0] if ids else '?'}; lower optimizer.lr, or look at that data"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["totals"] = self.totals.state_dict()
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.totals.load_state_dict(checkpoint.get("totals", {}))
        self.skipped = checkpoint.get("skipped", 0)


class Totals:
    """Weighted sums of a step's statistics, on the model's device: nothing waits for a number until a line is printed."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}

    def add(self, stats: Mapping[str, Tensor | None], weight: Tensor) -> None:
        weight = torch.as_tensor(weight).double()
        finite = torch.isfinite(torch.as_tensor(stats["loss"])) if "loss" in stats else torch.ones_like(weight).bool()
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
