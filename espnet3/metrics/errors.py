"""Counts of substitutions, insertions and deletions, by jiwer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import jiwer

# (kind, reference word, hypothesis word); kind is C, S, I or D, and the side that lacks a word is ""
Aligned = tuple[str, str, str]


@dataclass
class Counts:
    """Errors against *length* reference units (words or characters)."""

    length: int = 0
    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors for each reference unit, as a fraction; without any unit 0.0, or 1.0 where something was inserted."""
        return self.errors / self.length if self.length else float(self.errors > 0)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


@dataclass
class UtteranceScore:
    """One utterance's words and characters against its reference."""

    uid: str
    speaker: str
    reference: str
    hypothesis: str
    words: Counts
    characters: Counts
    alignment: list[Aligned] = field(default_factory=list)


def normalize(text: str, how: str = "none") -> str:
    """``none``: white space alone is made single. ``basic``: also NFKC, lower case, and no punctuation but the
    apostrophes and hyphens inside words."""
    if how == "basic":
        text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
        text = re.sub(r"(?<!\w)['-]|['-](?!\w)", " ", text)
        text = "".join(" " if unicodedata.category(c)[0] in "PS" and c not in "'-" else c for c in text)
    return " ".join(text.split())


def score_utterances(
    utterances: Sequence[tuple[str, str, str, str]],
) -> list[UtteranceScore]:
    """Align (id, speaker, reference, hypothesis), texts with single spaces; a space counts as a character."""
    if not utterances:
        return []
    references = [u[2] for u in utterances]
    hypotheses = [u[3] for u in utterances]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    scored = []
    for i, (uid, speaker, reference, hypothesis) in enumerate(utterances):
        alignment = _pairs(words.alignments[i], words.references[i], words.hypotheses[i])
        pairs = _pairs(characters.alignments[i], characters.references[i], characters.hypotheses[i])
        scored.append(UtteranceScore(uid, speaker, reference, hypothesis, _count(alignment), _count(pairs), alignment))
    return scored


def align(reference: str, hypothesis: str) -> list[Aligned]:
    """The word alignment of one utterance with the fewest errors."""
    return score_utterances([("", "", reference, hypothesis)])[0].alignment


def _pairs(chunks: Sequence, reference: Sequence[str], hypothesis: Sequence[str]) -> list[Aligned]:
    pairs: list[Aligned] = []
    for chunk in chunks:
        ref = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        hyp = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            pairs += [("I", "", word) for word in hyp]
        elif chunk.type == "delete":
            pairs += [("D", word, "") for word in ref]
        else:
            kind = "C" if chunk.type == "equal" else "S"
            pairs += [(kind, r, h) for r, h in zip(ref, hyp, strict=True)]
    return pairs


def _count(alignment: Sequence[Aligned]) -> Counts:
    kinds = [kind for kind, _, _ in alignment]
    number = {kind: kinds.count(kind) for kind in "CSID"}
    return Counts(len(kinds) - number["I"], number["C"], number["S"], number["I"], number["D"])


def summarise(scored: Sequence[UtteranceScore]) -> dict[str, float | int]:
    """The content of ``metrics.json``; rates are fractions, characters include the spaces between words."""
    words = sum((s.words for s in scored), Counts())
    characters = sum((s.characters for s in scored), Counts())
    wrong = sum(s.reference != s.hypothesis for s in scored)
    return {
        "wer": round(words.rate, 6),
        "cer": round(characters.rate, 6),
        "ser": round(wrong / len(scored), 6) if scored else 0.0,
        "utterances": len(scored),
        "utterances_with_errors": wrong,
        "empty_references": sum(not s.reference for s in scored),
        "words": words.length,
        "hits": words.hits,
        "substitutions": words.substitutions,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "characters": characters.length,
        "character_substitutions": characters.substitutions,
        "character_insertions": characters.insertions,
        "character_deletions": characters.deletions,
    }
