"""The loop-free CTC prefix score equals the recursion that defines it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_search import LOG_ZERO, ctc_prefix

from espnet3.inference.search import CTCPrefixScorer


def random_posteriors(generator, frames, vocabulary, sharpness):
    logits = torch.randn(frames, vocabulary, generator=generator, dtype=torch.float64) * sharpness
    return logits.log_softmax(1)


def follow(scorer, posteriors, prefixes, candidates=None):
    """Scores of each next label after each utterance's prefix, cumulated, labels fed one at a time."""
    lengths = torch.tensor([len(p) for p in posteriors])
    batch = torch.nn.utils.rnn.pad_sequence(posteriors, batch_first=True, padding_value=math.nan)
    state = scorer.start(batch, lengths, 1)
    rows = torch.arange(len(posteriors))
    total = torch.zeros(len(posteriors), dtype=torch.float64)
    for labels in zip(*prefixes, strict=True):
        tokens = torch.tensor(labels)
        total = total + scorer.score(state)[rows, tokens]
        state = scorer.advance(state, rows, tokens)
    return total[:, None] + scorer.score(state, candidates)


def assert_equals_recursion(posteriors, prefixes, tolerance, dtype=torch.float64, labels=None):
    vocabulary = posteriors[0].size(1)
    scores = follow(CTCPrefixScorer(lambda x: x, eos=vocabulary - 1, dtype=dtype), posteriors, prefixes)
    for row, (x, prefix) in enumerate(zip(posteriors, prefixes, strict=True)):
        table = x.tolist()
        ending = max(LOG_ZERO, ctc_prefix(table, prefix)[1])
        assert scores[row, vocabulary - 1].item() == pytest.approx(ending, abs=tolerance)
        for label in labels or range(1, vocabulary - 1):
            expected = max(LOG_ZERO, ctc_prefix(table, (*prefix, label))[0])
            assert scores[row, label].item() == pytest.approx(expected, abs=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_prefixes_with_repeats(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    vocabulary = data.draw(st.integers(3, 7))
    length = data.draw(st.integers(0, 6))
    utterances = data.draw(st.integers(1, 4))
    posteriors, prefixes = [], []
    for _ in range(utterances):
        # few frames, and so many that sums go by blocks
        frames = data.draw(st.integers(1, 25) | st.integers(33, 70))
        posteriors.append(random_posteriors(generator, frames, vocabulary, data.draw(st.sampled_from([0.1, 1.0, 5.0]))))
        # few labels, so that repeats are common; some prefixes need more frames than there are
        prefixes.append(tuple(torch.randint(1, min(vocabulary, 4) - 1 or 2, (length,), generator=generator).tolist()))
    assert_equals_recursion(posteriors, prefixes, 1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_long_inputs(dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    posteriors = [random_posteriors(generator, frames, 6, 3.0) for frames in (3000, 1111)]
    prefix = tuple(torch.randint(1, 5, (16,), generator=generator).tolist())
    assert_equals_recursion(posteriors, [prefix, prefix[::-1]], tolerance, dtype, labels=[1, 2, prefix[-1], prefix[0]])


def test_a_label_whose_mass_underflows():
    """Labels that are nearly impossible wherever the prefix can end still get their exact score."""
    frames, vocabulary = 60, 4
    x = torch.full((frames, vocabulary), -900.0, dtype=torch.float64)
    x[:, 0] = -0.1
    x[5, 1], x[50, 2] = -0.2, -0.3
    x[6:, 0] -= 30.0
    assert_equals_recursion([x], [(1,)], 1e-9)


def test_candidates_and_compaction_change_nothing():
    generator = torch.Generator().manual_seed(3)
    vocabulary = 90
    posteriors = [random_posteriors(generator, frames, vocabulary, 2.0) for frames in (30, 12, 25)]
    scorer = CTCPrefixScorer(lambda x: x, eos=vocabulary - 1)
    prefixes = [(4, 4, 7), (5, 6, 5), (8, 8, 8)]
    everything = follow(scorer, posteriors, prefixes)
    candidates = torch.tensor([[7, 2, 89], [5, 1, 89], [8, 88, 89]])
    torch.testing.assert_close(follow(scorer, posteriors, prefixes, candidates), everything.gather(1, candidates))

    lengths = torch.tensor([30, 12, 25])
    state = scorer.start(torch.nn.utils.rnn.pad_sequence(posteriors, batch_first=True), lengths, 2)
    first = scorer.score(state)
    assert first.shape == (6, vocabulary)
    state = scorer.advance(state, torch.tensor([1, 0, 2, 3, 4, 4]), torch.tensor([5, 8, 9, 5, 8, 8]))
    before = scorer.score(state)
    smaller = scorer.select(state, torch.tensor([1, 2]), 25)
    torch.testing.assert_close(scorer.score(smaller), before[2:])


def test_utterances_that_take_a_place_change_nothing():
    generator = torch.Generator().manual_seed(4)
    posteriors = [random_posteriors(generator, frames, 9, 2.0) for frames in (20, 33, 12)]
    scorer = CTCPrefixScorer(lambda x: x, eos=8)

    def start(*numbers):
        lengths = torch.tensor([len(posteriors[n]) for n in numbers])
        padded = torch.nn.utils.rnn.pad_sequence([posteriors[n] for n in numbers], batch_first=True)
        return scorer.start(padded, lengths, 2)

    def follow(state, *steps):
        for rows, tokens in steps:
            scorer.score(state)
            state = scorer.advance(state, torch.tensor(rows), torch.tensor(tokens))
        return state

    both = follow(start(0, 1), ([0, 1, 2, 3], [3, 4, 5, 6]))
    both = scorer.replace(both, torch.tensor([1]), start(2), 20)
    both = follow(both, ([0, 0, 2, 2], [3, 5, 4, 4]))
    both = scorer.replace(both, torch.tensor([0]), start(1), 33)
    expected = [follow(start(1)), follow(start(2), ([0, 0], [4, 4]))]
    torch.testing.assert_close(scorer.score(both), torch.cat([scorer.score(state) for state in expected]))
