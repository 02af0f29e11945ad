"""Audio files as a model hears them: mono, float32, at its sampling rate."""

from __future__ import annotations

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
        reason = "no such file" if not Path(path).exists() else f"not readable as audio ({error})"
        raise UserError(f"{path}: {reason}") from None
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


def find_audio(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The files that are named, and all audio files in the folders that are named, sorted within each.

    Raises:
        UserError: nothing is there, or a folder holds no audio.
    """
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not found:
                raise UserError(f"{path}: no audio in this folder ({', '.join(EXTENSIONS)})")
            yield from found
        elif path.exists():
            yield path
        else:
            raise UserError(f"{path}: no such file")
