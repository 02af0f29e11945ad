"""The batched searches give what a plain search of each utterance alone gives, whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_search import TinyDecoder, ctc_prefix, search

from espnet3.inference.search import BeamSearch, CTCPrefixScorer, DecoderScorer, ctc_greedy
from espnet3.inference.search.build import attention_scorer
from espnet3.models.decoder import TransformerDecoder

SIZE = 8


def task(seed, vocabulary, frames, sharpness=2.0, transformer=False):
    """A random decoder, encoder outputs of the given lengths, and a CTC layer."""
    torch.manual_seed(seed)
    decoder = TinyDecoder(vocabulary, SIZE)
    if transformer:
        decoder = TransformerDecoder(SIZE, 2, 16, 2, vocab_size=vocabulary).double().eval()
        with torch.no_grad():
            decoder.output.weight.mul_(6)
    layer = torch.nn.Linear(SIZE, vocabulary).double()
    with torch.no_grad():
        layer.weight.mul_(sharpness * 2)
        # a share of blanks and a chance to end, as trained models have
        layer.bias[0] += 1.5
        layer.bias[-1] -= 4.0
        decoder.output.bias[-1] += 1.0
    encoded = [torch.randn(n, SIZE, dtype=torch.float64) for n in frames]
    return decoder, lambda x: layer(x).log_softmax(-1), encoded


def batched(decoder, log_softmax, encoded, *, ctc_weight, batch, padding=0, order=None, **options):
    vocabulary = log_softmax(encoded[0]).size(-1)
    scorers = {
        "ctc": CTCPrefixScorer(log_softmax, eos=vocabulary - 1),
        "att": attention_scorer(decoder, sos=vocabulary - 1),
    }
    run = BeamSearch(scorers, {"ctc": ctc_weight, "att": 1 - ctc_weight}, eos=vocabulary - 1, **options)
    order = order or list(range(len(encoded)))
    results = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        padded = torch.nn.utils.rnn.pad_sequence([encoded[i] for i in part], batch_first=True)
        padded = torch.nn.functional.pad(padded, (0, 0, 0, padding))
        lengths = torch.tensor([len(encoded[i]) for i in part])
        results.update(zip(part, run(padded, lengths), strict=True))
    return [results[i] for i in range(len(encoded))]


def assert_same(found, expected, tolerance=1e-9):
    assert [h.tokens for h in found] == [h[0] for h in expected]
    for hypothesis, (_, score, att, ctc) in zip(found, expected, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=tolerance)
        for name, value in (("att", att), ("ctc", ctc)):
            if name in hypothesis.scores:
                assert hypothesis.scores[name] == pytest.approx(value, abs=tolerance)


CASES = [
    {"ctc_weight": 0.3, "beam": 4},
    {"ctc_weight": 0.3, "beam": 4, "pre_beam_ratio": 0.0},
    {"ctc_weight": 0.5, "beam": 1},
    {"ctc_weight": 1.0, "beam": 5},
    {"ctc_weight": 0.0, "beam": 3},
    {"ctc_weight": 0.3, "beam": 3, "length_bonus": 0.7},
    {"ctc_weight": 0.3, "beam": 3, "maxlenratio": 0.4},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()))
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_plain_search(options, seed):
    frames = [9, 3, 14, 1, 6, 11, 2]
    decoder, log_softmax, encoded = task(seed, 9, frames)
    plain = {"pre_beam_ratio": 1.5, **options}
    if plain["pre_beam_ratio"] == 0:
        plain["pre_beam_ratio"] = 100.0
    expected = [search(x, log_softmax(x).detach(), decoder, **plain) for x in encoded]
    best = batched(decoder, log_softmax, encoded, batch=7, padding=3, nbest=1, **options)
    for found, all_ended in zip(best, expected, strict=True):
        assert_same(found, all_ended[:1])
    # the n best need a longer search; possible hypotheses only
    several = batched(decoder, log_softmax, encoded, batch=3, nbest=3, **options)
    for found, all_ended in zip(several, expected, strict=True):
        possible = [h for h in all_ended if h[1] > -1e8] or all_ended[:1]
        assert_same(found, possible[:3])


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_random_models_and_lengths_against_the_plain_search(data):
    frames = data.draw(st.lists(st.integers(1, 16), min_size=1, max_size=5), label="frames")
    vocabulary = data.draw(st.sampled_from([4, 7, 24]), label="vocabulary")
    options = {
        "ctc_weight": data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]), label="ctc_weight"),
        "beam": data.draw(st.integers(1, 6), label="beam"),
        "length_bonus": data.draw(st.sampled_from([0.0, 0.4, -0.3]), label="length_bonus"),
    }
    seed, slots = data.draw(st.integers(0, 2**31), label="seed"), data.draw(st.integers(0, 3), label="slots")
    decoder, log_softmax, encoded = task(seed, vocabulary, frames, transformer=True)
    ratio = 1.5 if options["ctc_weight"] < 1 else 100.0
    expected = [search(x, log_softmax(x).detach(), decoder, pre_beam_ratio=ratio, **options) for x in encoded]
    found = batched(decoder, log_softmax, encoded, batch=5, slots=slots, nbest=1, pre_beam_ratio=ratio, **options)
    # the decoder gives float32
    for (best,), all_ended, x in zip(found, expected, encoded, strict=True):
        if best.score > all_ended[0][1] + 1e-4:
            # end detection stopped the plain search before what a narrow beam found
            logs = log_softmax(x).detach()
            all_ended = search(x, logs, decoder, pre_beam_ratio=ratio, detect=False, **options)
        assert best.score == pytest.approx(all_ended[0][1], abs=1e-4)
        alike = [h[0] for h in all_ended if h[1] > all_ended[0][1] - 1e-4]
        assert best.tokens in alike


@pytest.mark.parametrize("slots", [0, 3])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_the_one_best_is_the_whole_beams_whether_a_narrow_one_finds_it_or_not(ctc_weight, slots, monkeypatch):
    passes = []
    search_with = BeamSearch._pass

    def counted(self, width, waiting, *rest):
        asked = len(waiting)
        left = search_with(self, width, waiting, *rest)
        passes.append((width, asked, len(left)))
        return left

    monkeypatch.setattr(BeamSearch, "_pass", counted)
    options = {"ctc_weight": ctc_weight, "beam": 8, "slots": slots, "batch": 8}
    for seed in range(6):
        frames = torch.randint(1, 20, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
        decoder, log_softmax, encoded = task(seed, 20, frames, sharpness=8.0)
        with torch.no_grad():
            # at first the decoder says little but where to end, so that CTC decides alone
            decoder.output.weight.mul_(0.3 * seed)
        found = batched(decoder, log_softmax, encoded, nbest=1, **options)
        # the two best are never looked for by a narrow beam
        whole = batched(decoder, log_softmax, encoded, nbest=2, **options)
        for one, several in zip(found, whole, strict=True):
            assert one[0].tokens == several[0].tokens
            assert one[0].score == pytest.approx(several[0].score, abs=1e-9)
    narrow = [(asked, left) for width, asked, left in passes if width < 8]
    assert len(narrow) == 6 and 0 < sum(left for _, left in narrow) < sum(asked for asked, _ in narrow)


@pytest.mark.parametrize("nbest", [1, 5])
@pytest.mark.parametrize("transformer", [False, True])
def test_batch_order_padding_and_places_change_nothing(transformer, nbest):
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(2, 40, (32,), generator=generator).tolist()
    decoder, log_softmax, encoded = task(7, 12, frames, transformer=transformer)
    options = {"ctc_weight": 0.3, "beam": 5, "nbest": nbest}
    alone = batched(decoder, log_softmax, encoded, batch=1, **options)
    shuffled = torch.randperm(32, generator=generator).tolist()
    ways = [(7, 0, None, 0), (32, 0, None, 0), (32, 9, shuffled, 0), (7, 5, shuffled, 0)]
    ways += [(32, 0, None, 7), (32, 3, shuffled, 4), (32, 0, None, 1)]
    for batch, padding, order, slots in ways:
        together = batched(
            decoder, log_softmax, encoded, batch=batch, padding=padding, order=order, slots=slots, **options
        )
        for one, other in zip(alone, together, strict=True):
            values = [(h.tokens, h.score, h.scores["att"], h.scores["ctc"]) for h in other]
            assert_same(one, values, 1e-4 if transformer else 1e-9)


def test_encoder_output_may_come_in_pieces():
    decoder, _, encoded = task(7, 12, [5, 11, 8], transformer=True)
    scorers = {"att": attention_scorer(decoder, sos=11)}
    run = BeamSearch(scorers, {"att": 1.0}, eos=11, beam=3, slots=2)
    lengths = torch.tensor([5, 11, 8])
    padded = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    for one, other in zip(run(encoded, lengths), run(padded, lengths), strict=True):
        assert one[0].tokens == other[0].tokens


def test_component_scores_add_up():
    decoder, log_softmax, encoded = task(2, 9, [20, 7, 30])
    for nbest in batched(decoder, log_softmax, encoded, batch=3, ctc_weight=0.4, beam=6, nbest=6, length_bonus=0.25):
        assert len(nbest) > 1
        assert [h.score for h in nbest] == sorted((h.score for h in nbest), reverse=True)
        for h in nbest:
            parts = 0.6 * h.scores["att"] + 0.4 * h.scores["ctc"] + 0.25 * h.scores["length"]
            assert h.score == pytest.approx(parts, abs=1e-9)
            assert 0 not in h.tokens and 8 not in h.tokens


def test_ctc_beam_score_is_the_probability_of_the_labels():
    decoder, log_softmax, encoded = task(4, 7, [12, 8])
    for x, nbest in zip(encoded, batched(decoder, log_softmax, encoded, batch=2, ctc_weight=1.0, beam=8), strict=True):
        exact = ctc_prefix(log_softmax(x).tolist(), tuple(nbest[0].tokens))[1]
        assert nbest[0].score == pytest.approx(exact, abs=1e-9)


def test_minlenratio_and_maxlenratio_bound_the_length():
    decoder, log_softmax, encoded = task(6, 9, [20, 10])
    options = {"ctc_weight": 0.3, "beam": 4, "batch": 2}
    for x, nbest in zip(encoded, batched(decoder, log_softmax, encoded, minlenratio=0.5, **options), strict=True):
        assert len(nbest[0].tokens) >= len(x) // 2
    for nbest in batched(decoder, log_softmax, encoded, minlenratio=-6, **options):
        assert len(nbest[0].tokens) >= 6
    for nbest in batched(decoder, log_softmax, encoded, maxlenratio=-2, **options):
        assert len(nbest[0].tokens) <= 2


def test_an_utterance_without_frames_is_empty():
    decoder, log_softmax, encoded = task(8, 9, [6, 5])
    scorer = {"ctc": CTCPrefixScorer(log_softmax, eos=8), "att": DecoderScorer(decoder, sos=8)}
    run = BeamSearch(scorer, {"ctc": 0.3, "att": 0.7}, eos=8, beam=4)
    padded = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    none, some = run(padded, torch.tensor([0, 5]))
    (alone,) = run(padded[1:, :5], torch.tensor([5]))
    assert none[0].tokens == []
    assert_same(some, [(h.tokens, h.score, h.scores["att"], h.scores["ctc"]) for h in alone])


def test_greedy_merges_repeats_and_drops_blanks():
    path = [0, 3, 3, 0, 3, 2, 2, 1, 0]
    log_probs = torch.full((2, len(path), 5), -5.0)
    for t, label in enumerate(path):
        log_probs[:, t, label] = -0.5
    log_probs[:, :, 4] = -0.1  # sos/eos, which CTC never emits
    full, cut = ctc_greedy(log_probs, torch.tensor([9, 5]), eos=4)
    assert full[0].tokens == [3, 3, 2, 1]
    assert cut[0].tokens == [3, 3]
    assert cut[0].score == pytest.approx(-2.5)
