"""When each token and word was said, by CTC: the most likely alignment of a hypothesis with the frames.

Viterbi's algorithm over the CTC topology (Graves et al., "Connectionist temporal classification", 2006; as an aligner,
Kürzinger et al., "CTC-segmentation of large corpora", 2020). A CTC model emits a label in few frames, and somewhere
within the sound: a token's span is the frames of its label, which begin late and end early by up to some 0.1 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet3.errors import UserError
from espnet3.models.ctc import frames_needed

# seconds are written with so many decimals
DECIMALS = 3


@dataclass(slots=True)
class Word:
    """A word and when it was said, in seconds; *confidence* is the mean CTC posterior of its tokens' frames, 0 to 1."""

    word: str
    start: float
    end: float
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, rounded."""
        return {k: round(v, DECIMALS) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(slots=True)
class Alignment:
    """The frames of each label: *first* and *last* (L,), both inclusive, and *score* (L,), their mean log-posterior."""

    first: np.ndarray
    last: np.ndarray
    score: np.ndarray


def require_ctc(model: Any, what: str) -> None:
    """Raises UserError where *model* has no trained CTC layer, which *what* needs."""
    if getattr(model, "ctc", None) is None or getattr(model, "ctc_weight", 1.0) == 0:
        raise UserError(f"{what}: it aligns by CTC, which this model lacks; train it with model.ctc_weight above 0")


def frame_seconds(model: Any, sampling_rate: int, what: str = "decode.timestamps") -> float:
    """Seconds that one encoder frame advances by, from the model's ``output_lengths``.

    Raises:
        UserError: the model has no CTC layer, or does not say how long its frames are.
    """
    return frame_samples(model, what) / sampling_rate


def frame_samples(model: Any, what: str = "decode.timestamps") -> int:
    """Samples that one encoder frame advances by; raises as :func:`frame_seconds`."""
    if getattr(model, "ctc", None) is None or getattr(model, "ctc_weight", 1.0) == 0:
        raise UserError(f"{what}: it aligns by CTC, which this model lacks; train it with model.ctc_weight above 0")
    if not hasattr(model, "output_lengths"):
        raise UserError(f"{what}: {type(model).__name__} lacks output_lengths(samples), so its frames have no time")
    low, high = 1 << 20, 1 << 22
    few, many = model.output_lengths(torch.tensor([low, high])).tolist()
    # a quotient of lengths that are rounded: 1 in 1,000 at most for frames of 80 ms at 16 kHz
    return round((high - low) / (many - few))


def ctc_align(
    log_probs: Tensor, lengths: Sequence[int], labels: Sequence[Sequence[int]], blank: int = 0
) -> list[Alignment | None]:
    """The most likely alignment of each utterance's labels, for a batch at once: a loop over frames, none over labels.

    Args:
        log_probs: (B, T, V), natural log.
        lengths: of the utterances, in frames.
        labels: ids without blanks, of each utterance.

    Returns:
        for each utterance its alignment; None where the labels do not fit into its frames.
    """
    counts = [len(row) for row in labels]
    needed = [frames_needed(row) for row in labels]
    fits = np.array([n <= t and t > 0 for n, t in zip(needed, lengths, strict=True)], dtype=bool)
    batch, states = len(labels), 2 * max(counts, default=0) + 1
    if not fits.any():
        return [None] * batch
    extended = np.full((batch, states), blank, dtype=np.int64)
    for b, row in enumerate(labels):
        extended[b, 1 : 2 * len(row) : 2] = row
    index = torch.from_numpy(extended)[:, None].expand(-1, log_probs.size(1), -1)
    emission = log_probs.detach().float().cpu().gather(2, index).transpose(0, 1).numpy()
    # a label may follow another label directly where they differ
    skips = np.zeros((batch, states), dtype=bool)
    skips[:, 3::2] = extended[:, 3::2] != extended[:, 1:-2:2]
    ends = np.array(lengths, dtype=np.int64)
    frames = int(ends[fits].max())
    before = np.full((batch, states + 2), -np.inf, dtype=np.float32)
    before[:, 2] = 0.0
    came = np.empty((frames, batch, states), dtype=np.int8)
    # the first frame is in state 0 or 1: as if the frame before had been in state 0, and might be skipped
    for t in range(frames):
        stay, step, skip = before[:, 2:], before[:, 1:-1], np.where(skips, before[:, :-2], -np.inf)
        best = np.maximum(np.maximum(stay, step), skip)
        came[t] = np.where(best == stay, 0, np.where(best == step, 1, 2))
        best += emission[t]
        live = t < ends
        before[live, 2:] = best[live]
    final = before[:, 2:]
    rows, last = np.arange(batch), 2 * np.array(counts)
    state = np.where((last > 0) & (final[rows, last - (last > 0)] >= final[rows, last]), last - (last > 0), last)
    path = np.zeros((frames, batch), dtype=np.int64)
    for t in range(frames - 1, -1, -1):
        live = t < ends
        path[t] = state
        state = np.where(live, state - came[t, rows, state], state)
    return [_spans(path[: ends[b], b], emission[: ends[b], b], counts[b]) if fits[b] else None for b in range(batch)]


def _spans(path: np.ndarray, emission: np.ndarray, count: int) -> Alignment:
    first, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
    total, frames = np.zeros(count), np.zeros(count)
    at = np.flatnonzero(path % 2)
    label = path[at] // 2
    np.add.at(total, label, emission[at, path[at]])
    np.add.at(frames, label, 1)
    last[label] = at
    first[label[::-1]] = at[::-1]
    return Alignment(first, last, total / np.maximum(frames, 1))


def word_of_token(labels: Sequence[int], tokenizer: Any) -> list[int | None]:
    """For each label the number of the word that it belongs to; None for one that adds no text, such as a space.

    Asks nothing of the tokenizer but ``decode``: a label belongs to the word that its text ends up in.
    """
    found: list[int | None] = []
    before = ""
    for n in range(1, len(labels) + 1):
        text = tokenizer.decode(labels[:n])
        words = text.split()
        found.append(len(words) - 1 if words and len("".join(words)) > len("".join(before.split())) else None)
        before = text
    return found


def words_of(
    labels: Sequence[int], alignment: Alignment | None, tokenizer: Any, seconds: float, offset: float = 0.0
) -> list[Word]:
    """The words of one aligned hypothesis; none where it could not be aligned.

    Args:
        seconds: that one frame lasts.
        offset: of the first frame, in seconds.
    """
    if alignment is None:
        return []
    owner = word_of_token(labels, tokenizer)
    texts = tokenizer.decode(labels).split()
    words = []
    for number, text in enumerate(texts):
        own = [i for i, word in enumerate(owner) if word == number]
        if not own:
            continue
        words.append(
            Word(
                text,
                offset + float(alignment.first[own[0]]) * seconds,
                offset + float(alignment.last[own[-1]] + 1) * seconds,
                float(np.exp(alignment.score[own]).mean()),
            )
        )
    return words


def token_times(alignment: Alignment | None, seconds: float, offset: float = 0.0) -> list[list[float]] | None:
    """``[start, end]`` of each label in seconds, rounded; None where it could not be aligned."""
    if alignment is None:
        return None
    spans = np.stack([alignment.first, alignment.last + 1], 1) * seconds + offset
    return np.round(spans, DECIMALS).tolist()
