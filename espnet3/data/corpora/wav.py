"""Writing the recordings that a builder renders, or takes out of a container."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import soundfile

# how the files of the formats that libsndfile reads begin
_SUFFIXES = (
    (b"RIFF", ".wav"), (b"RF64", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"),
    (b"\xff\xf3", ".mp3"), (b"NIST_1A", ".sph"), (b"FORM", ".aiff"), (b".snd", ".au"),
)  # fmt: skip


def write_wav(path: Path, samples: np.ndarray, sampling_rate: int) -> dict[str, float | str]:
    """Write *samples* (T,), int16, as a mono wav; the same samples give the same bytes.

    Returns:
        ``duration`` in seconds and ``sha256`` of the file: with the digest in its record, a corpus whose audio has
        changed is another corpus, though its ids and texts are the same.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="WAV", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = buffer.getvalue()
    path.write_bytes(data)
    return {"duration": len(samples) / sampling_rate, "sha256": hashlib.sha256(data).hexdigest()}


def write_encoded(stem: Path, data: bytes) -> dict[str, str]:
    """Write the bytes of an audio file to *stem* with the suffix that its beginning tells, unless they are there.

    Returns:
        ``audio``, the path, and ``sha256``.
    """
    suffix = next((suffix for magic, suffix in _SUFFIXES if data.startswith(magic)), ".audio")
    path = stem.with_name(stem.name + suffix)
    return {"audio": str(path), "sha256": write_file(path, data)}


def write_file(path: Path, data: bytes) -> str:
    """Write *data* to *path* unless it is there already; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
        path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def encode_samples(samples: np.ndarray, sampling_rate: int) -> bytes:
    """The bytes of a mono wav of *samples* (T,): int16 as they are; floating-point ones in 16 bits where these hold
    them exactly, otherwise as float32.
    """
    if samples.dtype.kind == "f":
        scaled = samples * 32768.0
        whole = np.rint(scaled)
        if np.array_equal(whole, scaled) and (not len(whole) or (whole.min() >= -32768 and whole.max() <= 32767)):
            samples = whole.astype(np.int16)
    buffer = io.BytesIO()
    subtype = "FLOAT" if samples.dtype.kind == "f" else "PCM_16" if samples.dtype == np.int16 else "PCM_32"
    soundfile.write(buffer, samples, sampling_rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def encode_part(
    path: str | os.PathLike, start: float | None = None, duration: float | None = None, channel: int | None = None
) -> bytes:
    """The bytes of a file that holds a part of a recording and nothing else; the whole of a mono file as it is.

    Args:
        start, duration: in seconds.

    Raises:
        OSError, soundfile.SoundFileError: it cannot be read.
    """
    with soundfile.SoundFile(path) as audio:
        rate, frames = audio.samplerate, audio.frames
        first = round((start or 0.0) * rate)
        count = frames - first if start is None or duration is None else round((start + duration) * rate) - first
        if first == 0 and count >= frames and audio.channels == 1:
            return Path(path).read_bytes()
        kind = {"PCM_16": "int16", "PCM_S8": "int16", "PCM_U8": "int16", "PCM_24": "int32", "PCM_32": "int32"}
        audio.seek(first)
        samples = audio.read(count, dtype=kind.get(audio.subtype, "float32"), always_2d=True)
    return encode_samples(np.ascontiguousarray(samples[:, channel or 0]), rate)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Floating-point samples in [-1, 1] as int16, rounded; what lies outside is clipped."""
    return np.clip(np.rint(samples * 32767.0), -32768, 32767).astype(np.int16)
