"""The worst utterances of a decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from espnet3.metrics.alignment import read_trn, worst_first
from espnet3.metrics.errors import UtteranceScore, score_utterances
from espnet3.report.table import Row


@dataclass
class Worst:
    """One utterance and the test set that it is from."""

    test_set: str
    score: UtteranceScore


def worst_utterances(rows: Iterable[Row], count: int = 10) -> list[Worst]:
    """The utterances with most word errors over all test sets of one decoding, from the ``.trn`` files beside the
    metrics; a folder without them has none."""
    found: list[Worst] = []
    for row in rows:
        reference, hypothesis = row.folder / "ref.trn", row.folder / "hyp.trn"
        if not (reference.exists() and hypothesis.exists()):
            continue
        hypotheses = read_trn(hypothesis)
        wrong = [(n, "", r, hypotheses[n]) for n, r in read_trn(reference).items() if hypotheses.get(n, r) != r]
        found += [Worst(row.test_set, score) for score in score_utterances(wrong)]
    place = {id(w.score): w for w in found}
    return [place[id(score)] for score in worst_first(w.score for w in found)[:count]]
