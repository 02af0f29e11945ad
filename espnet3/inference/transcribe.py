"""``python -m espnet3 transcribe MODEL audio...``"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from espnet3.errors import UserError
from espnet3.inference.audio import find_audio

log = logging.getLogger("espnet3.transcribe")

PROGRESS_SECONDS = 10.0
# so many batches are read ahead and sorted by length: little padding, results soon
READ_AHEAD = 8


def main(argv: Sequence[str]) -> int:
    """Transcribe files; 0, or 1 where some could not be transcribed (each is named on stderr, the others are done).

    Raises:
        UserError: the model cannot be loaded, or there is no audio.
    """
    arguments = _parser().parse_args(argv)
    names = arguments.audio
    if names == ["-"]:
        names = [line.strip() for line in sys.stdin if line.strip()]
    paths = list(find_audio(names))
    if not paths:
        raise UserError("transcribe: no audio is named")

    from espnet3.inference.pretrained import from_pretrained

    options = {
        key: getattr(arguments, key)
        for key in ("method", "beam", "ctc_weight", "batch_seconds", "nbest")
        if getattr(arguments, key) is not None
    }
    recogniser = from_pretrained(arguments.model, decoding=arguments.decoding, device=arguments.device, **options)
    if arguments.output is None:
        return _write(sys.stdout, recogniser, paths, arguments.format)

    from espnet3.io import atomic_write

    with atomic_write(arguments.output) as handle:
        return _write(handle, recogniser, paths, arguments.format)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 transcribe",
        description="Transcribe audio (wav, flac, mp3, ogg; any rate, channels averaged) with a packed model.",
    )
    parser.add_argument("model", help="folder of a packed model, such as exp/asr/pack")
    parser.add_argument("audio", nargs="+", help="files and folders; - reads their names from standard input")
    parser.add_argument("--format", choices=("text", "jsonl"), default="text", help="default: name, tab, text")
    parser.add_argument("--output", metavar="FILE", help="default: standard output")
    parser.add_argument("--decoding", help="one of the experiment's decodings; default: its first")
    parser.add_argument("--method", choices=("joint", "attention", "ctc_beam", "ctc_greedy"))
    parser.add_argument("--beam", type=int)
    parser.add_argument("--ctc-weight", type=float)
    parser.add_argument("--nbest", type=int, help="hypotheses in each JSON line")
    parser.add_argument("--batch-seconds", type=float, help="padded audio in one batch")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


def _write(handle: TextIO, recogniser: Any, paths: list[Path], form: str) -> int:
    failed = done = 0
    heard = 0.0
    started = told = time.monotonic()
    for path, seconds, result in transcribe(recogniser, paths):
        done += 1
        if result is None:
            failed += 1
        else:
            heard += seconds
            handle.write(_line(path, seconds, result, form))
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            log.info(
                "%d of %d files, %.0f s of audio, %.1f x real time", done, len(paths), heard, heard / (told - started)
            )
    handle.flush()
    log.info("%d files, %.0f s of audio, %.1f s", done - failed, heard, time.monotonic() - started)
    if failed:
        log.error("%d of %d files could not be transcribed, see above", failed, len(paths))
    return 1 if failed else 0


def transcribe(recogniser: Any, paths: Iterable[Path]) -> Iterator[tuple[Path, float, Any]]:
    """(path, seconds, result) of each file, in order; a file that cannot be read is logged, its result None."""
    waiting: list[tuple[Path, Any]] = []
    ahead, limit = 0.0, READ_AHEAD * recogniser.settings.get("batch_seconds", 60.0)
    for path in paths:
        try:
            waveform = recogniser.read(path)
        except UserError as error:
            log.error("%s", error)
            waveform = None
        waiting.append((path, waveform))
        ahead += waveform.size / recogniser.sampling_rate if waveform is not None else 0.0
        if ahead >= limit:
            yield from _decode(recogniser, waiting)
            waiting, ahead = [], 0.0
    yield from _decode(recogniser, waiting)


def _decode(recogniser: Any, waiting: list[tuple[Path, Any]]) -> Iterator[tuple[Path, float, Any]]:
    results = iter(recogniser.batch([waveform for _, waveform in waiting if waveform is not None]))
    for path, waveform in waiting:
        if waveform is None:
            yield path, 0.0, None
        else:
            yield path, waveform.size / recogniser.sampling_rate, next(results)


def _line(path: Path, seconds: float, result: Any, form: str) -> str:
    if form == "text":
        return f"{path}\t{result.text}\n"
    record = {"audio": str(path), "duration": round(seconds, 3), "text": result.text, "score": round(result.score, 3)}
    record["tokens"] = result.tokens
    if len(result.nbest) > 1:
        record["nbest"] = [{"text": r.text, "score": round(r.score, 3)} for r in result.nbest]
    return json.dumps(record, ensure_ascii=False) + "\n"
