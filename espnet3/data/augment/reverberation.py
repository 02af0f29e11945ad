"""Reverberation with measured or simulated room impulse responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espnet3.data.augment.noise import Recordings
from espnet3.errors import UserError


class Reverberate:
    """Convolve with a room impulse response; length, onset and power stay what they were.

    Args:
        sampling_rate: of the speech, Hz.
        source: impulse responses: a folder, a manifest or a CutSet. None simulates: white noise that decays exponentially
            after the direct sound (Polack's model of late reverberation).
        rt60: seconds of decay by 60 dB, drawn from ``[low, high]``; of simulated ones.
        direct_to_reverberant: dB, drawn from ``[low, high]``; of simulated ones.
        probability: of an utterance to be reverberated.
    """

    def __init__(
        self,
        sampling_rate: int,
        source: Any = None,
        rt60: Sequence[float] = (0.2, 0.6),
        direct_to_reverberant: Sequence[float] = (0.0, 10.0),
        probability: float = 1.0,
    ) -> None:
        if not 0 < rt60[0] <= rt60[1]:
            raise UserError(f"augment.rt60: {list(rt60)} is not low, high in seconds above 0")
        self.recordings = Recordings(source, "augment.source") if source is not None else None
        self.sampling_rate, self.probability = sampling_rate, probability
        self.rt60, self.ratio = tuple(rt60), tuple(direct_to_reverberant)

    def __call__(self, speech: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(T,) to (T,)."""
        from scipy.signal import fftconvolve

        if self.recordings is None:
            response = self.simulate(generator)
        else:
            response = self.recordings.draw(generator, self.sampling_rate)
        onset = int(np.argmax(np.abs(response)))
        wet = fftconvolve(speech, response)[onset : onset + len(speech)]
        power, loudness = (float(np.mean(np.square(x, dtype=np.float64))) for x in (speech, wet))
        if not power or not loudness:
            return speech
        return (wet * np.sqrt(power / loudness)).astype(np.float32)

    def simulate(self, generator: np.random.Generator) -> np.ndarray:
        """An impulse response of rt60 seconds, its direct sound first with an amplitude of one."""
        rt60, ratio = generator.uniform(*self.rt60), generator.uniform(*self.ratio)
        time = np.arange(max(2, int(rt60 * self.sampling_rate))) / self.sampling_rate
        # 60 dB are a factor of 1000 in amplitude
        tail = generator.standard_normal(len(time)) * np.exp(-np.log(1000.0) * time / rt60)
        tail *= 10 ** (-ratio / 20) / np.sqrt(np.sum(np.square(tail[1:])))
        tail[0] = 1.0
        return tail.astype(np.float32)
