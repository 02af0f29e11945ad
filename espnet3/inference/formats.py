"""Transcripts as text, JSON lines and subtitles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from espnet3.inference import subtitles

# each format's extension in a folder
FORMATS = {"text": ".txt", "jsonl": ".json", "srt": ".srt", "vtt": ".vtt"}
DECIMALS = 3


@dataclass
class Transcript:
    """One recording: its *result* (:class:`espnet3.inference.pretrained.Result`), or, of a long one, its *segments*, which
    are decoded while they are written; *seconds* is its duration."""

    audio: str
    seconds: float
    result: Any = None
    segments: Iterable[Any] | None = None


@dataclass
class _Words:
    words: list[Any]


def write_transcript(handle: TextIO, transcript: Transcript, form: str, alone: bool = False) -> None:
    """Write one recording.

    Args:
        form: of :data:`FORMATS`. alone: the file is this recording's own, so text needs no name before it.

    Raises:
        UserError: a long recording's audio cannot be read to its end.
    """
    if form in ("srt", "vtt"):
        segments = transcript.segments if transcript.segments is not None else [_Words(transcript.result.words)]
        handle.writelines((subtitles.srt if form == "srt" else subtitles.vtt)(segments))
    elif form == "text":
        handle.writelines(_text(transcript, alone))
    else:
        handle.write(json.dumps(record(transcript), ensure_ascii=False) + "\n")


def _text(transcript: Transcript, alone: bool) -> Iterator[str]:
    if alone and transcript.segments is not None:
        yield from (f"{segment.text}\n" for segment in transcript.segments)
        return
    if transcript.segments is not None:
        text = " ".join(segment.text for segment in transcript.segments)
    else:
        text = transcript.result.text
    yield f"{text}\n" if alone else f"{transcript.audio}\t{text}\n"


def record(transcript: Transcript) -> dict[str, Any]:
    """``{"audio", "duration", "text", "score"}``; with ``tokens``, ``nbest`` and ``words``, or of a long one
    ``segments``, each with ``start``, ``end``, ``text``, ``score`` and ``words``; times in seconds."""
    made: dict[str, Any] = {"audio": transcript.audio, "duration": round(transcript.seconds, DECIMALS)}
    if transcript.segments is not None:
        segments = [
            {
                "start": round(segment.start, DECIMALS),
                "end": round(segment.end, DECIMALS),
                "text": segment.text,
                "score": round(segment.score, DECIMALS),
                "words": [word.as_dict() for word in segment.words],
            }
            for segment in transcript.segments
        ]
        return made | {"text": " ".join(segment["text"] for segment in segments), "segments": segments}
    result = transcript.result
    made |= {"text": result.text, "score": round(result.score, DECIMALS), "tokens": result.tokens}
    if len(result.nbest) > 1:
        made["nbest"] = [{"text": r.text, "score": round(r.score, DECIMALS)} for r in result.nbest]
    if result.words:
        made["words"] = [word.as_dict() for word in result.words]
    return made
