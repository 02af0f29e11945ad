"""A stream of samples cut into windows: at pauses where there are some, overlapping where there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

# level of the signal: RMS over LEVEL_SECONDS, every HOP_SECONDS
LEVEL_SECONDS, HOP_SECONDS = 0.02, 0.01
# quiet is what lies less than this part of the way up, in dB, from the softest to the loudest of a window
QUIET = 0.5
SOFTEST, LOUDEST = 5, 95
# a range below this is one noise, without speech to tell it from
LEAST_RANGE_DB = 6.0
# silence longer than this before and after the speech of a window is left out, in seconds
MARGIN = 0.2
# less sound than this, in seconds, is no word
LEAST_SOUND = 0.1
FLOOR = 1e-5


@dataclass
class Window:
    """Samples (T,) that are decoded by themselves.

    Attributes:
        start: of the first sample in the recording, in samples.
        shared: samples at the beginning that the window before this one has too; 0: there is a pause between them.
    """

    start: int
    samples: np.ndarray
    shared: int


def cut_windows(
    blocks: Iterable[np.ndarray], sampling_rate: int, length: float, overlap: float, pause: float, least: float = 0.1
) -> Iterator[Window]:
    """Windows of at most *length* seconds over a recording that comes in *blocks* of any size; memory: two windows.

    A window ends at the first silence of *pause* seconds; without one at the longest silence of *least* seconds, where a
    silence early in the window must be the longer; without any at *length*, and then the next window begins *overlap*
    seconds earlier. With *pause* 0 none is looked for.
    """
    size, step = round(length * sampling_rate), round((length - overlap) * sampling_rate)
    start, shared, held, ended = 0, 0, np.zeros(0, np.float32), False
    stream = iter(blocks)
    while True:
        while not ended and held.size <= size:
            block = next(stream, None)
            if block is None:
                ended = True
            else:
                held = np.concatenate([held, block]) if held.size else np.asarray(block, np.float32)
        if held.size <= shared:
            return
        runs, sound = silences(held[:size], sampling_rate)
        if pause <= 0:
            runs = runs[:0]
        cut = _cut(runs, shared, size, held.size <= size, pause * sampling_rate, least * sampling_rate)
        taken = cut or min(size, held.size)
        # a trimmed beginning would move the part that is shared
        sound, margin = sound[sound < taken], round(MARGIN * sampling_rate)
        heard = bool(shared) or sound.size * HOP_SECONDS >= LEAST_SOUND
        if heard:
            low = 0 if shared or not sound.size else max(0, int(sound[0]) - margin)
            high = min(taken, int(sound[-1]) + margin) if cut and sound.size else taken
            yield Window(start + low, held[low:high], shared)
        if not cut and held.size <= size:
            return
        # what is left out shares nothing, but a word may begin at its very end
        ahead = cut or (step if heard else max(1, taken - margin))
        start, shared, held = start + ahead, taken - ahead if heard and not cut else 0, held[ahead:]


def _cut(runs: np.ndarray, shared: int, size: int, rest: bool, pause: float, least: float) -> int:
    """Where a window ends, in samples; 0: there is no silence to end it in."""
    middles = runs.sum(1) // 2
    lengths = runs[:, 1] - runs[:, 0]
    # a silence at the very beginning ends nothing
    inside = (runs[:, 0] > shared) & (middles < size)
    long = np.flatnonzero(inside & (lengths >= pause))
    if long.size:
        return int(middles[long[0]])
    if rest:
        return 0
    short = np.flatnonzero(inside & (lengths >= least))
    if not short.size:
        return 0
    worth = lengths[short] * np.minimum(1.0, middles[short] / (size / 2))
    return int(middles[short[worth.argmax()]])


def silences(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The silent runs (N, 2) of *samples*, first and past-the-last sample; and the first samples of the frames
    (of :data:`HOP_SECONDS`) that are not silent.

    A signal without contrast has no silence; one that is silent throughout is one run, and has no speech.
    """
    hop, width = max(1, round(HOP_SECONDS * sampling_rate)), max(1, round(LEVEL_SECONDS * sampling_rate))
    none = np.zeros((0, 2), np.int64)
    if samples.size < 2 * width:
        return none, np.arange(0, samples.size, hop)
    power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    at = np.arange(0, samples.size - width + 1, hop)
    level = 10 * np.log10(np.maximum((power[at + width] - power[at]) / width, FLOOR**2))
    soft, loud = np.percentile(level, [SOFTEST, LOUDEST])
    if loud <= 20 * np.log10(FLOOR) + 1:
        return np.array([[0, samples.size]]), at[:0]
    if loud - soft < LEAST_RANGE_DB:
        return none, at
    quiet = level < soft + QUIET * (loud - soft)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2) * hop
    runs[runs[:, 1] >= at[-1] + hop, 1] = samples.size
    return runs, at[~quiet]
