"""Confidence intervals of error rates by the bootstrap (Bisani & Ney, "Bootstrap estimates for confidence intervals in
ASR performance evaluation", ICASSP 2004): utterances, or all utterances of a speaker, are drawn anew with replacement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet3.metrics.errors import UtteranceScore

BLOCKS = ("utterance", "speaker")
LEVEL = 0.95
_CHUNK = 1 << 20


@dataclass
class Paired:
    """The difference of two systems' WER (second less first) over the same draws.

    Attributes:
        difference: of the whole set, a fraction.
        interval: of it.
        p: two-sided, of the hypothesis that there is none.
    """

    difference: float
    interval: tuple[float, float]
    p: float


def intervals(
    scored: Sequence[UtteranceScore], by: str = "utterance", samples: int = 1000, seed: int = 0, level: float = LEVEL
) -> dict[str, list[float]]:
    """``{"wer": [low, high], "cer": …, "ser": …}``, fractions; empty where there are fewer than two blocks.

    Args:
        by: what is drawn: ``utterance``, or ``speaker``, which allows for the likeness of a speaker's utterances.
        samples: draws of as many blocks as there are. seed: equal seeds give equal intervals.
    """
    counts = np.array(
        [
            [s.words.errors, s.words.length, s.characters.errors, s.characters.length, s.reference != s.hypothesis, 1]
            for s in scored
        ],
        dtype=np.float64,
    )
    sums = blocks(counts, scored, by)
    if len(sums) < 2:
        return {}
    drawn = np.concatenate([weights @ sums for weights in draws(len(sums), samples, seed)])
    rates = drawn[:, 0::2] / np.maximum(drawn[:, 1::2], 1.0)
    edges = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: edges[:, i].round(6).tolist() for i, name in enumerate(("wer", "cer", "ser"))}


def paired(
    first: Sequence[UtteranceScore],
    second: Sequence[UtteranceScore],
    by: str = "utterance",
    samples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Paired:
    """Both systems' scores of the same utterances, in the same order, drawn together."""
    counts = np.array(
        [[a.words.errors, b.words.errors, a.words.length] for a, b in zip(first, second, strict=True)], dtype=np.float64
    ).reshape(-1, 3)
    total = counts.sum(0)
    whole = float((total[1] - total[0]) / max(total[2], 1.0))
    sums = blocks(counts, first, by)
    if len(sums) < 2:
        return Paired(whole, (whole, whole), 1.0)
    drawn = np.concatenate([weights @ sums for weights in draws(len(sums), samples, seed)])
    difference = (drawn[:, 1] - drawn[:, 0]) / np.maximum(drawn[:, 2], 1.0)
    low, high = np.quantile(difference, [(1 - level) / 2, (1 + level) / 2])
    # a draw as extreme as possible is still one in samples + 1
    tail = 1 + min((difference <= 0).sum(), (difference >= 0).sum())
    return Paired(whole, (float(low), float(high)), float(min(1.0, 2 * tail / (samples + 1))))


def blocks(counts: np.ndarray, scored: Sequence[UtteranceScore], by: str) -> np.ndarray:
    """(utterances, N) summed over the blocks: (blocks, N)."""
    if by != "speaker":
        return counts
    names, owner = np.unique([s.speaker for s in scored], return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, owner, counts)
    return sums


def draws(size: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of *size* blocks is in each of *samples* draws: (some draws, size), a part at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // size)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        chosen = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def describe(scored: Sequence[UtteranceScore], by: str, samples: int) -> dict[str, Any]:
    """The entry ``intervals`` of ``metrics.json``."""
    found = intervals(scored, by, samples)
    return {"by": by, "samples": samples, "level": LEVEL, **found} if found else {}
