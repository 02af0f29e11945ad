"""Which prefix came from which: what a beam search needs to spell its hypotheses, and nothing more."""

from __future__ import annotations

import numpy as np

from espnet3.inference.search.hypothesis import Hypothesis


class History:
    """The choices of each step, from which a hypothesis is read backwards; its labels are never copied on the way.

    Args:
        eos: id of sos/eos.
        names: the scorers', in the order in which :meth:`add` gets their parts.
    """

    def __init__(self, eos: int, names: list[str]):
        self.eos, self.names = eos, names
        self._slots: dict[int, int] = {}
        self._steps: list[tuple] = []
        self._dropped = 0

    def place(self, ids: np.ndarray, oldest: int) -> None:
        """From the next step on, utterance ``ids[b]`` is row b; no step before *oldest* is needed any more."""
        self._slots = {int(utterance): slot for slot, utterance in enumerate(ids)}
        if oldest > self._dropped + 64:
            del self._steps[: oldest - self._dropped]
            self._dropped = oldest

    def add(self, parents: np.ndarray, tokens: np.ndarray, parts: list[np.ndarray]) -> None:
        """A step: of each row (B, width), what it prolonged, by which label, and what each scorer gave for it."""
        self._steps.append((self._slots, parents, tokens, parts))

    def hypothesis(self, score: float, at: int, pointer: tuple[int, int, int]) -> Hypothesis:
        """The one that ended at *pointer* (step, utterance, row), which was step *at* of its utterance."""
        step, utterance, row = pointer
        labels: list[int] = []
        sums = [0.0] * len(self.names)
        for number in range(step, step - at - 1, -1):
            slots, parents, tokens, parts = self._steps[number - self._dropped]
            slot = slots[utterance]
            labels.append(int(tokens[slot, row]))
            for index, part in enumerate(parts):
                sums[index] += float(part[slot, row])
            row = int(parents[slot, row])
        length = float(len(labels))
        if labels[0] == self.eos:
            del labels[0]
        return Hypothesis(labels[::-1], score, dict(zip(self.names, sums, strict=True)) | {"length": length})
