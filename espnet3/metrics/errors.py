"""Counts of substitutions, insertions and deletions, by jiwer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """One utterance's words, characters and tokens (None: there is no tokenizer) against its reference."""

    uid: str
    speaker: str
    reference: str
    hypothesis: str
    words: Counts
    characters: Counts
    alignment: list[Aligned] = field(default_factory=list)
    tokens: Counts | None = None


def score_utterances(
    utterances: Sequence[tuple[str, str, str, str]], tokenize: Callable[[str], list[str]] | None = None
) -> list[UtteranceScore]:
    """Align (id, speaker, reference, hypothesis), texts with single spaces; a space counts as a character.

    Args:
        tokenize: text to tokens, for the token error rate.
    """
    if not utterances:
        return []
    references = [u[2] for u in utterances]
    hypotheses = [u[3] for u in utterances]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    tokens = None
    if tokenize is not None:
        tokens = jiwer.process_words(
            *([" ".join(tokenize(text)) for text in texts] for texts in (references, hypotheses))
        )
    scored = []
    for i, (uid, speaker, reference, hypothesis) in enumerate(utterances):
        alignment = _pairs(words.alignments[i], words.references[i], words.hypotheses[i])
        scored.append(
            UtteranceScore(
                uid=uid,
                speaker=speaker,
                reference=reference,
                hypothesis=hypothesis,
                words=_count(words.alignments[i]),
                characters=_count(characters.alignments[i]),
                alignment=alignment,
                tokens=_count(tokens.alignments[i]) if tokens is not None else None,
            )
        )
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


def _count(chunks: Iterable) -> Counts:
    counts = Counts()
    for chunk in chunks:
        reference = chunk.ref_end_idx - chunk.ref_start_idx
        counts.length += reference
        if chunk.type == "insert":
            counts.insertions += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type == "delete":
            counts.deletions += reference
        elif chunk.type == "substitute":
            counts.substitutions += reference
        else:
            counts.hits += reference
    return counts


def summarise(scored: Sequence[UtteranceScore]) -> dict[str, Any]:
    """The counts and rates of ``metrics.json``; rates are fractions, characters include the spaces between words."""
    words = sum((s.words for s in scored), Counts())
    characters = sum((s.characters for s in scored), Counts())
    wrong = sum(s.reference != s.hypothesis for s in scored)
    metrics = {
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
    if scored and all(s.tokens is not None for s in scored):
        tokens = sum((s.tokens for s in scored), Counts())
        metrics |= {"ter": round(tokens.rate, 6), "tokens": tokens.length, "token_errors": tokens.errors}
    return metrics


def by_speaker(scored: Sequence[UtteranceScore]) -> dict[str, dict[str, Any]]:
    """Each speaker's rates and counts, by name; empty where every utterance has a speaker of its own."""
    groups: dict[str, list[UtteranceScore]] = {}
    for s in scored:
        groups.setdefault(s.speaker, []).append(s)
    if len(groups) == len(scored) and len(scored) > 1:
        return {}
    kept = ("wer", "cer", "ser", "utterances", "words", "substitutions", "insertions", "deletions")
    table = {name: summarise(group) for name, group in sorted(groups.items())}
    return {name: {key: metrics[key] for key in kept} for name, metrics in table.items()}
