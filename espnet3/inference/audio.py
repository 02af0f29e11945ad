"""Audio files as a model hears them: mono, float32, at its sampling rate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from espnet3.data.audio import resample
from espnet3.errors import UserError

EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au")


def read_audio(path: str | os.PathLike, sampling_rate: int) -> np.ndarray:
    """The file's waveform (T,) in [-1, 1]; channels averaged, resampled to *sampling_rate* (Hz).

    Raises:
        UserError: it is absent, empty, or no audio that soundfile reads.
    """
    import soundfile

    try:
        waveform, rate = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(_reason(path, error)) from None
    return to_model_rate(waveform, rate, sampling_rate, str(path))


def to_model_rate(waveform: np.ndarray, rate: int, sampling_rate: int, name: str = "audio") -> np.ndarray:
    """(T,) or (T, channels), real or integer samples → float32 (T',) at *sampling_rate*.

    Raises:
        UserError: no samples, or samples that are not finite.
    """
    waveform = np.asarray(waveform)
    if np.issubdtype(waveform.dtype, np.integer):
        waveform = waveform / (np.iinfo(waveform.dtype).max + 1.0)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    if waveform.ndim != 1 or waveform.size == 0:
        raise UserError(f"{name}: no samples; give an array of shape (samples,) or (samples, channels)")
    if not np.isfinite(waveform).all():
        raise UserError(f"{name}: samples are not finite; mend the recording")
    if rate != sampling_rate:
        waveform = resample(waveform.astype(np.float32), int(rate), sampling_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def read_blocks(path: str | os.PathLike, sampling_rate: int, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """The file's waveform as :func:`read_audio` gives it, *seconds* at a time: of any length in constant memory.

    Raises:
        UserError: as :func:`read_audio`; also in the middle, where the file is damaged there.
    """
    import soundfile

    try:
        with soundfile.SoundFile(os.fspath(path)) as audio:
            rate = audio.samplerate
            common = math.gcd(rate, sampling_rate)
            up, down = sampling_rate // common, rate // common
            # whole multiples of `down` keep the phase; the margin is the reach of scipy's filter on either side
            margin = down * math.ceil((10 * max(up, down) / up + 1) / down) if rate != sampling_rate else 0
            size = down * max(1, round(seconds * rate / down))
            held, left, count = np.zeros(0, np.float32), 0, 0
            while True:
                block = audio.read(size, dtype="float32", always_2d=True)
                if not np.isfinite(block).all():
                    raise UserError(f"{path}: samples are not finite; mend the recording")
                held = np.concatenate([held, block.mean(axis=1)])
                count += len(block)
                last = len(block) < size
                ready = held.size - left - (0 if last else margin)
                ready -= 0 if last else ready % down
                if ready > 0:
                    out = held if not margin else resample(held, rate, sampling_rate)
                    first = left * up // down
                    wanted = math.ceil(ready * up / down)
                    yield np.ascontiguousarray(out[first : first + wanted], dtype=np.float32)
                    keep = min(margin, left + ready)
                    held, left = held[left + ready - keep :], keep
                if last:
                    break
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(_reason(path, error)) from None
    if not count:
        raise UserError(f"{path}: no samples")


def audio_seconds(path: str | os.PathLike) -> float:
    """Duration of the file, from its header.

    Raises:
        UserError: it is absent, or no audio that soundfile reads.
    """
    import soundfile

    try:
        return float(soundfile.info(os.fspath(path)).duration)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(_reason(path, error)) from None


def _reason(path: str | os.PathLike, error: Exception) -> str:
    reason = "no such file" if not Path(path).exists() else f"not readable as audio ({error})"
    return f"{path}: {reason}"


def find_audio(paths: Iterable[str | os.PathLike]) -> Iterator[tuple[Path, Path]]:
    """``(file, its name in an output folder)`` of the files that are named, and of all audio in the folders that are.

    A folder's files come sorted, and are named by their path inside it. What does not exist comes as it is: whoever
    reads it says so.

    Raises:
        UserError: a folder holds no audio.
    """
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not found:
                raise UserError(f"{path}: no audio in this folder ({', '.join(EXTENSIONS)})")
            yield from ((file, file.relative_to(path)) for file in found)
        else:
            yield path, Path(path.name)
