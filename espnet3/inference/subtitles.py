"""Segments as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# usual guidelines: two lines of 42 characters, up to 7 s, no shorter than 1 s where there is time
LINE, LINES = 42, 2
LONGEST, SHORTEST = 7.0, 1.0


@dataclass
class Cue:
    """What stands on the screen from *start* to *end*, in seconds."""

    start: float
    end: float
    text: str


def cues(segments: Iterable[Any]) -> Iterator[Cue]:
    """Segments (``words`` with times, of :mod:`espnet3.inference.longform`) as cues that can be read; none overlaps.

    A cue has at most two lines and seven seconds; a very short one stays for a second if nothing follows.
    """
    waiting: Cue | None = None
    for segment in segments:
        for words in _groups(segment.words):
            cue = Cue(words[0].start, words[-1].end, "\n".join(textwrap.wrap(" ".join(w.word for w in words), LINE)))
            if waiting is not None:
                yield _until(waiting, cue.start)
            waiting = cue
    if waiting is not None:
        yield _until(waiting, float("inf"))


def _until(cue: Cue, following: float) -> Cue:
    return Cue(cue.start, min(max(cue.end, cue.start + SHORTEST), max(following, cue.start)), cue.text)


def _groups(words: Sequence[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for word in words:
        text = " ".join(w.word for w in [*group, word])
        if group and (len(textwrap.wrap(text, LINE)) > LINES or word.end - group[0].start > LONGEST):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def srt(segments: Iterable[Any]) -> Iterator[str]:
    """A SubRip file, cue by cue."""
    for number, cue in enumerate(cues(segments), 1):
        yield f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n\n"


def vtt(segments: Iterable[Any]) -> Iterator[str]:
    """A WebVTT file, cue by cue."""
    yield "WEBVTT\n\n"
    for cue in cues(segments):
        yield f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n\n"


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
