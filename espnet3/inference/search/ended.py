"""When the search of an utterance may stop."""

from __future__ import annotations

from espnet3.inference.search.hypothesis import Hypothesis

# Watanabe et al. 2017, eq. 50, with ESPnet's constants: the best hypothesis of each of three successive lengths is
# worse than the best of all by more than ten nats
END_LENGTHS = 3
END_MARGIN = -10.0


class Ended:
    """The finished hypotheses of one utterance.

    Args:
        maxlen: labels (without eos) after which a hypothesis is ended by force.
        nbest: hypotheses that are asked for.
        detect: use ESPnet's end detection.
    """

    def __init__(self, maxlen: int, nbest: int, detect: bool):
        self.maxlen, self.nbest, self.detect = maxlen, nbest, detect
        self.hypotheses: list[Hypothesis] = []
        self._best_of_length: dict[int, float] = {}
        self._top: list[float] = []

    def add(self, step: int, hypothesis: Hypothesis) -> None:
        """*hypothesis* ended at *step* (0 is the first label)."""
        self.hypotheses.append(hypothesis)
        best = self._best_of_length.get(step)
        if best is None or hypothesis.score > best:
            self._best_of_length[step] = hypothesis.score
        self._top = sorted([*self._top, hypothesis.score], reverse=True)[: self.nbest]

    def finished(self, step: int, bound: float | None) -> bool:
        """True where going on cannot change the result, or end detection says so.

        Args:
            step: the step that was just made.
            bound: no live hypothesis can end with a higher score; None: none is alive.
        """
        if bound is None or step + 1 >= self.maxlen:
            return True
        if len(self._top) == self.nbest and self._top[-1] >= bound:
            return True
        return self.detect and bool(self._top) and self._end_detected(step)

    def _end_detected(self, step: int) -> bool:
        # ESPnet counts sos and eos into a length, and looks at lengths step, step-1, step-2: ended 2 to 4 steps ago
        lengths = range(step - 2, step - 2 - END_LENGTHS, -1)
        return all(self._best_of_length.get(n, float("inf")) - self._top[0] < END_MARGIN for n in lengths)

    def best(self, impossible: float) -> list[Hypothesis]:
        """The n best, best first; one that scores under *impossible* only where there is nothing else."""
        ranked = sorted(self.hypotheses, key=lambda h: -h.score)
        possible = [h for h in ranked if h.score > impossible][: self.nbest]
        return possible or ranked[:1] or [Hypothesis([], 2 * impossible)]
