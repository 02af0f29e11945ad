"""Beam search over labels, for a batch of utterances at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet3.inference.scorers.base import Scorer
from espnet3.inference.search.ctc_prefix import LOG_ZERO
from espnet3.inference.search.ended import Ended
from espnet3.inference.search.history import History
from espnet3.inference.search.hypothesis import Hypothesis

INF = float("inf")
# prefixes of an utterance in the first pass of a search for the one best, and the nats by which its result must beat
# what it dropped: more than rounding can shift a score
NARROW = 2
CLEAR = 1e-3


@dataclass
class _Batch:
    """The utterances that are searched now.

    Attributes:
        ids: of each stored utterance, its index in the whole.
        live: (B,) those that go on; the others wait for being dropped.
        begin: (B,) the step at which each began.
        lost: (B,) the best score of all prefixes that found no place in the beam.
        total: (B, width) scores of the prefixes; minus infinity where one is dead.
        states: of each scorer.
    """

    ids: np.ndarray
    live: np.ndarray
    begin: np.ndarray
    lost: np.ndarray
    total: Tensor
    states: dict[str, Any]


class BeamSearch:
    """ESPnet's label-synchronous beam search, batched over utterances without a change in the result.

    The score of a hypothesis is the weighted sum of its scorers' log-probabilities plus ``length_bonus`` for each label
    and eos. Each step keeps the ``beam`` best prolongations of an utterance's live prefixes; one that takes eos is
    finished. An utterance stops when its n best are final (no live prefix can overtake them: exact), at ESPnet's end
    detection, or at ``maxlenratio``; it then leaves the batch, and a waiting one takes its place.

    No prolongation raises a score. So where the one best is asked for, a beam of two comes first: a hypothesis that scores
    above every prefix that was ever dropped is what any wider beam finds, too (monotonic scores as in Meister et al.,
    "Best-First Beam Search", TACL 2020). What is not settled so is searched again with the whole beam. End detection is the
    one thing that could have stopped a wide search short of that hypothesis.

    As in ESPnet, the partial scorers (CTC) see the ``pre_beam_ratio * beam`` best labels of the others only. Unlike
    there, ``minlenratio`` forbids eos before that length (ESPnet drops what ended too early).

    Args:
        scorers: by name; those of weight 0 are never called.
        weights: by the same names, not negative.
        eos: id of sos/eos.
        blank: id of blank, which no hypothesis contains.
        length_bonus: for each label and eos, in nats; a penalty where negative.
        pre_beam_ratio: 0 lets the partial scorers see the whole vocabulary.
        maxlenratio: labels for each encoder frame; 0: as many as frames, with end detection; negative: a constant.
        minlenratio: likewise; 0: none.
        nbest: hypotheses to return; the more, the later the exact stop.
        slots: utterances that are searched at once; 0: all.
    """

    def __init__(
        self,
        scorers: dict[str, Scorer],
        weights: dict[str, float],
        *,
        eos: int,
        beam: int = 10,
        blank: int = 0,
        length_bonus: float = 0.0,
        pre_beam_ratio: float = 1.5,
        maxlenratio: float = 0.0,
        minlenratio: float = 0.0,
        nbest: int = 1,
        slots: int = 0,
    ):
        self.scorers = {name: scorer for name, scorer in scorers.items() if weights[name] > 0}
        if not self.scorers:
            raise ValueError("a beam search needs a scorer whose weight is above 0")
        self.weights, self.eos, self.blank, self.beam, self.nbest = weights, eos, blank, beam, nbest
        self.length_bonus, self.maxlenratio, self.minlenratio, self.slots = (
            length_bonus,
            maxlenratio,
            minlenratio,
            slots,
        )
        self.full = {name: s for name, s in self.scorers.items() if not s.partial}
        self.partial = {name: s for name, s in self.scorers.items() if s.partial}
        self.replaces = all(scorer.replaces for scorer in self.scorers.values())
        # what a scorer holds impossible scores LOG_ZERO times its weight
        self.impossible = LOG_ZERO / 2 * min(weights[name] for name in self.scorers)
        self.pre_beam = int(pre_beam_ratio * beam) if self.full and self.partial else 0
        self.widths = (NARROW, beam) if nbest == 1 and beam > NARROW and length_bonus <= 0 else (beam,)

    @torch.inference_mode()
    def __call__(self, encoded: Tensor | Sequence[Tensor], lengths: Tensor) -> list[list[Hypothesis]]:
        """The n best hypotheses of each utterance, best first.

        Args:
            encoded: (B, T, D) encoder output, or a sequence of B tensors (at least lengths[b] frames, D).
            lengths: (B,) frames.
        """
        frames = lengths.tolist()
        self._frames = np.array(frames)
        # an input too short for a single frame has one hypothesis, the empty one
        results: list[list[Hypothesis]] = [[Hypothesis([], 0.0)] for _ in frames]
        left = [i for i, n in enumerate(frames) if n > 0]
        # on a GPU a step of few prefixes takes as long as one of many
        on_cpu = all(x.device.type == "cpu" for x in encoded[:1])
        for width in self.widths if on_cpu else self.widths[-1:]:
            left = self._pass(width, left, encoded, results)
        return results

    def _pass(self, width: int, waiting: list[int], encoded, results: list[list[Hypothesis]]) -> list[int]:
        """Search the *waiting* utterances with a beam of *width*; those whose result a wider one might change."""
        self._width = width
        frames = self._frames.tolist()
        ended = [Ended(_maxlen(self.maxlenratio, n), self.nbest, self.maxlenratio == 0) for n in frames]
        maxlen = np.array([e.maxlen for e in ended])
        minlen = np.array([_minlen(self.minlenratio, n) for n in frames])
        slots = self.slots or len(waiting)
        if len(waiting) > slots:
            # neighbours of like length waste the least
            waiting.sort(key=lambda i: -frames[i])
        history = History(self.eos, [*self.full, *self.partial])
        unsettled = []
        batch = None
        step = 0
        while waiting or batch is not None:
            batch = self._refill(batch, waiting, slots, step, encoded, history)
            if batch is None:
                break
            chosen = self._step(step, batch, ended, maxlen, minlen, history)
            for slot in np.flatnonzero(self._finished(step, batch, ended)):
                batch.live[slot] = False
                utterance = int(batch.ids[slot])
                best = ended[utterance].best(self.impossible)
                if width < self.beam and not (best and self._settles(batch, slot, best[0][0])):
                    unsettled.append(utterance)
                    continue
                results[utterance] = [history.hypothesis(*entry) for entry in best] or [
                    Hypothesis([], 2 * self.impossible)
                ]
            step += 1
            if batch.live.any():
                batch.states = {n: s.advance(batch.states[n], *chosen) for n, s in self.scorers.items()}
        return sorted(unsettled)

    def _settles(self, batch: _Batch, slot: int, score: float) -> bool:
        """Whether a hypothesis of this score is above whatever a wider beam could have kept."""
        return score > self.impossible and score - max(batch.lost[slot], self._bound[slot]) > CLEAR

    def _refill(self, batch, waiting: list[int], slots: int, step: int, encoded, history: History):
        """Let in what waits, or drop what is done, where enough is done to be worth the copies."""
        if batch is None or not batch.live.any():
            if not waiting:
                return None
            batch = self._start(waiting[:slots], step, encoded)
            del waiting[:slots]
        else:
            done = np.flatnonzero(~batch.live)
            if waiting and self.replaces:
                if done.size < max(1, slots // 8):
                    return batch
                done = done[: len(waiting)]
                self._replace(batch, done, self._start(waiting[: done.size], step, encoded))
                del waiting[: done.size]
            elif done.size >= 0.25 * batch.live.size:
                batch = self._keep(batch, np.flatnonzero(batch.live))
            else:
                return batch
        history.place(batch.ids, int(batch.begin[batch.live].min()))
        return batch

    def _start(self, ids: list[int], step: int, encoded: Tensor | Sequence[Tensor]) -> _Batch:
        longest = max(self._frames[i] for i in ids)
        if isinstance(encoded, Tensor):
            memory = encoded[ids][:, :longest]
        else:
            memory = torch.nn.utils.rnn.pad_sequence([encoded[i][: self._frames[i]] for i in ids], batch_first=True)
        some = torch.as_tensor(self._frames[ids], device=memory.device)
        total = torch.full((len(ids), self._width), -INF, dtype=torch.float64, device=memory.device)
        total[:, 0] = 0.0
        states = {name: scorer.start(memory, some, self._width) for name, scorer in self.scorers.items()}
        live, begin, lost = np.ones(len(ids), dtype=bool), np.full(len(ids), step), np.full(len(ids), -INF)
        return _Batch(np.array(ids), live, begin, lost, total, states)

    def _replace(self, batch: _Batch, slots: np.ndarray, fresh: _Batch) -> None:
        index = torch.as_tensor(slots, device=batch.total.device)
        for name in ("ids", "live", "begin", "lost"):
            getattr(batch, name)[slots] = getattr(fresh, name)
        batch.total = batch.total.index_copy(0, index, fresh.total)
        longest = int(self._frames[batch.ids].max())
        batch.states = {n: s.replace(batch.states[n], index, fresh.states[n], longest) for n, s in self.scorers.items()}

    def _keep(self, batch: _Batch, kept: np.ndarray) -> _Batch:
        index = torch.as_tensor(kept, device=batch.total.device)
        longest = int(self._frames[batch.ids[kept]].max())
        return _Batch(
            ids=batch.ids[kept],
            live=batch.live[kept],
            begin=batch.begin[kept],
            lost=batch.lost[kept],
            total=batch.total[index],
            states={n: s.select(batch.states[n], index, longest) for n, s in self.scorers.items()},
        )

    def _step(self, step: int, batch: _Batch, ended: list[Ended], maxlen, minlen, history: History) -> tuple:
        """Choose the best prolongations and file what has ended; (rows, tokens) for the scorers to advance by."""
        at = step - batch.begin
        early = at < minlen[batch.ids]
        scores, total, candidates = self._score(batch, np.flatnonzero(early) if early.any() else None)
        utterances, width = batch.total.shape
        choices = total.size(1)
        total = total.view(utterances, width * choices)
        # one more than has room: the best of what is dropped
        best, place = total.topk(min(width + 1, width * choices), 1)
        parent = place // choices
        if best.size(1) <= width:
            lacking = width + 1 - best.size(1)
            best = torch.nn.functional.pad(best, (0, lacking), value=-INF)
            place, parent = (torch.nn.functional.pad(x, (0, lacking)) for x in (place, parent))
        token = place % choices if candidates is None else candidates.view(utterances, -1).gather(1, place)
        picked = [value.view(utterances, -1).gather(1, place) for value in scores.values()]
        host = _to_host(best, parent, token, *picked)
        batch.lost = np.maximum(batch.lost, host[0][:, width])
        values, parents, tokens, *parts = (array[:, :width] for array in host)
        best, parent, token = (x[:, :width] for x in (best, parent, token))
        history.add(parents, tokens, parts)

        closing = (tokens == self.eos) | (at + 1 >= maxlen[batch.ids])[:, None]
        closing &= (values > -INF) & batch.live[:, None]
        for slot, row in zip(*(x.tolist() for x in closing.nonzero()), strict=True):
            ended[batch.ids[slot]].add(int(at[slot]), float(values[slot, row]), (step, int(batch.ids[slot]), row))
        self._bound = np.where(closing | (tokens == self.eos), -INF, values).max(1)
        batch.total = best.masked_fill(token == self.eos, -INF)
        base = torch.arange(0, utterances * width, width, device=parent.device)[:, None]
        return (parent + base).flatten(), token.flatten()

    def _score(self, batch: _Batch, early: np.ndarray | None) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Each scorer's (N, K) scores of the same labels; the totals, with what is forbidden at minus infinity; the labels'
        ids (N, K), None for the whole vocabulary."""
        scores = {name: scorer.score(batch.states[name]) for name, scorer in self.full.items()}
        total = batch.total.view(-1, 1) + self.length_bonus
        candidates, forbidden = None, None
        if self.full:
            guide = sum(self.weights[name] * value for name, value in scores.items())
            if 0 < self.pre_beam < guide.size(1):
                top = guide.topk(self.pre_beam, 1)
                if 2 * self.pre_beam >= guide.size(1):
                    forbidden = guide < top.values[:, -1:]
                    forbidden[:, self.eos] = False
                else:
                    # eos always competes, once
                    labels = top.indices
                    eos = torch.full_like(labels[:, :1], self.eos)
                    candidates = torch.cat([labels.masked_fill(labels == self.eos, self.blank), eos], 1)
                    scores = {name: value.gather(1, candidates) for name, value in scores.items()}
                    guide = guide.gather(1, candidates)
            total = total + guide
        for name, scorer in self.partial.items():
            scores[name] = scorer.score(batch.states[name], candidates)
            total = total + self.weights[name] * scores[name]
        # a dead row's sum may be anything but a number
        dead = (batch.total == -INF).view(-1, 1)
        total.masked_fill_(dead if forbidden is None else forbidden | dead, -INF)
        if candidates is None:
            total[:, self.blank] = -INF
        else:
            total.masked_fill_(candidates == self.blank, -INF)
        if early is not None:
            column = self.eos if candidates is None else -1
            total.view(*batch.total.shape, -1)[torch.as_tensor(early, device=total.device), :, column] = -INF
        return scores, total, candidates

    def _finished(self, step: int, batch: _Batch, ended: list[Ended]) -> np.ndarray:
        """(B,) whether going on with an utterance cannot change its result."""
        done = np.zeros(batch.ids.size, dtype=bool)
        for slot in np.flatnonzero(batch.live):
            utterance = ended[batch.ids[slot]]
            at = step - int(batch.begin[slot])
            bound = float(self._bound[slot])
            if self.length_bonus > 0:
                bound += self.length_bonus * (utterance.maxlen - at)
            done[slot] = utterance.finished(at, bound if bound > -INF else None)
            if self._width < self.beam:
                # nothing that is alive can settle it any more
                done[slot] |= max(bound, utterance.top) - batch.lost[slot] <= CLEAR
        return done


def _to_host(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors (of one shape) as arrays, in one transfer."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    packed = torch.stack([tensor.double() for tensor in tensors]).cpu().numpy()
    return [
        part if tensor.is_floating_point() else part.astype(np.int64)
        for part, tensor in zip(packed, tensors, strict=True)
    ]


def _maxlen(ratio: float, frames: int) -> int:
    """ESPnet's reading: a share of the frames, a constant where negative, all frames where 0."""
    if ratio == 0:
        return frames
    return int(-ratio) if ratio < 0 else max(1, int(ratio * frames))


def _minlen(ratio: float, frames: int) -> int:
    return int(-ratio) if ratio < 0 else int(ratio * frames)
