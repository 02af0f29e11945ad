"""Hugging Face speech models train and decode through the same contract (extra ``transformers``)."""

from __future__ import annotations

import pytest
import torch
from tiny import RATE, TOKENIZER, make_trainer, utterances

from espnet3.errors import UserError

transformers = pytest.importorskip("transformers")

WAV2VEC2 = {
    "model_type": "wav2vec2",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "conv_dim": [32, 32, 48],
    "conv_stride": [8, 4, 5],
    "conv_kernel": [24, 8, 5],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
}
HUBERT = {**WAV2VEC2, "model_type": "hubert", "feat_extract_norm": "group", "do_stable_layer_norm": False}
WHISPER = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 20,
    "max_source_positions": 32,
    "max_target_positions": 16,
    "dropout": 0.0,
}
S2T = {
    **{k: v for k, v in WHISPER.items() if k not in ("model_type", "num_mel_bins", "max_source_positions")},
    "model_type": "speech_to_text",
    "input_feat_per_channel": 20,
    "conv_channels": 32,
    "num_conv_layers": 1,
    "conv_kernel_sizes": [5],
    "max_source_positions": 400,
}


def build(kind: str, config: dict, **more):
    from espnet3.config.instantiate import instantiate

    torch.manual_seed(1)
    node = {"_target_": f"espnet3.models.huggingface.{kind}", "config": config, "sampling_rate": RATE, **more}
    return instantiate(node, vocab_size=len(TOKENIZER))


def decoded(model, method: str, together: bool = True) -> list[str]:
    from espnet3.inference.decode import decode_batch
    from espnet3.inference.search import build_search

    search = build_search(model.eval(), {"method": method, "beam": 3, "maxlenratio": -12.0, "length_bonus": 0.0})
    waveforms = [item["audio"]["array"] for item in utterances(8, 2)]
    parts = [waveforms] if together else [[w] for w in waveforms]
    return [TOKENIZER.decode(nbest[0].tokens) for part in parts for nbest in decode_batch(part, model, search)]


def right(hypotheses: list[str]) -> int:
    return sum(h == item["text"] for h, item in zip(hypotheses, utterances(8, 2), strict=True))


@pytest.mark.parametrize(
    ("kind", "config", "methods", "epochs", "lr"),
    [
        ("HuggingFaceCTC", WAV2VEC2, ["ctc_greedy", "ctc_beam"], 16, 3e-3),
        ("HuggingFaceCTC", HUBERT, ["ctc_greedy"], 4, 3e-3),
        ("HuggingFaceSeq2Seq", WHISPER, ["attention"], 8, 3e-3),
        ("HuggingFaceSeq2Seq", S2T, ["attention"], 6, 3e-3),
    ],
    ids=["wav2vec2", "hubert", "whisper", "speech_to_text"],
)
def test_it_trains_and_decodes(tmp_path, kind, config, methods, epochs, lr):
    model = build(kind, config)
    trainer = make_trainer(tmp_path, epochs, model=model)
    trainer.config["optimizer"]["lr"] = trainer.model.config["optimizer"]["lr"] = lr
    trainer.model.config["scheduler"] = None
    before = trainer.validate()["valid/loss"]
    trainer.fit()
    after = trainer.validate()["valid/loss"]
    assert after < 0.75 * before
    for method in methods:
        found = decoded(model, method)
        assert len(found) == 8 and found == decoded(model, method, together=False)
        if method.startswith("ctc"):
            assert epochs < 10 or right(found) >= 4
    if model.decoder is not None:
        check_steps(model)


@torch.no_grad()
def check_steps(model) -> None:
    """Labels one at a time, with hypotheses that change places and utterances that leave, as all at once."""
    speech, lengths = torch.randn(3, 8000), torch.tensor([8000, 7000, 8000])
    memory, frames = model.encode(speech, lengths)
    tokens = torch.tensor([[5, 2, 3, 4], [5, 3, 3, 2], [5, 4, 2, 2]])
    whole = model.decoder(tokens, memory, frames).log_softmax(-1)
    cache = model.decoder.init_cache(memory, frames).reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    for step in range(2):
        scores, cache = model.decoder.step(tokens[:, step].repeat_interleave(2), cache)
        torch.testing.assert_close(scores, whole[:, step].repeat_interleave(2, 0), atol=1e-4, rtol=0)
    cache = cache.reorder(torch.tensor([1, 0, 3, 2, 5, 4])).select(torch.tensor([0, 2]))
    for step in (2, 3):
        scores, cache = model.decoder.step(tokens[[0, 2], step].repeat_interleave(2), cache)
        torch.testing.assert_close(scores, whole[[0, 2], step].repeat_interleave(2, 0), atol=1e-4, rtol=0)


def test_a_local_folder_gives_configuration_and_weights(tmp_path):
    first = build("HuggingFaceCTC", WAV2VEC2)
    first.model.save_pretrained(tmp_path / "published")
    other = build("HuggingFaceCTC", None, model=str(tmp_path / "published"))
    assert other.config.hidden_size == 48
    report = other.load_pretrained()
    assert not report["missing"]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_what_is_no_speech_model_is_refused():
    with pytest.raises(UserError, match="AutoModelForCTC refuses it"):
        build("HuggingFaceCTC", {"model_type": "bert"})
    with pytest.raises(UserError, match="at most"):
        model = build("HuggingFaceSeq2Seq", WHISPER)
        model.encode(torch.zeros(1, 10 * RATE), torch.tensor([10 * RATE]))
