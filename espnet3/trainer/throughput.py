"""How fast a training runs, against what is left to do and against what the device could do."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)

PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""TFLOP/s by the makers' data sheets, dense: 16-bit tensor cores, and float32 outside of them."""


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """The device's peak in TFLOP/s for Lightning's *precision*; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else found[0] if "16" in str(precision) else found[1]


class Meter:
    """Audio done and to do, and the operations of a step.

    Args:
        dataset: of the training; its durations make an epoch's length.
        peak: TFLOP/s of the device; None looks it up.
    """

    def __init__(self, dataset: Any, peak: float | None = None):
        self.epoch_seconds = audio_seconds(dataset)
        self.peak = peak
        self.flops: float | None = None
        self._counter: FlopCounterMode | None = None
        self._started = time.monotonic()
        self._audio = 0.0

    def start(self, device: torch.device, precision: str) -> None:
        """Training begins, or goes on."""
        self.peak = self.peak or peak_tflops(device, precision)
        self._started, self._audio = time.monotonic(), 0.0

    def step_begins(self, compiled: bool) -> None:
        """The first step's operations are counted, where there is a peak to hold them against."""
        if self.peak and self.flops is None and not compiled:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def step_ends(self, size: int, world: int) -> None:
        """*size*: padded samples of the step's batch in this process."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops, self._counter = self._counter.get_total_flops() / max(size, 1), None

    def done(self, audio: float) -> None:
        """*audio* seconds more."""
        self._audio += audio

    def utilisation(self, size: float, elapsed: float) -> float | None:
        """Part of the peak that *size* padded samples in *elapsed* seconds make, in one device."""
        if not self.peak or not self.flops:
            return None
        return self.flops * size / elapsed / (self.peak * 1e12)

    def left(self, epochs: float) -> float | None:
        """Seconds that *epochs* more epochs take, by the pace since the start, validation included."""
        if not self.epoch_seconds or not self._audio:
            return None
        return epochs * self.epoch_seconds * (time.monotonic() - self._started) / self._audio


def audio_seconds(dataset: Any) -> float | None:
    """Seconds of audio of a data set that knows its durations; no audio is read."""
    durations = getattr(dataset, "durations", None)
    if durations is not None:
        return float(sum(durations))
    cuts = getattr(dataset, "cuts", None)
    return float(sum(cut.duration for cut in cuts)) if cuts is not None else None


def sizes(batch: Mapping[str, Any]) -> tuple[Any, int] | None:
    """Samples inside (a tensor: nothing waits for it) and with padding, of a batch with ``speech``."""
    lengths = batch.get("speech_lengths")
    return None if lengths is None else (lengths.sum(), batch["speech"].shape[0] * batch["speech"].shape[1])
