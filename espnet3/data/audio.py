"""Reading audio: a file, encoded bytes or an array, to float32 at the rate that is wanted, by soundfile and scipy."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
import soundfile


def read_audio(
    source: str | os.PathLike | io.BytesIO,
    sampling_rate: int | None = None,
    start: float = 0.0,
    duration: float | None = None,
    channel: int = 0,
) -> np.ndarray:
    """Samples (T,), float32 in [-1, 1], of one channel of a file or part of it.

    Args:
        sampling_rate: Hz; a file at another rate is resampled. None: as it is.
        start, duration: in seconds; duration None: to the end.

    Raises:
        OSError, soundfile.SoundFileError: the file cannot be read. ValueError: *channel* or *start* is outside the
        file.
    """
    with soundfile.SoundFile(source) as audio:
        rate = audio.samplerate
        if channel >= audio.channels:
            raise ValueError(f"there is no channel {channel}, the file has {audio.channels}")
        frames = -1
        if duration is not None:
            frames = round((start + duration) * rate) - round(start * rate)
        if start:
            if round(start * rate) > audio.frames:
                raise ValueError(f"it begins at {start:.3f} s, the file has {audio.frames / rate:.3f} s")
            audio.seek(round(start * rate))
        samples = audio.read(frames, dtype="float32", always_2d=audio.channels > 1)
    if samples.ndim > 1:
        samples = np.ascontiguousarray(samples[:, channel])
    return resample(samples, rate, sampling_rate) if sampling_rate and sampling_rate != rate else samples


def resample(samples: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """*samples* (T,) at *rate* Hz, at *sampling_rate* Hz, by a polyphase filter (scipy); ceil(T * ratio) samples."""
    from scipy.signal import resample_poly

    common = math.gcd(rate, sampling_rate)
    return resample_poly(samples, sampling_rate // common, rate // common).astype(np.float32)


def decode_audio(value: Any, sampling_rate: int | None = None, value_rate: int | None = None) -> np.ndarray:
    """Samples (T,), float32, of one value of an audio column.

    Args:
        value: a path, ``{"bytes", "path"}`` as Hugging Face stores encoded files, ``{"array", "sampling_rate"}``, or
            a plain sequence of samples, whose rate is *value_rate* (Hz; None: already right).

    Raises:
        ValueError: the value is none of these, or holds no audio. Others as :func:`read_audio`.
    """
    if isinstance(value, (str, os.PathLike)):
        return read_audio(value, sampling_rate)
    if isinstance(value, dict):
        if value.get("array") is not None:
            return decode_audio(value["array"], sampling_rate, value.get("sampling_rate") or value_rate)
        if value.get("bytes") is not None:
            return read_audio(io.BytesIO(value["bytes"]), sampling_rate)
        if value.get("path"):
            return read_audio(value["path"], sampling_rate)
        raise ValueError("it has neither 'bytes' nor 'path' nor 'array'")
    samples = np.asarray(value)
    if samples.dtype == object or samples.dtype.kind not in "iuf":
        raise ValueError(f"a path, encoded bytes or samples are needed, not {type(value).__name__}")
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        raise ValueError(f"one channel of samples is needed, not an array of shape {samples.shape}")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize <= 2:
        samples = samples.astype(np.float32) / np.iinfo(samples.dtype).max
    samples = samples.astype(np.float32, copy=False)
    return (
        resample(samples, value_rate, sampling_rate)
        if sampling_rate and value_rate not in (None, sampling_rate)
        else samples
    )


def audio_length(value: Any, value_rate: int | None = None) -> tuple[int, int]:
    """Samples and sampling rate (Hz) of one value of an audio column, from the header where it is a file."""
    if isinstance(value, dict):
        if value.get("array") is not None:
            return audio_length(value["array"], value.get("sampling_rate") or value_rate)
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (str, os.PathLike, io.BytesIO)):
        info = soundfile.info(value)
        return info.frames, info.samplerate
    if value is None or value_rate is None:
        raise ValueError("the sampling rate of plain samples must be given (sampling_rate=...)")
    return np.size(value), value_rate
