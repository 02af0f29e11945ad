"""``python -m espnet3 transcribe MODEL audio...``"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.inference.audio import audio_seconds, find_audio
from espnet3.inference.formats import FORMATS, Transcript, write_transcript

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
    names: Iterable[str] = arguments.audio
    if arguments.audio == ["-"]:
        names = (line.strip() for line in sys.stdin if line.strip())
    files = list(find_audio(names))
    if not files:
        raise UserError("transcribe: no audio is named")
    output = _Output(arguments.output, arguments.format, files)

    from espnet3.inference.pretrained import from_pretrained

    options = {key: getattr(arguments, key) for key in SETTINGS if getattr(arguments, key) is not None}
    if arguments.timestamps or arguments.format in ("srt", "vtt"):
        options["timestamps"] = True
    recogniser = from_pretrained(
        arguments.model,
        decoding=arguments.decoding,
        device=arguments.device,
        window=arguments.window,
        overlap=arguments.overlap,
        **({"pause": arguments.pause} if arguments.pause is not None else {}),
        **options,
    )
    with output:
        return _run(recogniser, [path for path, _ in files], output)


SETTINGS = ("method", "beam", "ctc_weight", "length_bonus", "maxlenratio", "minlenratio", "nbest", "batch_seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 transcribe",
        description="Transcribe audio (wav, flac, mp3, ogg; any rate and length, channels averaged) with a packed model.",
    )
    add = parser.add_argument
    add("model", help="folder of a packed model, such as exp/asr/pack")
    add("audio", nargs="+", help="files and folders; - reads their names from standard input")
    add("--format", choices=FORMATS, default="text", help="text: name, tab, text; jsonl: a line a file (default: text)")
    add("--output", metavar="PATH", help="a file for all; a folder (its name ends in /, or it exists): a file for each")
    add("--timestamps", action="store_true", help="times of words, in JSON")
    add("--decoding", help="one of the experiment's decodings; default: its first")
    add("--method", help="joint, attention, ctc_beam, ctc_greedy, and others that the model has")
    add("--beam", type=int)
    add("--ctc-weight", type=float)
    add("--length-bonus", type=float)
    add("--maxlenratio", type=float)
    add("--minlenratio", type=float)
    add("--nbest", type=int, help="hypotheses in JSON")
    add("--batch-seconds", type=float, help="padded audio in one batch")
    add("--window", type=float, help="seconds; what is longer is cut into windows (default: as in training); 0: never")
    add("--overlap", type=float, help="seconds that two windows share where there is no pause between them")
    add("--pause", type=float, help="seconds of silence that end a window (0.3); 0: all windows overlap")
    add("--device", default="auto", help="auto, cpu or cuda")
    return parser


class _Output:
    """Where transcripts go: standard output, one file (whole or absent), or a file for each recording in a folder."""

    def __init__(self, path: str | None, form: str, files: Sequence[tuple[Path, Path]]):
        self.form, self.folder, self.handle = form, None, None
        self._file = self._stack = None
        if path is not None and (path.endswith(os.sep) or Path(path).is_dir()):
            self.folder = Path(path)
            self.names = _names(files, FORMATS[form])
        elif path is not None:
            self._file = Path(path)
        if self.folder is None and form in ("srt", "vtt") and len(files) > 1:
            raise UserError(f"transcribe: {form} of {len(files)} files needs a folder: --output FOLDER/")

    def __enter__(self) -> _Output:
        from espnet3.io import atomic_write

        self._stack = contextlib.ExitStack()
        self.handle = self._stack.enter_context(atomic_write(self._file)) if self._file else sys.stdout
        return self

    def __exit__(self, *error: Any) -> None:
        if self.handle is sys.stdout:
            self.handle.flush()
        self._stack.__exit__(*error)

    def write(self, number: int, transcript: Transcript) -> None:
        """Raises UserError where the recording's audio cannot be read."""
        from espnet3.io import atomic_write

        if self.folder is None:
            write_transcript(self.handle, transcript, self.form)
            return
        with atomic_write(self.folder / self.names[number]) as handle:
            write_transcript(handle, transcript, self.form, alone=True)


def _names(files: Sequence[tuple[Path, Path]], extension: str) -> list[Path]:
    """Output names: two recordings that would share one keep their own extension in it."""
    plain = [name.with_suffix(extension) for _, name in files]
    names = [name if plain.count(short) > 1 else short for (_, name), short in zip(files, plain, strict=True)]
    names = [name if name.suffix == extension else name.with_name(name.name + extension) for name in names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"transcribe: two recordings would be written to {twice}; name their common folder instead")
    return names


class _Progress:
    """A line now and then: how many of *files* are done, and how much audio."""

    def __init__(self, files: int):
        self.files, self.done, self.heard = files, 0, 0.0
        self.started = self.told = time.monotonic()

    def tell(self, more: float = 0.0, always: bool = False) -> None:
        """*more*: seconds of the recording that is being decoded."""
        now = time.monotonic()
        if always or now - self.told > PROGRESS_SECONDS:
            self.told, seconds = now, self.heard + more
            speed = seconds / max(now - self.started, 1e-9)
            log.info("%d of %d files, %.0f s of audio, %.1f x real time", self.done, self.files, seconds, speed)


def _run(recogniser: Any, paths: list[Path], output: _Output) -> int:
    failed, progress = 0, _Progress(len(paths))
    for number, transcript in transcribe(recogniser, paths, progress.tell):
        progress.done += 1
        if transcript is None:
            failed += 1
            continue
        try:
            output.write(number, transcript)
        except UserError as error:
            log.error("%s", error)
            failed += 1
        progress.heard += transcript.seconds
        progress.tell()
    progress.tell(always=True)
    if failed:
        log.error("%d of %d files could not be transcribed, see above", failed, len(paths))
    return 1 if failed else 0


def transcribe(
    recogniser: Any, paths: Iterable[Path], progress: Any = lambda seconds: None
) -> Iterator[tuple[int, Transcript | None]]:
    """(number, transcript) of each file, in order; a file that cannot be read is logged, its transcript None.

    Args:
        progress: called with the seconds that a long recording has been decoded up to.
    """
    waiting: list[tuple[int, Path, Any]] = []
    ahead, limit = 0.0, READ_AHEAD * recogniser.settings.get("batch_seconds", 60.0)
    for number, path in enumerate(paths):
        waveform = None
        try:
            if recogniser.is_long(path):
                # in order, and before it what is waiting
                yield from _decode(recogniser, waiting)
                waiting, ahead = [], 0.0
                yield number, Transcript(str(path), audio_seconds(path), segments=_told(recogniser, path, progress))
                continue
            waveform = recogniser.read(path)
        except UserError as error:
            log.error("%s", error)
        waiting.append((number, path, waveform))
        ahead += waveform.size / recogniser.sampling_rate if waveform is not None else 0.0
        if ahead >= limit:
            yield from _decode(recogniser, waiting)
            waiting, ahead = [], 0.0
    yield from _decode(recogniser, waiting)


def _told(recogniser: Any, path: Path, progress: Any) -> Iterator[Any]:
    for segment in recogniser.stream(path):
        progress(segment.end)
        yield segment


def _decode(recogniser: Any, waiting: list[tuple[int, Path, Any]]) -> Iterator[tuple[int, Transcript | None]]:
    results = iter(recogniser.batch([waveform for _, _, waveform in waiting if waveform is not None]))
    for number, path, waveform in waiting:
        if waveform is None:
            yield number, None
        else:
            yield number, Transcript(str(path), waveform.size / recogniser.sampling_rate, result=next(results))
