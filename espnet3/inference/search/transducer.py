"""Transducer decoding: greedy and beam, frame by frame, batched over utterances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espnet3.inference.search.hypothesis import Hypothesis

_PRIME = 0x100000001B3
_NEVER = -float("inf")


class TransducerGreedy:
    """The best symbol at each point of the lattice; a blank goes on to the next frame.

    Args:
        model: with ``predictor``, ``joiner`` and ``blank``, as :class:`espnet3.models.transducer.TransducerModel`.
        max_symbols: labels within one frame; what would go on for ever goes on to the next frame.
    """

    def __init__(self, model: Any, max_symbols: int = 5):
        self.model, self.max_symbols = model, max_symbols

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Encoder output (B, T, D), lengths (B,) -> one hypothesis for each utterance."""
        model = self.model
        memory = model.joiner.memory(encoded)
        batch, lengths = encoded.size(0), lengths.to(encoded.device)
        rows = torch.arange(batch, device=encoded.device)
        context = torch.full((batch, model.predictor.context), model.blank, device=encoded.device)
        predicted = model.joiner.predicted(model.predictor(context))[:, 0]
        frame, here = torch.zeros_like(lengths), torch.zeros_like(lengths)
        score = torch.zeros(batch, dtype=torch.float64, device=encoded.device)
        emitted: list[Tensor] = []
        while bool((live := frame < lengths).any()):
            logits = model.joiner(memory[rows, frame.clamp(max=memory.size(1) - 1)], predicted)
            best, symbol = logits.float().log_softmax(-1).max(-1)
            onward = (symbol == model.blank) | (here >= self.max_symbols)
            score += torch.where(live & ((symbol == model.blank) | ~onward), best.double(), 0.0)
            label = live & ~onward
            emitted.append(torch.where(label, symbol, -1))
            context = torch.where(label[:, None], torch.cat([context[:, 1:], symbol[:, None]], 1), context)
            predicted = model.joiner.predicted(model.predictor(context))[:, 0]
            frame = frame + (live & onward)
            here = torch.where(onward, 0, here + 1)
        paths = torch.stack(emitted, 1).tolist() if emitted else [[]] * batch
        return [
            [Hypothesis([x for x in path if x >= 0], value, {"rnnt": value})]
            for path, value in zip(paths, score.tolist(), strict=True)
        ]


class TransducerBeam:
    """Beam search with at most one label a frame; hypotheses of equal labels are merged.

    Merging adds the probabilities of alignments, so that a score is that of a label sequence (as far as the beam holds its
    alignments), not of one path. Best of two readings of a sequence: it is found by its running hash.

    Args:
        model: as of :class:`TransducerGreedy`.
        beam: hypotheses of an utterance. nbest: of them returned. length_bonus: added for each label.
    """

    def __init__(self, model: Any, beam: int = 4, nbest: int = 1, length_bonus: float = 0.0):
        self.model, self.beam, self.nbest, self.length_bonus = model, beam, min(nbest, beam), length_bonus

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Encoder output (B, T, D), lengths (B,) -> the n best of each utterance, best first."""
        model, beam = self.model, self.beam
        memory = model.joiner.memory(encoded)
        batch, device = encoded.size(0), encoded.device
        lengths = lengths.to(device)
        total = torch.full((batch, beam), _NEVER, dtype=torch.float64, device=device)
        total[:, 0] = 0.0
        context = torch.full((batch, beam, model.predictor.context), model.blank, device=device)
        # one running hash a label sequence, and that of the sequence without its last label
        nobody = -1 - torch.arange(beam, device=device).repeat(batch, 1)
        name = torch.where(total > _NEVER, 0, nobody)
        before = torch.full_like(name, -1 << 40)
        backs: list[tuple[Tensor, Tensor]] = []
        for frame in range(int(lengths.max())):
            predicted = model.joiner.predicted(model.predictor(context.flatten(0, 1)))[:, 0].view(batch, beam, -1)
            log_probs = model.joiner(memory[:, frame, None], predicted).double().log_softmax(-1)
            scores = total.unsqueeze(2) + log_probs
            if self.length_bonus:
                scores += self.length_bonus
                scores[:, :, model.blank] -= self.length_bonus
            self._merge(scores, name, before, context)
            best, index = scores.flatten(1).topk(beam, dim=1)
            parent, symbol = index // log_probs.size(2), index % log_probs.size(2)
            # an utterance past its end keeps what it has
            live = (frame < lengths)[:, None]
            parent = torch.where(live, parent, torch.arange(beam, device=device))
            symbol = torch.where(live, symbol, model.blank)
            total = torch.where(live, best, total)
            backs.append((parent, symbol))
            label = symbol != model.blank
            name, before = name.gather(1, parent), before.gather(1, parent)
            before = torch.where(label, name, before)
            name = torch.where(label, name * _PRIME + symbol + 1, name)
            # where there are fewer hypotheses than slots, the empty ones must meet no other
            name, before = torch.where(total > _NEVER, name, nobody), torch.where(total > _NEVER, before, -1 << 40)
            context = context.gather(1, parent.unsqueeze(2).expand_as(context))
            longer = torch.cat([context[:, :, 1:], symbol.unsqueeze(2)], 2)
            context = torch.where(label.unsqueeze(2), longer, context)
        return self._trace(backs, total)

    def _merge(self, scores: Tensor, name: Tensor, before: Tensor, context: Tensor) -> None:
        """Where hypothesis k with a further label is what hypothesis j is already, add k's part to j's blank."""
        last = context[:, :, -1]
        # same[b, j, k]: j is k and its own last label
        same = before.unsqueeze(2) == name.unsqueeze(1)
        into = scores.gather(2, last.unsqueeze(1).expand(-1, self.beam, -1)).transpose(1, 2)
        part = torch.where(same, into, _NEVER).logsumexp(2)
        blank = scores[:, :, self.model.blank]
        scores[:, :, self.model.blank] = torch.logaddexp(blank, part)
        taken = torch.zeros_like(scores, dtype=torch.uint8)
        index = last.unsqueeze(1).expand(-1, self.beam, -1)
        taken.scatter_reduce_(2, index, same.transpose(1, 2).to(torch.uint8), "amax")
        scores.masked_fill_(taken.bool(), _NEVER)

    def _trace(self, backs: list[tuple[Tensor, Tensor]], total: Tensor) -> list[list[Hypothesis]]:
        order = total.argsort(1, descending=True)[:, : self.nbest]
        at, steps = order, []
        for parent, symbol in reversed(backs):
            steps.append(symbol.gather(1, at))
            at = parent.gather(1, at)
        paths = torch.stack(steps[::-1], 2).tolist() if steps else [[[]] * order.size(1)] * order.size(0)
        values = total.gather(1, order).tolist()
        return [
            [
                self._hypothesis([x for x in path if x != self.model.blank], value)
                for path, value in zip(row, scores, strict=True)
                if value > _NEVER
            ]
            for row, scores in zip(paths, values, strict=True)
        ]

    def _hypothesis(self, tokens: list[int], score: float) -> Hypothesis:
        return Hypothesis(tokens, score, {"rnnt": score - self.length_bonus * len(tokens)})
