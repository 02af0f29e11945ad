"""Spoken commands: sentences of a seeded grammar, rendered by eSpeak NG in many voices; needs no download.

Splits share no sentence; ``test_voices`` also shares no voice with the others.
"""

# lists of names read better than lists of strings
# ruff: noqa: SIM905

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from espnet3.data.corpora import espeak, grammar
from espnet3.data.corpora.base import CorpusBuilder
from espnet3.data.corpora.wav import to_int16, write_wav
from espnet3.errors import UserError, did_you_mean

# Every variant that eSpeak NG 1.52 ships, less whispers, croaks, heavy echoes and robots. Held-out voices have no close
# relative (the same formants under another name) among the training voices.
TRAINING_VOICES = """
    Alicia Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Marco Mario Michael Mike Nguyen Reed Storm adam anika antonio
    aunty belinda benjamin boris david ed edward f1 f3 f4 grandma grandpa gustave iven2 iven3 klatt klatt2 klatt3 klatt4
    klatt6 linda m1 m2 m4 m5 m7 m8 marcelo max michel miguel norbert pablo paul quincy rob robert sandro shelby steph
    steph2 victor zac
""".split()
HELD_OUT_VOICES = "Alex Annie Andrea f2 f5 m3 m6 pedro".split()
ACCENTS = ("en-us", "en-us", "en-us", "en")
# characters a second at 175 words a minute, pauses included: measured over all training voices
_CHARACTERS_A_SECOND = 17.6


class CommandsCorpus(CorpusBuilder):
    """The embedded corpus of spoken commands.

    Args:
        sampling_rate: of the files, Hz. hours: of training audio, approximately. minutes_valid: likewise.
        test_utterances: sentences in each of ``test`` and ``test_voices``.
        voices, held_out_voices: names of eSpeak NG variants; every fourth speaks British English, the others American.
        rate: words a minute, lowest and highest. pitch, pitch_range: eSpeak's 0-99 scales, lowest and highest.
        snr: ``[low, high]`` in dB of added pink noise, or None. reverberation: ``[low, high]`` seconds of decay by
            60 dB, or None.
        seed: equal arguments give byte-identical files, whatever the order, the process or the number of workers.
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        hours: float = 1.2,
        minutes_valid: float = 4.0,
        test_utterances: int = 280,
        voices: list[str] | None = None,
        held_out_voices: list[str] | None = None,
        rate: tuple[int, int] = (150, 205),
        pitch: tuple[int, int] = (35, 65),
        pitch_range: tuple[int, int] = (35, 65),
        snr: tuple[float, float] | None = None,
        reverberation: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.sampling_rate, self.seed = sampling_rate, seed
        self.seconds = {"train": hours * 3600, "valid": minutes_valid * 60}
        self.test_utterances = test_utterances
        self.voices = list(voices or TRAINING_VOICES)
        self.held_out_voices = list(held_out_voices or HELD_OUT_VOICES)
        self.rate, self.pitch, self.pitch_range = rate, pitch, pitch_range
        self.snr, self.reverberation = snr, reverberation
        for name in ("rate", "pitch", "pitch_range", "snr", "reverberation"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or value[0] > value[1]):
                raise UserError(f"data.builder.{name}: {value} is not [low, high]")
        shared = set(self.voices) & set(self.held_out_voices)
        if shared:
            raise UserError(f"data.builder: {', '.join(sorted(shared))} stands in both voices and held_out_voices")

    def prepare(self, folder: Path) -> None:
        """Raises UserError where the engine lacks a voice."""
        for name in ("voices", "held_out_voices"):
            for voice in getattr(self, name):
                if voice not in espeak.variants():
                    hint = did_you_mean(voice, espeak.variants())
                    raise UserError(f"data.builder.{name}: eSpeak NG has no '{voice}'{hint}")

    def plan(self, folder: Path) -> list[dict[str, Any]]:
        """Items in the order test, test_voices, valid, train: the test sentences do not change with ``hours``."""
        used: set[str] = set()
        plan = []
        for split in ("test", "test_voices", "valid", "train"):
            plan += self._plan_split(split, used)
        return plan

    def _plan_split(self, split: str, used: set[str]) -> list[dict[str, Any]]:
        rng = random.Random(f"commands/{self.seed}/{split}")
        voices = self.held_out_voices if split == "test_voices" else self.voices
        speakers = [f"{ACCENTS[i % len(ACCENTS)]}+{voice}" for i, voice in enumerate(voices)]
        items: list[dict[str, Any]] = []
        seconds, repeated = 0.0, 0
        while len(items) < self.test_utterances if split.startswith("test") else seconds < self.seconds[split]:
            text = grammar.sentence(rng)
            if text in used:
                repeated += 1
                if repeated > 200_000:
                    raise UserError(
                        f"data.builder.hours: the grammar has no more new sentences for '{split}'; ask for less"
                    )
                continue
            used.add(text)
            # voices in turn, so that each has the same share
            item = {
                "id": f"{split}-{len(items):05d}",
                "split": split,
                "text": text,
                "speaker": speakers[len(items) % len(speakers)],
                "rate": rng.randint(*self.rate),
                "pitch": rng.randint(*self.pitch),
                "pitch_range": rng.randint(*self.pitch_range),
            }
            seconds += 0.3 + len(text) / _CHARACTERS_A_SECOND * 175 / item["rate"]
            items.append(item)
        return items

    def make(self, item: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Render one sentence: synthesis, resampling, room and noise, level; a file and its record."""
        from scipy.signal import resample_poly

        noise_seed = random.Random(f"{self.seed}/{item['id']}").getrandbits(31)
        rng = np.random.Generator(np.random.PCG64(noise_seed))
        spoken = espeak.synthesise(
            item["text"], item["speaker"], item["rate"], item["pitch"], item["pitch_range"], noise_seed
        )
        common = math.gcd(self.sampling_rate, espeak.SAMPLING_RATE)
        speech = resample_poly(
            _trim(spoken).astype(np.float64), self.sampling_rate // common, espeak.SAMPLING_RATE // common
        )
        before, after = (rng.uniform(0.1, 0.2, size=2) * self.sampling_rate).astype(int)
        speech = np.pad(speech, (before, after))
        if self.reverberation:
            speech = _reverberate(speech, rng.uniform(*self.reverberation), self.sampling_rate, rng)
        if self.snr:
            speech = _add_noise(speech, rng.uniform(*self.snr), rng)
        speech *= 10 ** (rng.uniform(-12.0, -1.0) / 20) / max(np.abs(speech).max(), 1e-9)
        path = folder / item["split"] / f"{item['id']}.wav"
        facts = write_wav(path, to_int16(speech), self.sampling_rate)
        return {key: item[key] for key in ("id", "split")} | {"audio": str(path)} | item | facts


def _trim(samples: np.ndarray) -> np.ndarray:
    """Without the engine's silence before and after, whose length depends on the voice."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 60)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def _reverberate(speech: np.ndarray, decay: float, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Convolve with exponentially decaying noise (down by 60 dB after *decay* seconds) behind the direct sound."""
    from scipy.signal import fftconvolve

    time = np.arange(int(decay * sampling_rate)) / sampling_rate
    room = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay) * 0.05
    room[0] = 1.0
    return fftconvolve(speech, room)[: len(speech)]


def _add_noise(speech: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Add pink noise (power falling by 3 dB an octave) at *snr* dB below the speech."""
    from scipy.fft import irfft, next_fast_len, rfft

    length = next_fast_len(len(speech), real=True)
    spectrum = rfft(rng.standard_normal(length))
    noise = irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), length)[: len(speech)]
    gain = np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return speech + gain * noise
