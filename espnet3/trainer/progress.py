"""What a person follows: one line now and then, one at each epoch's end, the same on a terminal and in a log file."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from espnet3.trainer.distributed import total
from espnet3.trainer.model import LitESPnetModel, Totals, split_batch
from espnet3.trainer.state import TrainingState, epochs_to_train
from espnet3.trainer.throughput import Meter, sizes

log = logging.getLogger(__name__)


class Pace:
    """Audio, padding, waiting and computing since the last line; tensors are read only when a line is printed."""

    def __init__(self, rate: float | None, world: int = 1):
        self.rate, self.world = rate, world
        self.start = time.monotonic()
        self.wait = 0.0
        self.steps = 0
        self._sizes: list[tuple[torch.Tensor | int, int]] = []

    def add(self, batch: dict[str, Any], wait: float) -> None:
        found = sizes(batch)
        if found is not None:
            self._sizes.append(found)
        self.wait += wait
        self.steps += 1

    def samples(self) -> float:
        """Of all processes, taking the others to have as many as this one."""
        return float(sum(int(inside) for inside, _ in self._sizes)) * self.world

    @property
    def padded(self) -> int:
        return sum(size for _, size in self._sizes)

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def text(self) -> str:
        elapsed = self.elapsed
        parts = []
        padded = self.padded * self.world
        if padded:
            inside = self.samples()
            speed = (
                f"{inside / self.rate / elapsed:.0f} s of audio/s" if self.rate else f"{inside / elapsed:.3g} samples/s"
            )
            parts += [speed, f"padding {100 * (1 - inside / padded):.1f} %"]
        else:
            parts.append(f"{self.steps / elapsed:.1f} steps/s")
        parts.append(f"data wait {100 * self.wait / elapsed:.1f} %")
        return ", ".join(parts)


class TrainingLog(pl.Callback):
    """Prints progress, sends it to the loggers, and writes each epoch's history and weights to the training state.

    Args:
        budget: ``(max_epochs, patience)``; criteria: ``[[monitor, K, min|max], ...]``.
        rate: sampling rate in Hz, to speak of seconds of audio.
        seconds: between two lines; infinite: none at all.
        meter: None: of nothing.
    """

    def __init__(
        self,
        state: TrainingState,
        budget: tuple[int, int | None],
        criteria: list,
        rate: float | None = None,
        seconds: float = 10.0,
        meter: Meter | None = None,
    ):
        self.state = state
        self.max_epochs, self.patience = budget
        self.criteria = criteria
        self.rate = rate
        self.seconds = seconds
        self.meter = meter or Meter(None)
        self.epoch_audio = 0.0
        self.recent = Totals()
        self.pace = Pace(rate)
        self.epoch_seconds = 0.0
        self.epoch_steps: list[int] = []
        self._ended: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch_seconds": self.epoch_seconds + self._since_start(),
            "epoch_steps": self.epoch_steps,
            "epoch_audio": self.epoch_audio + self.pace.samples(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch_seconds = state["epoch_seconds"]
        self.epoch_steps = list(state["epoch_steps"])
        self.epoch_audio = state.get("epoch_audio", 0.0)

    def _since_start(self) -> float:
        return time.monotonic() - self._epoch_start if hasattr(self, "_epoch_start") else 0.0

    def on_train_start(self, trainer: pl.Trainer, module: LitESPnetModel) -> None:
        self._epoch_start = self._ended = time.monotonic()
        self.pace = Pace(self.rate, trainer.world_size)
        self.meter.start(module.device, trainer.precision)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: LitESPnetModel) -> None:
        self._ended = time.monotonic()

    def on_train_batch_start(self, trainer, module: LitESPnetModel, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        self.pace.add(split_batch(batch)[1], now - (self._ended or now))
        self._before = dict(module.totals.sums)
        self.meter.step_begins(compiled=any(m._compiled_call_impl is not None for m in module.modules()))

    def on_train_batch_end(self, trainer, module: LitESPnetModel, outputs, batch: Any, batch_idx: int) -> None:
        for name, value in module.totals.sums.items():
            self.recent.sums[name] = self.recent.sums.get(name, 0.0) + value - self._before.get(name, 0.0)
        found = sizes(split_batch(batch)[1])
        self.meter.step_ends(found[1] if found else 0, trainer.world_size)
        self._ended = time.monotonic()
        if self._ended - self.pace.start >= self.seconds:
            self._line(trainer, module)

    def _line(self, trainer: pl.Trainer, module: LitESPnetModel) -> None:
        means = self.recent.means()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        norm = float(module.grad_norm)
        samples, used = self.pace.samples(), self.meter.utilisation(self.pace.padded, self.pace.elapsed)
        self.epoch_audio += samples
        self.meter.done(samples / self.rate if self.rate else 0.0)
        if math.isfinite(self.seconds):
            log.info(
                "epoch %d/%d, step %d: %s, lr %s, grad norm %.3g, %s%s%s%s",
                trainer.current_epoch + 1,
                self.max_epochs,
                trainer.global_step,
                _losses(means),
                _rates(trainer.optimizers[0]),
                norm,
                self.pace.text(),
                f", {100 * used:.2g} % of the peak FLOP/s" if used else "",
                f", skipped {module.skipped}" if module.skipped else "",
                self._left(trainer),
            )
        values = {f"step/{name}": value for name, value in means.items()} | {"step/lr": rate, "step/grad_norm": norm}
        if used:
            values["step/flop_utilisation"] = used
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self.recent.clear()
        self.pace = Pace(self.rate, trainer.world_size)

    def _left(self, trainer: pl.Trainer) -> str:
        """Estimated time to the end of the budget, by audio, or without durations by the steps of the epochs done."""
        if self.rate and self.meter.epoch_seconds:
            done = min(1.0, self.epoch_audio / self.rate / self.meter.epoch_seconds)
            left = self.meter.left(self.max_epochs - trainer.current_epoch - done)
            return f", about {_duration(max(0.0, left))} left" if left is not None else ""
        if not self.epoch_steps:
            return ""
        per_step = sum(r["seconds"] for r in self.state.history()) / max(1, sum(self.epoch_steps))
        steps = sum(self.epoch_steps) / len(self.epoch_steps) * self.max_epochs - trainer.global_step
        return f", about {_duration(max(0.0, steps * per_step))} left"

    def on_train_epoch_end(self, trainer: pl.Trainer, module: LitESPnetModel) -> None:
        if trainer.global_step and self.recent.sums:
            self._line(trainer, module)
        means = Totals(total(module.totals.state_dict())).means()
        train = {f"train/{name}": value for name, value in means.items()}
        metrics = train | {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = dict(sorted(metrics.items()))
        epoch = trainer.current_epoch + 1
        self.epoch_seconds += self._since_start()
        self._epoch_start = time.monotonic()
        seconds, self.epoch_seconds, self.epoch_audio = self.epoch_seconds, 0.0, 0.0
        self.epoch_steps.append(trainer.global_step - sum(self.epoch_steps))
        record = {
            "epoch": epoch,
            "step": trainer.global_step,
            "metrics": {k: v if v == v and abs(v) != float("inf") else None for k, v in metrics.items()},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "skipped": module.skipped,
            "seconds": round(seconds, 3),
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"epoch/{name}": value for name, value in metrics.items()}, step=trainer.global_step)
        if trainer.is_global_zero:
            self.state.check_lease()
            self.state.add_epoch(record, module.published_state(), self.criteria)
        # the others read that epoch's line below
        trainer.strategy.barrier()
        module.totals.clear()
        history = self.state.history()
        log.info(
            "epoch %d/%d done in %s: %s; %s",
            epoch,
            self.max_epochs,
            _duration(seconds),
            "train " + _losses({k.removeprefix("train/"): v for k, v in train.items()}),
            "valid " + _losses({k.removeprefix("valid/"): v for k, v in metrics.items() if k.startswith("valid/")}),
        )
        if epochs_to_train(history, self.max_epochs, self.patience, self.criteria) <= epoch < self.max_epochs:
            log.info("no better %s for %d epochs: stopping", self.criteria[0][0], self.patience)
            trainer.should_stop = True


def _rates(optimizer: Any) -> str:
    """The learning rate, or that of each optimiser by name."""
    named = getattr(optimizer, "named", None)
    if named:
        return ", ".join(f"{name} {part.param_groups[0]['lr']:.3g}" for name, part in named.items())
    return f"{optimizer.param_groups[0]['lr']:.3g}"


def _losses(means: dict[str, float]) -> str:
    """``loss 12.3 (att 10.2, ctc 17.1), acc 0.83``."""
    parts = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in sorted(means.items()) if k.startswith("loss_")]
    text = f"loss {means['loss']:.3f}" if "loss" in means else ""
    text += f" ({', '.join(parts)})" if parts else ""
    rest = [f"{k} {v:.4g}" for k, v in sorted(means.items()) if not k.startswith("loss")]
    return ", ".join(filter(None, [text, *rest])) or "no statistics"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
