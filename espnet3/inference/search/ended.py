"""When the search of an utterance may stop."""

from __future__ import annotations

from typing import Any

# Watanabe et al. 2017, eq. 50, with ESPnet's constants: the best hypothesis of each of three successive lengths is
# worse than the best of all by more than ten nats
END_LENGTHS = 3
END_MARGIN = -10.0


class Ended:
    """The finished hypotheses of one utterance, as far as they matter.

    Args:
        maxlen: labels (without eos) after which a hypothesis is ended by force.
        nbest: hypotheses that are asked for.
        detect: use ESPnet's end detection.
    """

    def __init__(self, maxlen: int, nbest: int, detect: bool):
        self.maxlen, self.nbest, self.detect = maxlen, nbest, detect
        self._best_of_length: dict[int, float] = {}
        self._top: list[tuple[float, int, Any]] = []

    @property
    def top(self) -> float:
        """The best score; minus infinity where none has ended."""
        return self._top[0][0] if self._top else float("-inf")

    def add(self, step: int, score: float, pointer: Any) -> None:
        """A hypothesis ended at *step* of its utterance (0 is the first label); *pointer* is what it is found by."""
        best = self._best_of_length.get(step)
        if best is None or score > best:
            self._best_of_length[step] = score
        if len(self._top) < self.nbest or score > self._top[-1][0]:
            self._top.append((score, step, pointer))
            self._top.sort(key=lambda entry: -entry[0])
            del self._top[self.nbest :]

    def finished(self, step: int, bound: float | None) -> bool:
        """True where going on cannot change the result, or end detection says so.

        Args:
            step: the step that was just made.
            bound: no live hypothesis can end with a higher score; None: none is alive.
        """
        if bound is None or step + 1 >= self.maxlen:
            return True
        if len(self._top) == self.nbest and self._top[-1][0] >= bound:
            return True
        return self.detect and bool(self._top) and self._end_detected(step)

    def _end_detected(self, step: int) -> bool:
        # ESPnet counts sos and eos into a length, and looks at lengths step, step-1, step-2: ended 2 to 4 steps ago
        lengths = range(step - 2, step - 2 - END_LENGTHS, -1)
        return all(self._best_of_length.get(n, float("inf")) - self._top[0][0] < END_MARGIN for n in lengths)

    def best(self, impossible: float) -> list[tuple[float, int, Any]]:
        """The n best (score, step, pointer), best first; one under *impossible* only where there is nothing else."""
        return [entry for entry in self._top if entry[0] > impossible] or self._top[:1]
