"""The callback that makes training safe to interrupt: checkpoints, exact continuation, signals."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

import lightning.pytorch as pl
import torch

from espnet3.trainer.batches import EpochSampler, seed_all
from espnet3.trainer.state import TrainingState

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class Interrupted(SystemExit):
    """Training was told to stop, has saved its state, and ends with the shell's status for the signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class StateKeeper(pl.Callback):
    """Saves the full state at each epoch's end and every *seconds* within one, and stops on SIGTERM, SIGUSR2, SIGINT or SIGHUP.

    All of the model's randomness in a step comes from (seed, step), the batches from (seed, epoch), so the place in the
    training is all that a checkpoint has to say about them. Lightning's own record of its loops is rewritten to say
    "epoch e is about to begin" and the sampler skips the batches that are done: Lightning's restart within an epoch needs a
    loader that it can fast-forward itself.

    Args:
        state: where to save.
        sampler: of the training loader.
        start: (completed epochs, batches done in the next one), from the checkpoint that training goes on from.
        seconds: between checkpoints within an epoch.
        steps: also save after each so many optimiser steps.
    """

    def __init__(
        self,
        state: TrainingState,
        sampler: EpochSampler | None,
        seed: int,
        start: tuple[int, int] = (0, 0),
        seconds: float = 120.0,
        steps: int | None = None,
    ):
        self.state = state
        self.sampler = sampler
        self.seed = seed
        self.seconds = seconds
        self.steps = steps
        self.start = start
        self.batch = start[1]
        self._saved = time.monotonic()
        self._place: tuple[int, int] | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        if sampler is not None:
            sampler.start(*start)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                    continue  # nohup
                self._handlers[signum] = signal.signal(signum, self._on_signal)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _on_signal(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and self._signal == signum:
            # Who presses Ctrl-C twice does not want to wait for the step
            raise KeyboardInterrupt
        self._signal = signum

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.sampler is not None:
            # Lightning tells samplers, and what is within batch samplers, but not those
            self.sampler.set_epoch(trainer.current_epoch)
        if (trainer.current_epoch, 0) > self.start:
            self.batch = 0
            # Only now is the epoch before quite done, schedulers included
            self._save(trainer, trainer.current_epoch, 0)
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, trainer.current_epoch, 0)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        seed_all(self.seed, 0, trainer.global_rank, trainer.current_epoch, self.batch)

    def on_train_batch_end(self, trainer, module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batch += 1
        if self.batch % trainer.accumulate_grad_batches or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # With gradients half summed, or all batches done but not the validation, there is nowhere to go on from
            return
        due = time.monotonic() - self._saved >= self.seconds
        due |= bool(self.steps) and trainer.global_step % self.steps == 0
        if trainer.world_size > 1:
            flags = torch.tensor([float(due), float(self._signal or 0)], device=module.device)
            flags = trainer.strategy.reduce(flags, reduce_op="max")
            due, self._signal = bool(flags[0]), int(flags[1]) or None
        if due or self._signal:
            self._save(trainer, trainer.current_epoch, self.batch)
            self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        if self._signal:
            name = signal.Signals(self._signal).name
            log.info(
                "%s: stopped at step %d, state saved; the same command goes on from here", name, trainer.global_step
            )
            raise Interrupted(self._signal)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict[str, Any]) -> None:
        epoch, batch = self._place or (trainer.current_epoch, self.batch)
        checkpoint["place"] = {"epoch": epoch, "batch": batch}
        _at_epoch_start(checkpoint["loops"]["fit_loop"], epoch, trainer.global_step)

    def _save(self, trainer: pl.Trainer, epoch: int, batch: int) -> None:
        path = self.state.folder / f"step-{trainer.global_step:08d}-{epoch:04d}-{batch:06d}.ckpt"
        if trainer.is_global_zero:
            self.state.check_lease()
        self._place = (epoch, batch)
        trainer.save_checkpoint(path, weights_only=False)
        self._place = None
        if trainer.is_global_zero:
            self.state.add(path, trainer.global_step, epoch, batch)
        self._saved = time.monotonic()


def _at_epoch_start(loops: dict[str, Any], epoch: int, step: int) -> None:
    """Rewrite Lightning's record of the fit loop: *epoch* epochs and *step* steps done, nothing begun."""
    done = {"ready": epoch, "completed": epoch, "started": epoch, "processed": epoch}
    loops["epoch_progress"] = {"total": dict(done), "current": dict(done)}
    batches = loops["epoch_loop.batch_progress"]
    total = batches["total"]["processed"]
    batches["total"] = {name: total for name in batches["total"]}
    batches["current"] = {name: 0 for name in batches["current"]}
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
