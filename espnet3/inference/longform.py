"""Recordings of any length in constant memory: windows that end in pauses or overlap, and the merge of what they say.

A window is as long as the utterances that the model was trained on, and is decoded like one, in a batch with others.
Where two windows overlap, since there was no pause to part them, both have heard the words between; CTC says when. The
seam lies at the word next to the middle of the overlap that both have at the same time, and without such a word in the
gap between words next to the middle, so that no word is lost, or said twice.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from espnet3.inference.decode import align_batch
from espnet3.inference.encoded import encode_batch
from espnet3.inference.timestamps import Word, frame_samples, words_of
from espnet3.inference.windows import Window, cut_windows

# a silence as long as this ends a window, in seconds
PAUSE = 0.3
# two windows mean the same word where the middles of its times differ by less, in seconds
SAME_TIME = 0.3
# malloc.h's number for the size from which on memory is mapped, and that size
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 1 << 22


@dataclass
class Segment:
    """Words without a pause or a seam between; times in seconds from the recording's beginning.

    Attributes:
        score: of the hypothesis that they are from, natural log.
    """

    start: float
    end: float
    text: str
    score: float
    words: list[Word] = field(default_factory=list)


@dataclass
class _Heard:
    window: Window
    text: str
    score: float
    words: list[Word]


class LongForm:
    """Decodes a stream of samples.

    Args:
        model: with a CTC layer and ``output_lengths``, see :func:`espnet3.inference.timestamps.frame_samples`.
        window: seconds, at most. overlap: seconds that two windows share where no pause parts them; None: a third of
            a window, at most 3 s.
        pause: seconds of silence that end a window; 0: windows never end in silences, and all overlap.
        batch_seconds: of padded windows that are decoded together.

    Raises:
        UserError: the model has no CTC layer.
    """

    def __init__(
        self,
        model: Any,
        search: Any,
        tokenizer: Any,
        sampling_rate: int,
        device: Any = "cpu",
        window: float = 20.0,
        overlap: float | None = None,
        pause: float = PAUSE,
        batch_seconds: float = 60.0,
    ):
        self.model, self.search, self.tokenizer, self.device = model, search, tokenizer, device
        self.sampling_rate = sampling_rate
        self.frame_seconds = frame_samples(model, "a recording longer than a window") / sampling_rate
        self.window = window
        self.overlap = min(3.0, window / 3) if overlap is None else min(overlap, window / 2)
        self.pause, self.batch = pause, max(1, int(batch_seconds / window))

    def __call__(self, blocks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """The segments of a recording, in order; *blocks* are its samples, float32 (any number,), one after another."""
        last: _Heard | None = None
        _give_back_memory()
        for heard in self._decoded(cut_windows(blocks, self.sampling_rate, self.window, self.overlap, self.pause)):
            if last is not None:
                if heard.window.shared:
                    low = heard.window.start / self.sampling_rate
                    kept, taken = seam(last.words, heard.words, low, low + heard.window.shared / self.sampling_rate)
                    last, heard = _part(last, 0, kept), _part(heard, taken, None)
                yield from _segment(last)
            last = heard
        if last is not None:
            yield from _segment(last)

    def _decoded(self, windows: Iterable[Window]) -> Iterator[_Heard]:
        batch: list[Window] = []
        for window in windows:
            batch.append(window)
            if len(batch) == self.batch:
                yield from self._decode(batch)
                batch = []
                _give_back_memory()
        if batch:
            yield from self._decode(batch)

    @torch.inference_mode()
    def _decode(self, batch: list[Window]) -> list[_Heard]:
        order = sorted(range(len(batch)), key=lambda i: -batch[i].samples.size)
        encoded, lengths = encode_batch([batch[i].samples for i in order], self.model, self.device)
        found = self.search(encoded, lengths)
        alignments = align_batch(encoded, lengths, [nbest[0].tokens for nbest in found], self.model)
        # what CTC hears nothing in is no speech: an attention decoder may make words of it
        silent = (self.model.ctc.log_softmax(encoded).argmax(2) == self.model.blank).cpu()
        heard: dict[int, _Heard] = {}
        for n, i in enumerate(order):
            best, start = found[n][0], batch[i].start / self.sampling_rate
            text = "" if bool(silent[n, : lengths[n]].all()) else self.tokenizer.decode(best.tokens)
            words = words_of(best.tokens, alignments[n], self.tokenizer, self.frame_seconds, start) if text else []
            if text and not words:
                words = _spread(text.split(), start, batch[i].samples.size / self.sampling_rate)
            heard[i] = _Heard(batch[i], text, best.score, words)
        return [heard[i] for i in range(len(batch))]


def _give_back_memory() -> None:
    """Tensors of ever other sizes leave holes in glibc's heap, which would grow by 3 MB for each minute of audio: it is
    trimmed, and large tensors are kept out of it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.malloc_trim(0)


def seam(before: Sequence[Word], after: Sequence[Word], low: float, high: float) -> tuple[int, int]:
    """How many words of the window *before* stay, and from which word on those of *after* count.

    Args:
        low, high: the part that both have heard, in seconds.
    """
    middle = (low + high) / 2

    def when(word: Word) -> float:
        return (word.start + word.end) / 2

    def distance(pair: tuple[int, int]) -> tuple[float, float]:
        a, b = when(before[pair[0]]), when(after[pair[1]])
        return (abs((a + b) / 2 - middle), abs(a - b))

    same = [
        (i, j)
        for i, a in enumerate(before)
        for j, b in enumerate(after)
        if a.word == b.word and low <= when(a) <= high and low <= when(b) <= high and abs(when(a) - when(b)) < SAME_TIME
    ]
    if same:
        i, j = min(same, key=distance)
        return i + 1, j + 1
    spans = sorted((w.start, w.end) for w in (*before, *after) if w.end > low and w.start < high)
    gaps, reached = [], low
    for start, end in spans:
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    if high > reached:
        gaps.append((reached, high))
    # the point of a gap that is next to the middle
    cut = min((min(max(middle, a), b) for a, b in gaps), key=lambda t: abs(t - middle), default=middle)
    return sum(when(w) < cut for w in before), sum(when(w) < cut for w in after)


def _part(heard: _Heard, first: int, past: int | None) -> _Heard:
    words = heard.words[first:past]
    return _Heard(heard.window, " ".join(word.word for word in words), heard.score, words)


def _segment(heard: _Heard) -> Iterator[Segment]:
    if heard.words:
        text = " ".join(heard.text.split())
        yield Segment(heard.words[0].start, heard.words[-1].end, text, heard.score, heard.words)


def _spread(texts: Sequence[str], start: float, seconds: float) -> list[Word]:
    """Words that CTC could not place, evenly over their window."""
    each = seconds / len(texts)
    return [Word(text, start + i * each, start + (i + 1) * each, 0.0) for i, text in enumerate(texts)]
