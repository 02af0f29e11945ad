"""How much fits: before the first epoch, the largest batch of each length that a CUDA device has memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from espnet3.parallel.records import free_memory, out_of_memory

log = logging.getLogger(__name__)

BUCKETS = 6
HEADROOM = 0.9
"""Part of what fits that is recommended: memory is fragmented, and the optimiser's state comes with the first step."""


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to *limit* that *fits*, found by doubling and then halving the gap; 0 where not even 1 does."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def probe(
    module: Any, durations: Sequence[float], rate: int, labels: int, limit: int = 1024
) -> list[tuple[float, int]]:
    """``[(seconds, utterances), ...]``: how many utterances as long as the longest of each sixth of the data fit.

    Each trial is a forward and a backward pass on noise with as many labels as the longest of some transcripts has; gradients,
    buffers and random numbers are put back. On any other device than CUDA's nothing is measured, and one line says so.

    Args:
        module: the LightningModule, on its device.
        durations: of the training set, in seconds. rate: Hz. labels: of the longest transcript.
    """
    device = module.device
    if device.type != "cuda":
        log.info("trainer.memory_probe: measures the memory of CUDA devices only; this is %s", device.type)
        return []
    ordered = sorted(durations)
    longest = sorted({ordered[max(0, len(ordered) * (n + 1) // BUCKETS - 1)] for n in range(BUCKETS)})
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    random = torch.cuda.get_rng_state(device), torch.get_rng_state()
    found = []
    for seconds in longest:
        number = largest(lambda n, s=seconds: _fits(module, n, round(s * rate), labels, device), limit)
        found.append((seconds, number))
        advice = HEADROOM * number * seconds
        log.info("memory: %d utterances of %.1f s fit; dataloader max_duration up to %.0f", number, seconds, advice)
    torch.cuda.set_rng_state(random[0], device)
    torch.set_rng_state(random[1])
    for name, value in module.named_buffers():
        value.copy_(buffers[name])
    return found


class MemoryProbe(pl.Callback):
    """Runs :func:`probe` when training begins, in the first process."""

    def __init__(self, dataset: Any, rate: int):
        self.dataset, self.rate = dataset, rate

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        durations = getattr(self.dataset, "durations", None)
        if durations is None:
            durations = [cut.duration for cut in self.dataset.cuts] if hasattr(self.dataset, "cuts") else []
        if trainer.is_global_zero and len(durations):
            number = len(durations)
            sample = [self.dataset[i][1].get("text", ()) for i in range(0, number, max(1, number // 200))]
            probe(module, list(durations), self.rate, max((len(text) for text in sample), default=1))
        trainer.strategy.barrier()


def _fits(module: Any, number: int, samples: int, labels: int, device: torch.device) -> bool:
    fine = True
    try:
        batch = {
            "speech": torch.randn(number, samples, device=device) * 0.1,
            "speech_lengths": torch.full((number,), samples, device=device),
            "text": torch.full((number, labels), 2, device=device),
            "text_lengths": torch.full((number,), labels, device=device),
        }
        with module.trainer.strategy.precision_plugin.train_step_context():
            loss, _, _ = module.model(**batch)
        loss.backward()
    except Exception as error:
        if not out_of_memory(error):
            raise
        fine = False
    module.zero_grad(set_to_none=True)
    batch = loss = None
    free_memory()
    return fine
