"""What an audio file really holds: read from its header, with the checks that libsndfile leaves out."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

import numpy as np
import soundfile

# written by programs that cannot go back to the header, such as ffmpeg and sox at the start of a pipe
_UNKNOWN_SIZE = 0x7FFFF000


class BadAudio(Exception):
    """The reason why a file is refused: a category, and details after a colon."""


@dataclass(frozen=True)
class AudioHeader:
    """A file's sampling rate (Hz), length (samples of one channel) and number of channels."""

    sampling_rate: int
    num_samples: int
    channels: int


def read_header(path: str | os.PathLike) -> AudioHeader:
    """Sampling rate (Hz), length (samples) and channels of a file of any format that libsndfile reads.

    libsndfile takes a truncated wav for a short one, so the RIFF sizes are compared with the file's; floating-point
    samples are read in full, as they may be NaN; of compressed formats, the end is decoded.

    Raises:
        BadAudio: missing, empty, truncated or unreadable file, 0 Hz, no samples, samples that are not finite.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise BadAudio("missing file") from None
    except OSError as error:
        raise BadAudio(f"unreadable file: {error.strerror}") from None
    except ValueError:
        raise BadAudio("unreadable file: a path cannot hold NUL characters") from None
    if stat.S_ISDIR(found.st_mode):
        raise BadAudio("unreadable file: it is a folder")
    # opening a pipe would wait for somebody who writes to it
    if not stat.S_ISREG(found.st_mode):
        raise BadAudio("unreadable file: it is no regular file")
    size = found.st_size
    if size == 0:
        raise BadAudio("empty file: zero bytes")
    try:
        return _read(path, size)
    except OSError as error:
        raise BadAudio(f"unreadable file: {error.strerror or error}") from None


def _read(path: str | os.PathLike, size: int) -> AudioHeader:
    is_wav = _check_riff(path, size)
    try:
        with soundfile.SoundFile(path) as audio:
            header = AudioHeader(audio.samplerate, audio.frames, audio.channels)
            if header.sampling_rate <= 0:
                raise BadAudio("sampling rate of 0 Hz")
            if header.num_samples <= 0:
                raise BadAudio("empty audio: no samples")
            if audio.subtype in ("FLOAT", "DOUBLE"):
                if any(not np.isfinite(block).all() for block in audio.blocks(1 << 20, dtype="float32")):
                    raise BadAudio("non-finite samples: NaN or infinity")
            elif not is_wav and not _has_end(audio):
                raise BadAudio("truncated audio: the end cannot be decoded")
    except (soundfile.SoundFileError, RuntimeError) as error:
        text = " ".join(str(getattr(error, "error_string", error)).split())
        raise BadAudio(f"unreadable file: {text}") from None
    return header


def _has_end(audio: soundfile.SoundFile) -> bool:
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1)) == 1
    except (soundfile.SoundFileError, RuntimeError):
        return False


def _check_riff(path: str | os.PathLike, size: int) -> bool:
    """Whether *path* is a RIFF wav; raises BadAudio if so and it is cut short, or says 0 Hz."""
    with open(path, "rb") as handle:
        head = handle.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return False
        while len(chunk := handle.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            start = handle.tell()
            if name == b"fmt ":
                form = handle.read(16)
                if len(form) == 16 and struct.unpack("<I", form[4:8])[0] == 0:
                    raise BadAudio("sampling rate of 0 Hz")
            elif name == b"data":
                if length < _UNKNOWN_SIZE and start + length > size:
                    raise BadAudio(f"truncated audio: {size - start} of {length} bytes")
                if start >= size or length == 0:
                    raise BadAudio("empty audio: no samples")
                return True
            handle.seek(start + length + length % 2)
    raise BadAudio("truncated audio: the file ends inside its header")
