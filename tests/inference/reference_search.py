"""What the searches are checked against: one utterance at a time, loops over frames, no cache, no batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOG_ZERO = -1e10


def logadd(*values: float) -> float:
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))


def ctc_prefix(x: list[list[float]], prefix: tuple[int, ...], blank: int = 0) -> tuple[float, float]:
    """(log psi, log p) of a prefix by the recursion over frames: that the labels begin so, that they are exactly so."""
    frames = len(x)
    n = [-math.inf] * frames
    b = [0.0] * frames
    total = 0.0
    for t in range(frames):
        total += x[t][blank]
        b[t] = total
    psi = 0.0
    for place, label in enumerate(prefix):
        repeat = place > 0 and prefix[place - 1] == label
        new_n, new_b = [-math.inf] * frames, [-math.inf] * frames
        psi = -math.inf
        for t in range(frames):
            phi = 0.0 if place == 0 else -math.inf
            if t > 0:
                phi = b[t - 1] if repeat else logadd(n[t - 1], b[t - 1])
            new_n[t] = logadd(new_n[t - 1] if t else -math.inf, phi) + x[t][label]
            new_b[t] = logadd(new_n[t - 1], new_b[t - 1]) + x[t][blank] if t else -math.inf
            psi = logadd(psi, phi + x[t][label])
        n, b = new_n, new_b
    return psi, logadd(n[-1], b[-1])


@dataclass
class TinyCache:
    memory: Tensor
    hidden: Tensor

    def reorder(self, rows: Tensor) -> TinyCache:
        return TinyCache(self.memory, self.hidden[rows])

    def select(self, utterances: Tensor) -> TinyCache:
        hidden = self.hidden.view(self.memory.size(0), -1, self.hidden.size(1))[utterances]
        return TinyCache(self.memory[utterances], hidden.flatten(0, 1))


class TinyDecoder(nn.Module):
    """A recurrent decoder in float64 with the cache interface of the real one."""

    def __init__(self, vocab_size: int, size: int = 8, sharpness: float = 3.0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, size)
        self.cell = nn.GRUCell(2 * size, size)
        self.output = nn.Linear(size, vocab_size)
        self.double()
        with torch.no_grad():
            self.output.weight.mul_(sharpness)
            self.cell.weight_ih.mul_(2)

    def init_cache(self, memory: Tensor, memory_lens: Tensor) -> TinyCache:
        inside = (torch.arange(memory.size(1)) < memory_lens[:, None])[:, :, None]
        mean = (memory * inside).sum(1) / memory_lens[:, None]
        return TinyCache(mean, torch.zeros_like(mean))

    def step(self, previous: Tensor, cache: TinyCache) -> tuple[Tensor, TinyCache]:
        width = previous.numel() // cache.memory.size(0)
        memory = cache.memory.repeat_interleave(width, 0)
        hidden = self.cell(torch.cat([self.embedding(previous), memory], 1), cache.hidden)
        return self.output(hidden).log_softmax(1), TinyCache(cache.memory, hidden)


def decoder_score(decoder: TinyDecoder, memory: Tensor, prefix: tuple[int, ...], sos: int) -> list[float]:
    """Log-probabilities of the label after *prefix*, from the beginning."""
    cache = decoder.init_cache(memory[None], torch.tensor([memory.size(0)]))
    for token in (sos, *prefix):
        scores, cache = decoder.step(torch.tensor([token]), cache)
    return scores[0].tolist()


def search(
    memory: Tensor,
    log_probs: Tensor,
    decoder: TinyDecoder | None,
    *,
    beam: int,
    ctc_weight: float,
    length_bonus: float = 0.0,
    pre_beam_ratio: float = 1.5,
    maxlenratio: float = 0.0,
    detect: bool = True,
) -> list[tuple[list[int], float, float, float]]:
    """ESPnet's beam search of one utterance, to its own end: all finished (labels, score, att, ctc), best first.

    ``detect=False`` goes on where end detection would stop.
    """
    x, frames = log_probs.tolist(), log_probs.size(0)
    vocabulary = len(x[0])
    eos, blank = vocabulary - 1, 0
    maxlen = frames if maxlenratio == 0 else max(1, int(maxlenratio * frames))
    running = [((), 0.0, 0.0, 0.0)]
    ended: list[tuple[list[int], float, float, float]] = []
    length_of = []
    with torch.no_grad():
        for step in range(maxlen):
            best = []
            for prefix, score, att, ctc in running:
                labels = list(range(1, vocabulary))
                following = [0.0] * vocabulary
                if ctc_weight < 1:
                    following = decoder_score(decoder, memory, prefix, eos)
                    if ctc_weight > 0 and int(pre_beam_ratio * beam) < vocabulary:
                        top = sorted(range(vocabulary), key=lambda c: -following[c])[: int(pre_beam_ratio * beam)]
                        labels = sorted({*top, eos} - {blank})
                for c in labels:
                    after_ctc = ctc
                    if ctc_weight > 0:
                        after_ctc = max(
                            LOG_ZERO, ctc_prefix(x, prefix)[1] if c == eos else ctc_prefix(x, (*prefix, c))[0]
                        )
                    gain = (1 - ctc_weight) * following[c] + ctc_weight * (after_ctc - ctc) + length_bonus
                    best.append(((*prefix, c), score + gain, att + following[c], after_ctc))
            best = sorted(best, key=lambda h: -h[1])[:beam]
            running = []
            for prefix, score, att, ctc in best:
                if prefix[-1] == eos or step == maxlen - 1:
                    ended.append(([c for c in prefix if c != eos], score, att, ctc))
                    length_of.append(step + 2)
                else:
                    running.append((prefix, score, att, ctc))
            if not running or (detect and maxlenratio == 0 and end_detect([h[1] for h in ended], length_of, step)):
                break
    return sorted(ended, key=lambda h: -h[1])


def end_detect(scores: list[float], lengths: list[int], step: int) -> bool:
    """ESPnet's end_detect; a length counts sos and eos."""
    count = 0
    for back in range(3):
        same = [score for score, length in zip(scores, lengths, strict=True) if length == step - back]
        if same and max(same) - max(scores) < -10:
            count += 1
    return count == 3
