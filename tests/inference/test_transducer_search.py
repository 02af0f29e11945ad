"""Transducer searches against all alignments, and independence of the batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from espnet3.inference.search.transducer import TransducerBeam, TransducerGreedy
from espnet3.models.transducer import Joiner, Predictor


class Toy(torch.nn.Module):
    """Predictor and joiner with random weights over a vocabulary of 4."""

    blank = 0

    def __init__(self, seed: int, vocab: int = 4):
        super().__init__()
        torch.manual_seed(seed)
        self.predictor = Predictor(vocab, 8, 2)
        self.joiner = Joiner(6, 8, 12, vocab)
        for parameter in self.parameters():
            parameter.data.mul_(3.0)


def all_sequences(model: Toy, memory: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Log-probability of every label sequence: the sum over alignments with at most one label a frame."""
    found: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for path in itertools.product(range(4), repeat=memory.size(0)):
        score, labels = torch.zeros((), dtype=torch.float64), []
        for frame, symbol in enumerate(path):
            context = torch.tensor([[0, 0, *labels][-2:]])
            predicted = model.joiner.predicted(model.predictor(context))[0, 0]
            logits = model.joiner(model.joiner.memory(memory[frame]), predicted)
            score = score + logits.double().log_softmax(-1)[symbol]
            labels = labels + [symbol] * (symbol != 0)
        found.setdefault(tuple(labels), []).append(score)
    return {labels: float(torch.logsumexp(torch.stack(scores), 0)) for labels, scores in found.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_finds_the_exact_scores_of_all_sequences(seed):
    model, memory = Toy(seed).eval(), torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = all_sequences(model, memory[0])
        nbest = TransducerBeam(model, beam=400, nbest=400)(memory, torch.tensor([4]))[0]
    assert {tuple(hypothesis.tokens): pytest.approx(hypothesis.score, abs=1e-5) for hypothesis in nbest} == expected
    assert [h.score for h in nbest] == sorted((h.score for h in nbest), reverse=True)


def test_results_do_not_depend_on_the_batch():
    model, lengths = Toy(3).eval(), torch.tensor([7, 30, 1, 18])
    memory = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(5))
    for search in (TransducerGreedy(model), TransducerBeam(model, beam=3, nbest=2, length_bonus=0.2)):
        together = search(memory, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = search(memory[i : i + 1, :n], lengths[i : i + 1])[0]
            assert [h.tokens for h in alone] == [h.tokens for h in together[i]]
            assert [h.score for h in alone] == pytest.approx([h.score for h in together[i]], abs=1e-5)


def test_greedy_stops_where_the_model_would_emit_for_ever():
    model = Toy(0).eval()
    model.joiner.output.bias.data = torch.tensor([-50.0, 0.0, 0.0, 0.0])
    found = TransducerGreedy(model, max_symbols=3)(torch.zeros(1, 4, 6), torch.tensor([4]))[0][0]
    assert len(found.tokens) == 12
