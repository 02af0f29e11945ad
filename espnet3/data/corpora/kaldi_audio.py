"""Audio that Kaldi keeps in an ark or makes with a command, as the bytes of a file."""

from __future__ import annotations

import os
import signal
import struct
import subprocess

import numpy as np

from espnet3.data.corpora.wav import encode_samples

COMMAND_SECONDS = 600.0
_LARGEST = 1 << 31


def read_ark(path: str, offset: int) -> bytes:
    """The audio file at byte *offset* of an ark: a wav as Kaldi's ``wav-copy`` writes it, or kaldiio's ``AUDIO``.

    Other entries are refused before kaldiio sees them: a ``PKL`` one would be unpickled, which runs its code.

    Raises:
        ValueError: the ark cannot be read, ends before it, or has something else there.
    """
    where = f"{path}:{offset}"
    try:
        if not os.path.isfile(path):
            raise ValueError(f"{path} is no file")
        with open(path, "rb") as ark:
            size = os.fstat(ark.fileno()).st_size
            if offset >= size:
                raise ValueError(f"{where} is beyond the end of the ark ({size} bytes)")
            ark.seek(offset)
            head = ark.read(12)
            ark.seek(offset)
            if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
                length = 8 + struct.unpack("<I", head[4:8])[0]
                if offset + length > size or length > _LARGEST:
                    raise ValueError(f"{where}: the ark is cut short ({size - offset} of {length} bytes)")
                return ark.read(length)
            if head[:5] == b"AUDIO":
                return _kaldiio(ark, where)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    raise ValueError(f"{where} holds no audio: it begins with {head[:5]!r}")


def _kaldiio(ark, where: str) -> bytes:
    from kaldiio.matio import read_kaldi

    try:
        rate, samples = read_kaldi(ark)
        if samples.ndim != 1:
            raise ValueError(f"{samples.shape[-1]} channels")
        if samples.dtype == np.float64:
            samples = samples.astype(np.float32)
        return encode_samples(samples, rate)
    except Exception as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())[:200]}") from None


def run_command(command: str, timeout: float = COMMAND_SECONDS) -> bytes:
    """What the shell *command* writes to its standard output. Raises ValueError where it fails, or takes too long."""
    with subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            data, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise ValueError(f"the command took more than {timeout:g} s ({command})") from None
    if process.returncode or not data:
        told = " ".join(errors.decode("utf-8", "replace").split())[:200]
        raise ValueError(f"the command ended with {process.returncode} and {len(data)} bytes ({command}: {told})")
    return data
