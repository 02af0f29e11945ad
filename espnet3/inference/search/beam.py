"""Beam search over labels, for a batch of utterances at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet3.inference.search.ctc_prefix import LOG_ZERO
from espnet3.inference.search.ended import Ended
from espnet3.inference.search.hypothesis import Hypothesis
from espnet3.inference.search.scorer import Scorer

INF = float("inf")


@dataclass
class _Rows:
    """The live prefixes, those of an utterance side by side, utterances in ascending order."""

    owner: Tensor
    tokens: Tensor
    total: Tensor
    parts: dict[str, Tensor]


class BeamSearch:
    """ESPnet's label-synchronous beam search, batched over utterances without a change in the result.

    The score of a hypothesis is the weighted sum of its scorers' log-probabilities plus ``length_bonus`` for each label
    and eos. Each step keeps the ``beam`` best prolongations of an utterance's live prefixes; one that takes eos is
    finished. An utterance stops when its n best are final (no live prefix can overtake them: exact), at ESPnet's end
    detection, or at ``maxlenratio``; it then leaves the batch.

    As in ESPnet, the partial scorers (CTC) see the ``pre_beam_ratio * beam`` best labels of the others only. Unlike
    there, ``minlenratio`` forbids eos before that length (ESPnet drops what ended too early).

    Args:
        scorers: by name; those of weight 0 are never called.
        weights: by the same names, not negative.
        eos: id of sos/eos.
        blank: id of blank, which no hypothesis contains.
        pre_beam_ratio: 0 lets the partial scorers see the whole vocabulary.
        maxlenratio: labels for each encoder frame; 0: as many as frames, with end detection; negative: a constant.
        minlenratio: likewise.
        nbest: hypotheses to return; the more, the later the exact stop.
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
    ):
        self.scorers = {name: scorer for name, scorer in scorers.items() if weights[name] > 0}
        if not self.scorers:
            raise ValueError("a beam search needs a scorer whose weight is above 0")
        self.weights, self.eos, self.blank, self.beam, self.nbest = weights, eos, blank, beam, nbest
        self.length_bonus, self.maxlenratio, self.minlenratio = length_bonus, maxlenratio, minlenratio
        self.full = {name: s for name, s in self.scorers.items() if not s.partial}
        self.partial = {name: s for name, s in self.scorers.items() if s.partial}
        # what a scorer holds impossible scores LOG_ZERO times its weight
        self.impossible = LOG_ZERO / 2 * min(weights[name] for name in self.scorers)
        self.pre_beam = int(pre_beam_ratio * beam) if self.full and self.partial else 0

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """The n best hypotheses of each utterance, best first.

        Args:
            encoded: (B, T, D) encoder output.
            lengths: (B,) frames.
        """
        lengths = lengths.to(encoded.device)
        frames = lengths.tolist()
        ended = [Ended(_ratio(self.maxlenratio, n) or n, self.nbest, self.maxlenratio == 0) for n in frames]
        minlen = torch.tensor([_ratio(self.minlenratio, n) for n in frames], device=encoded.device)
        # an input too short for a single frame has one hypothesis, the empty one
        stored = [i for i, n in enumerate(frames) if n > 0]
        results: list[list[Hypothesis]] = [[Hypothesis([], 0.0)] for _ in frames]
        if not stored:
            return results
        if len(stored) < len(frames):
            encoded, lengths = encoded[stored], lengths[stored]
        owner = torch.tensor(stored, device=encoded.device)
        zero = torch.zeros(len(stored), dtype=torch.float64, device=encoded.device)
        rows = _Rows(owner, owner.new_empty(len(stored), 0), zero, dict.fromkeys(self.scorers, zero))
        states = {name: scorer.start(encoded, lengths) for name, scorer in self.scorers.items()}

        step = 0
        while rows.owner.numel():
            rows, states = self._step(step, rows, states, ended, minlen)
            step += 1
            live = rows.owner.unique_consecutive().tolist()
            if live and len(live) <= 0.75 * len(stored):
                keep = torch.tensor([stored.index(i) for i in live], device=encoded.device)
                longest = max(frames[i] for i in live)
                states = {name: s.compact(states[name], keep, longest) for name, s in self.scorers.items()}
                stored = live
        for i, utterance in enumerate(ended):
            if frames[i] > 0:
                results[i] = utterance.best(self.impossible)
        return results

    def _step(self, step: int, rows: _Rows, states: dict, ended: list[Ended], minlen: Tensor):
        scores, candidates = self._score(step, rows, states, minlen)
        total = sum(self.weights[name] * value for name, value in scores.items())
        total = total + (rows.total + self.length_bonus)[:, None]
        if candidates is None:
            total[:, self.blank] = -INF
        else:
            total.masked_fill_(candidates == self.blank, -INF)

        parent, column = self._select(rows.owner, total)
        token = column if candidates is None else candidates[parent, column]
        rows = _Rows(
            owner=rows.owner[parent],
            tokens=torch.cat([rows.tokens[parent], token[:, None]], 1),
            total=total[parent, column],
            parts={name: rows.parts[name][parent] + value[parent, column] for name, value in scores.items()},
        )
        alive = self._retire(step, rows, ended)
        rows = _Rows(
            rows.owner[alive], rows.tokens[alive], rows.total[alive], {name: v[alive] for name, v in rows.parts.items()}
        )
        if alive.numel():
            states = {n: s.advance(states[n], parent[alive], token[alive]) for n, s in self.scorers.items()}
        return rows, states

    def _score(self, step: int, rows: _Rows, states: dict, minlen: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Each scorer's (N, K) scores of the same candidates, (N, K) label ids; None: the whole vocabulary."""
        scores = {name: scorer.score(states[name]).double() for name, scorer in self.full.items()}
        early = (step < minlen)[rows.owner]
        candidates = None
        if self.full and self.pre_beam:
            guide = sum(self.weights[name] * value for name, value in scores.items())
            if self.pre_beam < guide.size(1):
                candidates = guide.topk(self.pre_beam, 1).indices
                # eos always competes, once
                eos = torch.full_like(candidates[:, :1], self.eos)
                candidates = torch.cat([candidates.masked_fill(candidates == self.eos, self.blank), eos], 1)
                scores = {name: value.gather(1, candidates) for name, value in scores.items()}
        for name, scorer in self.partial.items():
            scores[name] = scorer.score(states[name], candidates).double()
        if bool(early.any()):
            name = next(iter(scores))
            column = self.eos if candidates is None else -1
            scores[name] = scores[name].clone()
            scores[name][early, column] = -INF
        return scores, candidates

    def _select(self, owner: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """(row, column) of the best prolongations of each utterance, utterances in order, best first within one."""
        utterances, group, count = owner.unique_consecutive(return_inverse=True, return_counts=True)
        first = count.cumsum(0) - count
        slot = torch.arange(owner.numel(), device=owner.device) - first[group]
        width = total.size(1)
        grid = total.new_full((utterances.numel(), int(count.max()), width), -INF)
        grid[group, slot] = total
        best, place = grid.flatten(1).topk(min(self.beam, grid.size(1) * width), 1)
        possible = best > -INF
        row = (first[:, None] + place // width)[possible]
        return row, (place % width)[possible]

    def _retire(self, step: int, rows: _Rows, ended: list[Ended]) -> Tensor:
        """File what has ended; the indices of the rows that go on."""
        owners, totals, last = rows.owner.tolist(), rows.total.tolist(), rows.tokens[:, -1].tolist()
        closing = [i for i, owner in enumerate(owners) if last[i] == self.eos or step + 1 >= ended[owner].maxlen]
        bound: dict[int, float] = {}
        if closing:
            index = torch.tensor(closing, device=rows.owner.device)
            parts = {name: value[index].tolist() for name, value in rows.parts.items()}
            for n, (i, tokens) in enumerate(zip(closing, rows.tokens[index].tolist(), strict=True)):
                scores = {name: value[n] for name, value in parts.items()} | {"length": float(len(tokens))}
                labels = tokens[:-1] if last[i] == self.eos else tokens
                ended[owners[i]].add(step, Hypothesis(labels, totals[i], scores))
        gone = set(closing)
        for i, owner in enumerate(owners):
            if i not in gone:
                more = max(0.0, self.length_bonus) * (ended[owner].maxlen - step)
                bound[owner] = max(bound.get(owner, -INF), totals[i] + more)
        stop = {owner for owner in set(owners) if ended[owner].finished(step, bound.get(owner))}
        alive = [i for i, owner in enumerate(owners) if i not in gone and owner not in stop]
        return torch.tensor(alive, dtype=torch.long, device=rows.owner.device)


def _ratio(ratio: float, frames: int) -> int:
    """ESPnet's reading: a share of the frames (at least 1), or a constant where negative; 0 where 0."""
    if ratio == 0:
        return 0
    return int(-ratio) if ratio < 0 else max(1, int(ratio * frames))
