"""Speed perturbation (Ko et al., Interspeech 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from espnet3.errors import UserError


class SpeedPerturb:
    """Play faster or slower, with the pitch: resampling by a polyphase filter.

    Batches are made by the lengths before it, so a factor of 0.9 makes them up to 11 % larger than their bound.

    Args:
        factors: one is drawn for each utterance; 1.0 leaves it as it is.
        probability: of a draw.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1), probability: float = 1.0) -> None:
        if not factors or min(factors) < 0.2 or max(factors) > 5.0:
            raise UserError(f"augment.factors: give speeds between 0.2 and 5, not {list(factors)}")
        self.factors, self.probability = list(factors), probability

    def __call__(self, speech: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(T,) to (ceil(T / factor),)."""
        factor = self.factors[int(generator.integers(len(self.factors)))]
        if factor == 1.0:
            return speech
        from scipy.signal import resample_poly

        ratio = 1 / Fraction(factor).limit_denominator(1000)
        return resample_poly(speech, ratio.numerator, ratio.denominator).astype(np.float32)
