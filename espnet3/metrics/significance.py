"""Whether two recognisers differ on the same utterances: NIST's matched pairs sentence-segment word error test.

Gillick & Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989; Pallett,
Fisher & Fiscus, "Tools for the analysis of benchmark speech recognition tests", ICASSP 1990. A segment begins and ends at
an utterance's edge or where both systems have two words right in succession, so that errors of different segments are
independent; tested is the mean of the difference of the errors by segment, which is normal for many segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet3.metrics.errors import Aligned, UtteranceScore

# words that both have right between two segments (NIST's min_num_good)
GOOD = 2


@dataclass
class MatchedPairs:
    """The test's result.

    Attributes:
        segments: those with an error of either system.
        mean: of (errors of the second less errors of the first).
        z: standard normal under the hypothesis of no difference.
        p: two-sided; 1.0 where there are fewer than two segments.
    """

    segments: int
    mean: float
    z: float
    p: float


def matched_pairs(first: Sequence[UtteranceScore], second: Sequence[UtteranceScore]) -> MatchedPairs:
    """The test over both systems' scores of the same utterances, in the same order."""
    differences = segment_differences(first, second)
    n = len(differences)
    mean = float(differences.mean()) if n else 0.0
    if n < 2:
        return MatchedPairs(n, mean, 0.0, 1.0)
    deviation = float(differences.std(ddof=1))
    if deviation == 0.0:
        z = 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    else:
        z = mean / (deviation / math.sqrt(n))
    return MatchedPairs(n, mean, z, math.erfc(abs(z) / math.sqrt(2)))


def segment_differences(first: Sequence[UtteranceScore], second: Sequence[UtteranceScore]) -> np.ndarray:
    """Errors of the second less errors of the first in each segment where either has one."""
    a = [slot_errors(s.alignment) for s in first]
    b = [slot_errors(s.alignment) for s in second]
    if not a:
        return np.zeros(0)
    owner = np.repeat(np.arange(len(a)), [len(slots) for slots in a])
    place = np.concatenate([np.arange(len(slots)) for slots in a])
    mine, other = np.concatenate(a), np.concatenate(b)
    wrong = np.flatnonzero((mine + other) > 0)
    if not wrong.size:
        return np.zeros(0)
    # words (odd slots) up to each slot; between two wrong slots all of them are right in both
    right = np.cumsum((place % 2 == 1) & ((mine + other) == 0))[wrong]
    new = np.ones(len(wrong), dtype=bool)
    new[1:] = (owner[wrong][1:] != owner[wrong][:-1]) | (right[1:] - right[:-1] >= GOOD)
    segment = np.cumsum(new) - 1
    return np.bincount(segment, weights=(other - mine)[wrong].astype(np.float64))


def slot_errors(alignment: Sequence[Aligned]) -> np.ndarray:
    """(2 L + 1,) errors of an utterance of L reference words: at each word, and inserted before, between and after."""
    slots = np.zeros(2 * sum(kind != "I" for kind, _, _ in alignment) + 1, dtype=np.int64)
    at = 0
    for kind, _, _ in alignment:
        if kind == "I":
            slots[at] += 1
        else:
            slots[at + 1] = kind != "C"
            at += 2
    return slots
