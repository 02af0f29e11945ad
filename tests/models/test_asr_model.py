"""The recogniser: what a result may depend on, and what it may not."""

from __future__ import annotations

import pytest
import torch

from espnet3.errors import UserError
from espnet3.models.asr import ASRModel
from espnet3.models.conformer import ConformerEncoder
from espnet3.models.ctc import consistency_loss, frames_needed
from espnet3.models.decoder import TransformerDecoder
from espnet3.models.ebranchformer import EBranchformerEncoder
from espnet3.models.frontend import Fbank
from espnet3.models.specaug import SpecAugment

VOCAB = 12


def small(norm: str = "batch", subsampling: int = 4, **kwargs) -> ASRModel:
    torch.manual_seed(0)
    shape = {"input_size": 40, "output_size": 32, "heads": 2, "hidden": 64, "blocks": 2, "kernel": 7}
    shape |= {"subsampling": subsampling, "subsampling_channels": 8}
    if norm == "ebranchformer":
        encoder = EBranchformerEncoder(**shape, gated=48, merge_kernel=5)
    else:
        encoder = ConformerEncoder(**shape, norm=norm)
    decoder = TransformerDecoder(size=32, heads=2, hidden=64, blocks=2)
    return ASRModel(VOCAB, Fbank(16000, 40), encoder, decoder, SpecAugment(freq_width=8), **kwargs)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([16000, 13337, 9001])
    speech = torch.randn(3, 16000, generator=generator) * 0.1
    text_lengths = torch.tensor([6, 5, 3])
    text = torch.randint(2, VOCAB - 1, (3, 6), generator=generator)
    return {
        "speech": speech * (torch.arange(16000) < lengths[:, None]),
        "speech_lengths": lengths,
        "text": text.masked_fill(torch.arange(6) >= text_lengths[:, None], -1),
        "text_lengths": text_lengths,
    }


@pytest.mark.parametrize("norm", ["batch", "ebranchformer"])
def test_every_parameter_learns(batch, norm):
    model = small(norm, intermediate=[1], self_conditioning=True).train()
    loss, stats, weight = model(**batch)
    loss.backward()
    assert int(weight) == 3
    assert {"loss", "loss_ctc", "loss_att", "acc"} <= stats.keys()
    assert not any(value.requires_grad for value in stats.values())
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias before a softmax over keys shifts all scores alike
    assert [name for name in without if not name.endswith("cross_attention.key.bias")] == []


def test_it_can_learn_one_batch_by_heart(batch):
    model = small(label_smoothing=0.0).train()
    model.specaug = None
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert stats["acc"] > 0.95
    model.eval()
    with torch.no_grad():
        memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
        symbols = model.ctc.greedy(memory)
    for row, n, text, m in zip(symbols, lengths, batch["text"], batch["text_lengths"], strict=True):
        best = torch.unique_consecutive(row[:n])
        assert best[best > 0].tolist() == text[:m].tolist()


@pytest.mark.parametrize("subsampling, norm", [(2, "batch"), (4, "layer"), (6, "ebranchformer"), (8, "batch")])
def test_an_utterance_does_not_depend_on_its_batch_or_padding(batch, norm, subsampling):
    model = small(norm, subsampling)
    model.train()
    for _ in range(3):
        model(**batch)  # running statistics that are not the initial ones
    model.eval()
    speech, lengths = batch["speech"].clone(), batch["speech_lengths"]
    # whatever lies in the padding
    speech[1, lengths[1] :] = 0.7
    speech = torch.nn.functional.pad(speech, (0, 5000), value=-0.3)
    with torch.no_grad():
        memory, frames = model.encode(speech, lengths)
        for i, n in enumerate(lengths):
            alone, own = model.encode(batch["speech"][i : i + 1, :n], n[None])
            assert own[0] == frames[i] == model.output_lengths(n[None])[0]
            torch.testing.assert_close(memory[i, : frames[i]], alone[0], atol=1e-4, rtol=0)


def test_losses_do_not_depend_on_padding(batch):
    model = small().eval()
    wide = dict(batch, text=torch.nn.functional.pad(batch["text"], (0, 7), value=-1))
    wide["speech"] = torch.nn.functional.pad(batch["speech"], (0, 3000), value=0.5)
    with torch.no_grad():
        torch.testing.assert_close(model(**wide)[0], model(**batch)[0], atol=1e-3, rtol=1e-5)


def test_steps_with_a_cache_equal_the_whole_sequence(batch):
    model = small().eval()
    decoder = model.decoder
    tokens = torch.randint(2, VOCAB, (3, 40), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = model.sos
    with torch.no_grad():
        memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
        whole = decoder(tokens, memory, lengths).log_softmax(-1)
        cache = decoder.init_cache(memory, lengths)
        for i in range(tokens.size(1)):
            log_probs, cache = decoder.step(tokens[:, i], cache)
            torch.testing.assert_close(log_probs, whole[:, i], atol=1e-4, rtol=0)


def test_cache_follows_hypotheses_and_drops_finished_utterances(batch):
    model = small().eval()
    decoder = model.decoder
    beam = 2
    first = torch.full((3,), model.sos)
    with torch.no_grad():
        memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
        _, cache = decoder.step(first, decoder.init_cache(memory, lengths))
        cache = cache.reorder(torch.arange(3).repeat_interleave(beam))
        second = torch.tensor([2, 3, 4, 5, 6, 7])
        _, cache = decoder.step(second, cache)
        # both hypotheses of utterance 0 go on from its second one; utterance 1 is finished
        cache = cache.reorder(torch.tensor([1, 1, 2, 3, 5, 4])).select(torch.tensor([0, 2]))
        third = torch.tensor([8, 9, 10, 2])
        log_probs, _ = decoder.step(third, cache)
        histories = [(0, 3, 8), (0, 3, 9), (2, 7, 10), (2, 6, 2)]
        for row, (utterance, middle, last) in zip(log_probs, histories, strict=True):
            tokens = torch.tensor([[model.sos, middle, last]])
            logits = decoder(tokens, memory[utterance : utterance + 1], lengths[utterance : utterance + 1])
            torch.testing.assert_close(row, logits[0, -1].log_softmax(-1), atol=1e-4, rtol=0)


def test_specaugment_acts_in_training_only_and_within_bounds():
    augment = SpecAugment(freq_masks=1, freq_width=5, time_masks=2, time_width=30, time_ratio=0.1)
    feats, lengths = torch.ones(64, 200, 40), torch.full((64,), 200)
    lengths[0] = 20
    torch.manual_seed(0)
    masked = augment.train()(feats, lengths) == 0
    whole_frames, whole_channels = masked.all(2), masked.all(1)
    assert 0 < whole_channels.sum(1).max() <= 5
    assert 20 < whole_frames.sum(1).max() <= 40
    assert whole_frames[0].sum() <= 4 and not whole_frames[0, 20:].any()
    assert len({tuple(row.tolist()) for row in whole_frames}) > 32
    assert augment.eval()(feats, lengths) is feats


def test_cmvn_travels_in_the_state(batch, tmp_path):
    import numpy as np

    mean, std = np.linspace(-3, 3, 40), np.linspace(1, 2, 40)
    np.savez(tmp_path / "cmvn.npz", mean=mean, std=std)
    model, other = small(cmvn=tmp_path / "cmvn.npz").eval(), small().eval()
    with torch.no_grad():
        given = model.encode(batch["speech"], batch["speech_lengths"])[0]
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other.encode(batch["speech"], batch["speech_lengths"])[0], given)
    np.savez(tmp_path / "narrow.npz", mean=mean[:5], std=std[:5])
    with pytest.raises(UserError, match=r"narrow\.npz.*40 channels"):
        small(cmvn=tmp_path / "narrow.npz")


def test_impossible_models_are_refused():
    frontend, encoder = Fbank(16000, 40), ConformerEncoder(80, 32, 2, 64, 1, 7)
    with pytest.raises(UserError, match=r"encoder\.input_size: 80 .* 40"):
        ASRModel(VOCAB, frontend, encoder, ctc_weight=1.0)
    with pytest.raises(UserError, match="needs a decoder"):
        ASRModel(VOCAB, Fbank(16000, 80), encoder, ctc_weight=0.3)
    with pytest.raises(UserError, match="memory_size 48"):
        ASRModel(VOCAB, Fbank(16000, 80), encoder, TransformerDecoder(48, 2, 64, 1))


def test_a_single_frame_trains():
    model = small().train()
    one = {"speech": torch.randn(1, 400), "speech_lengths": torch.tensor([400])}
    loss, _, _ = model(**one, text=torch.tensor([[3]]), text_lengths=torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)


def test_frames_that_ctc_needs():
    assert [frames_needed(x) for x in ([], [5], [5, 6], [5, 5], [5, 5, 5, 6])] == [0, 1, 2, 3, 6]


def test_ctc_only_model_trains(batch):
    model = ASRModel(VOCAB, Fbank(16000, 40), ConformerEncoder(40, 32, 2, 64, 1, 7), ctc_weight=1.0).train()
    loss, stats, _ = model(**batch)
    loss.backward()
    assert "loss_att" not in stats and torch.isfinite(loss)


def test_intermediate_ctc_weighs_in_and_changes_nothing_at_inference(batch):
    plain, between = small(label_smoothing=0.0), small(label_smoothing=0.0, intermediate=[1], intermediate_weight=0.25)
    for model in (plain, between):
        model.specaug = None
        model.encoder.eval()
        for module in model.encoder.modules():
            module.dropout = (
                torch.nn.Identity() if isinstance(getattr(module, "dropout", None), torch.nn.Dropout) else 0.0
            )
    with torch.no_grad():
        _, without, _ = plain.train(False)(**batch)
        between.training = True
        loss, stats, _ = between(**batch)
        expected = 0.3 * (0.75 * stats["loss_ctc"] + 0.25 * stats["loss_interctc"]) + 0.7 * stats["loss_att"]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(stats["loss_ctc"], without["loss_ctc"])
        torch.testing.assert_close(between.eval()(**batch)[0], without["loss"])


def test_self_conditioning_acts_at_inference_too(batch):
    model = small(intermediate=[1], self_conditioning=True).eval()
    with torch.no_grad():
        first, _ = model.encode(batch["speech"], batch["speech_lengths"])
        model.condition.weight.mul_(5)
        second, _ = model.encode(batch["speech"], batch["speech_lengths"])
    assert (first - second).abs().max() > 1e-3


def test_consistency_is_zero_for_equal_views_and_its_gradient_draws_them_together():
    torch.manual_seed(0)
    logits, lengths = torch.randn(4, 7, 5, requires_grad=True), torch.tensor([7, 4, 7, 4])
    one = logits.detach()[:2].log_softmax(-1)
    assert consistency_loss(torch.cat([one, one]), lengths).abs().max() < 1e-6
    before = consistency_loss(logits.log_softmax(-1), lengths)
    probs, other = logits.detach().log_softmax(-1).chunk(2)
    divergence = (probs.exp() * (probs - other) + other.exp() * (other - probs)).sum(-1)
    expected = torch.stack([divergence[0].sum(), divergence[1, :4].sum()]) / 2
    torch.testing.assert_close(before, expected)
    before.sum().backward()
    after = consistency_loss((logits - 0.1 * logits.grad).log_softmax(-1), lengths)
    assert (after < before).all() and not logits.grad[1, 4:].any()


def test_two_views_of_each_utterance_train_together(batch):
    model = small(consistency_weight=0.2).train()
    torch.manual_seed(1)
    loss, stats, weight = model(**batch)
    loss.backward()
    assert int(weight) == 3 and stats["loss_cr"] > 0
    expected = 0.3 * (stats["loss_ctc"] + 0.2 * stats["loss_cr"]) + 0.7 * stats["loss_att"]
    torch.testing.assert_close(stats["loss"], expected)
    assert "loss_cr" not in model.eval()(**batch)[1]
    with pytest.raises(UserError, match="consistency_weight"):
        ASRModel(VOCAB, Fbank(16000, 40), ConformerEncoder(40, 32, 2, 64, 1, 7), ctc_weight=1.0, consistency_weight=0.2)


@pytest.mark.parametrize("norm", ["layer", "ebranchformer"])
def test_checkpointing_changes_no_gradient(batch, norm):
    gradients = []
    for checkpointing in (False, True):
        model = small(norm).train()
        model.encoder.checkpointing = checkpointing
        torch.manual_seed(1)
        model(**batch)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(UserError, match=r"intermediate: block 2"):
        small(intermediate=[2])
