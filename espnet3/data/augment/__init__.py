"""Augmentation of waveforms while they are loaded: ``dataloader.train.augment: [{_target_: ...}, ...]``.

A step is called with a waveform (T,), float32, and a random generator, and returns a waveform. Each utterance draws from a
generator of its own, seeded by (seed, epoch, utterance, step): the result depends neither on the number of loader processes, nor
on the batch, nor on interruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espnet3.data.augment.noise import AddNoise
from espnet3.data.augment.reverberation import Reverberate
from espnet3.data.augment.speed import SpeedPerturb
from espnet3.errors import UserError

__all__ = ["AddNoise", "Augmenter", "Reverberate", "SpeedPerturb"]

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Augmenter:
    """*steps*, one after the other, on the ``speech`` of an item.

    Args:
        steps: a step's attribute ``probability`` (1 where it has none) says how many utterances it changes.
        seed: of all draws.

    Raises:
        UserError: a step is nothing that can be called, or its probability is not between 0 and 1.
    """

    def __init__(self, steps: Sequence[Step], seed: int = 0) -> None:
        self.steps, self.seed = list(steps), seed
        for step in self.steps:
            probability = getattr(step, "probability", 1.0)
            if not callable(step) or not 0.0 <= probability <= 1.0:
                raise UserError(
                    f"augment: {type(step).__name__} (probability {probability}) is no step; give _target_ nodes of "
                    "espnet3.data.augment with a probability from 0 to 1"
                )

    def __call__(self, uid: str, data: dict[str, Any], epoch: int) -> dict[str, Any]:
        """*data* with another ``speech``; the other entries as they are."""
        key = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "little")
        for number, step in enumerate(self.steps):
            generator = np.random.default_rng((self.seed, epoch, key, number))
            if generator.random() < getattr(step, "probability", 1.0):
                speech = step(data["speech"], generator)
                data = {**data, "speech": np.ascontiguousarray(speech, dtype=np.float32)}
        return data
