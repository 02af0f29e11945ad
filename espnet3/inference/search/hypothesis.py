"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Hypothesis:
    """A finished hypothesis.

    Attributes:
        tokens: label ids, without sos, eos and blank.
        score: weighted sum of the scorers' scores, natural log.
        scores: each scorer's own unweighted score, natural log; ``length`` counts eos, as ESPnet's length bonus does.
    """

    tokens: list[int]
    score: float
    scores: dict[str, float] = field(default_factory=dict)
