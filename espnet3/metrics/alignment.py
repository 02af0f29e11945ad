"""Alignments and transcripts as text: ``alignment.txt``, and sclite's ``.trn``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from espnet3.errors import UserError
from espnet3.metrics.errors import Aligned, UtteranceScore


def width(text: str) -> int:
    """Columns that *text* takes in a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def alignment_lines(alignment: Sequence[Aligned]) -> tuple[str, str, str]:
    """REF, HYP and EVAL lines in columns; ``*`` stands where a side lacks a word."""
    lines = ["REF: ", "HYP: ", "EVAL:"]
    for kind, reference, hypothesis in alignment:
        columns = max(width(reference), width(hypothesis), 1)
        cells = (reference or "*" * columns, hypothesis or "*" * columns, "" if kind == "C" else kind)
        lines = [line + " " + cell + " " * (columns - width(cell)) for line, cell in zip(lines, cells, strict=True)]
    return tuple(line.rstrip() for line in lines)


def worst_first(scored: Iterable[UtteranceScore]) -> list[UtteranceScore]:
    """Utterances with errors, most errors first; among equals the higher rate, then the name."""
    wrong = [s for s in scored if s.words.errors or s.characters.errors]
    return sorted(wrong, key=lambda s: (-s.words.errors, -s.words.rate, -s.characters.errors, s.uid))


def alignment_text(scored: Sequence[UtteranceScore]) -> Iterator[str]:
    """``alignment.txt``, line by line: every utterance with errors, worst first."""
    wrong = worst_first(scored)
    yield f"{len(wrong)} of {len(scored)} utterances have errors; worst first. S substitution, I insertion, D deletion."
    for s in wrong:
        yield ""
        yield (
            f"{s.uid}  speaker {s.speaker}  errors {s.words.errors}, words {s.words.length} "
            f"({s.words.substitutions} S, {s.words.insertions} I, {s.words.deletions} D)"
        )
        yield from alignment_lines(s.alignment)


def trn_line(text: str, speaker: str, uid: str) -> str:
    """sclite's transcript format: ``text (speaker-utterance)``; a name's spaces and brackets become underscores."""
    name = "".join("_" if c.isspace() or c in "()" else c for c in f"{speaker}-{uid}")
    return f"{text} ({name})"


def read_trn(path: str | Path) -> dict[str, str]:
    """``{speaker-utterance: text}`` of a .trn file, in its order.

    Raises:
        UserError: a line has no name, or a name is there twice.
    """
    texts: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(.*?)\s*\(([^()\s]+)\)\s*", line)
        if not match or match[2] in texts:
            raise UserError(f"{path}:{number}: not a .trn line, 'text (speaker-utterance)' with a name of its own")
        texts[match[2]] = match[1].strip()
    return texts
