"""Scorers one label at a time give what their models give for whole sentences, also where utterances change places."""

import math
from itertools import product

import pytest
import torch

from espnet3.errors import UserError
from espnet3.inference.scorers.ngram import NgramScorer
from espnet3.inference.scorers.own import lm_scorer, own_scorer
from espnet3.models.decoder import TransformerDecoder
from espnet3.models.lm import TransformerLM

VOCABULARY = 11
SOS = VOCABULARY - 1


def padded(memories, lengths):
    return torch.nn.utils.rnn.pad_sequence(memories, batch_first=True), torch.tensor(lengths)


def walk(scorer, start, check, width=3, steps=40, seed=0):
    """Random prefixes of three utterances, one of which another one replaces; *check* gets (utterance, prefix, scores)."""
    generator = torch.Generator().manual_seed(seed)
    utterances = [0, 1, 2]
    state = start([0, 1, 2], width)
    prefixes = [[] for _ in range(3 * width)]
    for step in range(steps):
        scores = scorer.score(state)
        if step % 7 == 0 or step == steps - 1:
            for row, prefix in enumerate(prefixes):
                check(utterances[row // width], prefix, scores[row])
        parents = torch.randint(0, width, (len(prefixes),), generator=generator)
        rows = torch.arange(len(prefixes)) // width * width + parents
        tokens = torch.randint(1, VOCABULARY - 1, (len(prefixes),), generator=generator)
        state = scorer.advance(state, rows, tokens)
        prefixes = [prefixes[row] + [token] for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)]
        if step == 9:
            state = scorer.replace(state, torch.tensor([1]), start([3], width), 9)
            utterances[1] = 3
            prefixes[width : 2 * width] = [[] for _ in range(width)]
        if step == 20:
            state = scorer.select(state, torch.tensor([1, 2]), 9)
            utterances, prefixes = utterances[1:], prefixes[width:]


def test_the_decoder_and_its_scorer_agree():
    torch.manual_seed(0)
    decoder = TransformerDecoder(16, 2, 32, 2, vocab_size=VOCABULARY).double().eval()
    memories = [torch.randn(n, 16, dtype=torch.float64) for n in (7, 4, 9, 6)]
    scorer = own_scorer(decoder, SOS)

    def start(which, width):
        return scorer.start(*padded([memories[i] for i in which], [len(memories[i]) for i in which]), width)

    def check(utterance, prefix, scores):
        memory = memories[utterance]
        expected = decoder(torch.tensor([[SOS, *prefix]]), memory[None], torch.tensor([len(memory)]))
        # rotations are made in float32
        torch.testing.assert_close(scores, expected[0, -1].log_softmax(-1).float(), atol=2e-4, rtol=0)

    with torch.inference_mode():
        walk(scorer, start, check)


def test_the_language_model_and_its_scorer_agree():
    torch.manual_seed(0)
    lm = TransformerLM(VOCABULARY, 16, 2, 32, 2).eval()
    scorer = lm_scorer(lm)

    def start(which, width):
        return scorer.start(torch.zeros(len(which), 5, 4), torch.full((len(which),), 5), width)

    def check(utterance, prefix, scores):
        expected = lm.logits(torch.tensor([[SOS, *prefix]]))[0, -1].log_softmax(-1)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)

    with torch.inference_mode():
        walk(scorer, start, check)


ARPA = r"""
\data\
ngram 1=6
ngram 2=6
ngram 3=3

\1-grams:
-99 <s> -0.31
-0.8 </s>
-0.5 a -0.2
-0.7 b -0.4
-1.1 c
-1.5 <unk> -0.05

\2-grams:
-0.25 <s> a -0.1
-0.6 a b -0.15
-0.3 b a
-0.9 b </s>
-0.45 a a -0.35
-1.2 c c

\3-grams:
-0.11 <s> a b
-0.22 a b a
-0.33 a a a

\end\
"""
TOKENS = ["<blank>", "<unk>", "a", "b", "c", "d", "<sos/eos>"]


def katz(tables, history, word):
    """The definition: the longest n-gram that is there, and the back-off weights of those that are not."""
    gram = (*history, word)[-3:]
    table = tables[len(gram) - 1]
    if gram in table:
        return table[gram][0]
    if len(gram) == 1:
        return tables[0][("<unk>",)][0]
    return tables[len(gram) - 2].get(gram[:-1], (0.0, 0.0))[1] + katz(tables, gram[1:-1], word)


def test_an_ngram_model_scores_as_katz_defines_it(tmp_path):
    from espnet3.inference.scorers.ngram import read_arpa

    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    tables = read_arpa(path)
    scorer = NgramScorer(path, TOKENS)
    for prefix in product("abcd", repeat=3):
        state = scorer.start(torch.zeros(1, 1, 1), torch.tensor([1]), 2)
        history = ["<s>"]
        for word in [*prefix, None]:
            scores = scorer.score(state)
            for other in ("a", "b", "c", "d", "</s>"):
                label = TOKENS.index(other) if other != "</s>" else 6
                expected = katz(tables, tuple(history[-2:]), other)
                assert scores[1, label].item() == pytest.approx(expected, abs=1e-9)
            if word is not None:
                tokens = torch.full((2,), TOKENS.index(word))
                state = scorer.advance(state, torch.tensor([0, 1]), tokens)
                history.append(word)
    assert tables[0][("a",)][0] == pytest.approx(-0.5 * math.log(10))


def test_a_file_that_is_no_ngram_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "lm.arpa"
    with pytest.raises(UserError, match="no such file"):
        NgramScorer(path, TOKENS)
    path.write_text("hello world")
    with pytest.raises(UserError, match="ARPA"):
        NgramScorer(path, TOKENS)
    path.write_text(ARPA[: ARPA.index("-0.33")])
    with pytest.raises(UserError, match="not a whole"):
        NgramScorer(path, TOKENS)
    path.write_text(ARPA)
    with pytest.raises(UserError, match="none of the model's"):
        NgramScorer(path, ["<blank>", "<0>", "x", "y", "<sos/eos>"])
