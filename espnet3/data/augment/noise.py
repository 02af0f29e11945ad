"""Additive noise from recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet3.data.audio import read_audio, resample
from espnet3.data.lazy import Manifest
from espnet3.data.sources import cut_item
from espnet3.errors import UserError

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au")


class Recordings:
    """Recordings of a folder, of a manifest, or a list of files or Lhotse cuts, from which stretches are read.

    Args:
        source: a folder (searched to its depths), a manifest (``.jsonl``, ``.jsonl.gz``), a CutSet, or a list.
        what: for messages.

    Raises:
        UserError: there is nothing to be found.
    """

    def __init__(self, source: Any, what: str) -> None:
        self.what, self.manifest = what, None
        self.files: list[Any] = []
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            if path.is_dir():
                self.files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            elif path.name.endswith((".jsonl", ".jsonl.gz")):
                self.manifest = Manifest(path)
            elif path.is_file():
                self.files = [path]
        elif source is not None:
            self.files = list(source)
        self.source = source
        if not len(self):
            raise UserError(f"{what}: no recordings in {source}; give a folder of audio, a manifest or a CutSet")

    def __len__(self) -> int:
        return len(self.files if self.manifest is None else self.manifest)

    def draw(self, generator: np.random.Generator, sampling_rate: int, samples: int | None = None) -> np.ndarray:
        """A stretch of *samples* samples (fewer where the recording is shorter; None: all of it), at *sampling_rate* Hz.

        Raises:
            UserError: the recording cannot be read.
        """
        chosen, place = int(generator.integers(len(self))), generator.random()
        if self.manifest is None:
            item = self.files[chosen]
        else:
            from lhotse.serialization import deserialize_item

            item = deserialize_item(self.manifest[chosen])
        is_file = isinstance(item, (str, os.PathLike))
        try:
            info = soundfile.info(str(item)) if is_file else item
            wanted = None if samples is None else samples / sampling_rate
            start = 0.0 if wanted is None or info.duration <= wanted else place * (info.duration - wanted)
            if is_file:
                return read_audio(item, sampling_rate, start, wanted)[:samples]
            cut = item.truncate(offset=start, duration=wanted) if start else item
            audio = cut_item(cut)["speech"]
        except (OSError, soundfile.SoundFileError, ValueError) as error:
            name = item if is_file else item.id
            raise UserError(f"{self.what}: {name} cannot be read ({error})") from None
        return (
            resample(audio, cut.sampling_rate, sampling_rate)[:samples] if cut.sampling_rate != sampling_rate else audio
        )


class AddNoise:
    """Add a stretch of a noise recording, repeated where it is shorter, at a signal-to-noise ratio.

    The ratio is of mean powers over the utterance; silence gets no noise.

    Args:
        source: a folder of audio, a manifest, or a CutSet.
        sampling_rate: of the speech, Hz; noise at another rate is resampled.
        snr: dB, drawn uniformly from ``[low, high]``, or one number.
        probability: of an utterance to get noise.
    """

    def __init__(
        self, source: Any, sampling_rate: int, snr: float | Sequence[float] = (5.0, 20.0), probability: float = 1.0
    ) -> None:
        self.recordings = Recordings(source, "augment.source")
        self.sampling_rate, self.probability = sampling_rate, probability
        low, high = (snr, snr) if isinstance(snr, (int, float)) else snr
        if low > high:
            raise UserError(f"augment.snr: [{low}, {high}] is not low, high")
        self.snr = float(low), float(high)

    def __call__(self, speech: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(T,) to (T,)."""
        noise = np.resize(self.recordings.draw(generator, self.sampling_rate, len(speech)), len(speech))
        snr = generator.uniform(*self.snr)
        power, loudness = (float(np.mean(np.square(x, dtype=np.float64))) for x in (speech, noise))
        if not power or not loudness:
            return speech
        return speech + np.float32(np.sqrt(power / loudness) * 10 ** (-snr / 20)) * noise
