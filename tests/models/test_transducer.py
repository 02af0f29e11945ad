"""The transducer: its loss against the recursion of the paper, and that it learns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet3.errors import UserError
from espnet3.models.conformer import ConformerEncoder
from espnet3.models.frontend import Fbank
from espnet3.models.rnnt import rnnt_loss
from espnet3.models.transducer import TransducerModel


def recursion(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """Forward variables one by one (arXiv 1211.3711, eq. 16), blank 0: logits (T, U + 1, V)."""
    log_probs = logits.double().log_softmax(-1)
    alpha: dict[tuple[int, int], torch.Tensor] = {}
    for t in range(logits.size(0)):
        for u in range(len(labels) + 1):
            ways = [alpha[t - 1, u] + log_probs[t - 1, u, 0]] if t else []
            ways += [alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]]] if u else []
            alpha[t, u] = torch.logsumexp(torch.stack(ways), 0) if ways else log_probs.new_zeros(())
    return -(alpha[logits.size(0) - 1, len(labels)] + log_probs[-1, len(labels), 0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=4),
    st.integers(3, 6),
    st.integers(0, 1000),
)
def test_loss_and_gradient_equal_the_recursion(shapes, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    frames, labels = max(t for t, _ in shapes), max(u for _, u in shapes)
    logits = (3 * torch.randn(len(shapes), frames, labels + 1, vocabulary, generator=generator)).requires_grad_()
    text = torch.randint(1, vocabulary, (len(shapes), labels), generator=generator)
    lengths, text_lengths = (torch.tensor(x) for x in zip(*shapes, strict=True))
    weights = torch.rand(len(shapes), generator=generator)
    loss = rnnt_loss(logits, lengths, text, text_lengths)
    expected = torch.stack([recursion(logits[i, :t, : u + 1], text[i, :u].tolist()) for i, (t, u) in enumerate(shapes)])
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)
    (mine,) = torch.autograd.grad((weights * loss).sum(), logits)
    (theirs,) = torch.autograd.grad((weights.double() * expected).sum(), logits)
    torch.testing.assert_close(mine, theirs.float(), atol=1e-5, rtol=1e-4)


def test_it_learns_one_batch_by_heart_and_decodes_it():
    from espnet3.inference.search.transducer import TransducerBeam, TransducerGreedy

    torch.manual_seed(0)
    encoder = ConformerEncoder(40, 32, 2, 64, 2, 7, subsampling_channels=8, dropout=0.0)
    model = TransducerModel(9, Fbank(16000, 40), encoder, predictor_size=32, joiner_size=32)
    speech_lengths, text_lengths = torch.tensor([16000, 13000, 9000]), torch.tensor([6, 5, 3])
    text = torch.randint(1, 8, (3, 6)).masked_fill(torch.arange(6) >= text_lengths[:, None], -1)
    batch = {"speech": torch.randn(3, 16000) * 0.1, "speech_lengths": speech_lengths}
    batch |= {"text": text, "text_lengths": text_lengths}
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    # the loss has fallen long before; in evaluation the batch norm needs statistics that stand still
    for _ in range(300):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert {"loss", "loss_rnnt", "loss_ctc"} <= stats.keys()
    model.eval()
    with torch.no_grad():
        memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    expected = [row[:n].tolist() for row, n in zip(text, text_lengths, strict=True)]
    assert [nbest[0].tokens for nbest in TransducerGreedy(model)(memory, lengths)] == expected
    assert [nbest[0].tokens for nbest in TransducerBeam(model, beam=4)(memory, lengths)] == expected


def test_impossible_transducers_are_refused():
    frontend, encoder = Fbank(16000, 40), ConformerEncoder(40, 32, 2, 64, 1, 7)
    with pytest.raises(UserError, match="below 1"):
        TransducerModel(9, frontend, encoder, ctc_weight=1.0)
    with pytest.raises(UserError, match="context"):
        TransducerModel(9, frontend, encoder, context=0)
