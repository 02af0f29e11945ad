"""Writing the recordings that a builder renders."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import soundfile


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


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Floating-point samples in [-1, 1] as int16, rounded; what lies outside is clipped."""
    return np.clip(np.rint(samples * 32767.0), -32768, 32767).astype(np.int16)
