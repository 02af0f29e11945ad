"""Models of other toolkits decode by the same search."""

import json

import pytest
import torch

from espnet3.inference.search import build_search, ctc_greedy

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_hugging_face_ctc_model(norm, tmp_path):
    from espnet3.inference.huggingface import HuggingFaceCTC

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(5, 4), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm=norm, pad_token_id=0, do_stable_layer_norm=norm == "layer",
    )  # fmt: skip
    net = transformers.Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        net.lm_head.weight.mul_(40)
        net.lm_head.bias[0] += 2
    model = HuggingFaceCTC(net, ["<pad>", "|", *"abcdefghij"])
    lengths = torch.tensor([1600, 900, 1300])
    speech = torch.randn(3, 1600)
    search = build_search(model, {"method": "ctc_beam", "beam": 4, "nbest": 2})
    together = search(*model.encode(speech, lengths))
    for row in range(3):
        (alone,) = search(*model.encode(speech[row : row + 1, : lengths[row]], lengths[row : row + 1]))
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert alone[0].score == pytest.approx(together[row][0].score, abs=1e-3)
        logits, frames = model.encode(speech[row : row + 1, : lengths[row]], lengths[row : row + 1])
        (greedy,) = ctc_greedy(model.ctc.log_softmax(logits), frames, eos=model.eos)
        assert alone[0].score >= greedy[0].score - 1e-6, "the sum over alignments is not below the best alignment"
        best = torch.nn.functional.ctc_loss(
            model.ctc.log_softmax(logits).transpose(0, 1), torch.tensor([alone[0].tokens]), frames,
            torch.tensor([len(alone[0].tokens)]), reduction="sum",
        )  # fmt: skip
        assert alone[0].score == pytest.approx(-float(best), abs=1e-3)
    assert model.text([2, 1, 3, 3]) == "a bb"

    net.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(model.tokens[:-1])}))
    transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(tmp_path)
    loaded = HuggingFaceCTC.load(tmp_path)
    assert loaded.tokens == model.tokens
    torch.testing.assert_close(loaded.encode(speech, lengths)[0], model.encode(speech, lengths)[0])


def test_an_espnet2_model_decodes_as_in_espnet2():
    pytest.importorskip("espnet2")
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer as TheirCTC
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    from espnet3.inference.scorers.espnet2 import espnet2_scorer
    from espnet3.inference.search import BeamSearch, CTCPrefixScorer

    torch.manual_seed(3)
    vocabulary, size = 30, 16
    decoder = TransformerDecoder(vocabulary, size, attention_heads=2, linear_units=32, num_blocks=2).eval()
    ctc = CTC(vocabulary, size).eval()
    with torch.no_grad():
        decoder.output_layer.weight.mul_(5)
        decoder.output_layer.bias[-1] += 2
        ctc.ctc_lo.weight.mul_(8)
        ctc.ctc_lo.bias[0] += 3
    weights = {"decoder": 0.7, "ctc": 0.3, "length_bonus": 0.0}
    theirs = BatchBeamSearch(
        {"decoder": decoder, "ctc": TheirCTC(ctc, vocabulary - 1)}, weights, 5, vocabulary, vocabulary - 1, vocabulary - 1,
        pre_beam_score_key="full",
    ).eval()  # fmt: skip
    theirs.__class__ = BatchBeamSearch
    scorers = {"ctc": CTCPrefixScorer(ctc.log_softmax, eos=vocabulary - 1)}
    scorers["att"] = espnet2_scorer(decoder, vocabulary - 1)
    ours = BeamSearch(scorers, {"ctc": 0.3, "att": 0.7}, eos=vocabulary - 1, beam=5, nbest=3, slots=3)
    encoded = [torch.randn(n, size) for n in (22, 9, 17, 30, 12)]
    found = ours(encoded, torch.tensor([len(e) for e in encoded]))
    with torch.no_grad():
        for memory, nbest in zip(encoded, found, strict=True):
            expected = theirs(memory)
            assert nbest[0].tokens == expected[0].yseq[1:-1].tolist()
            for mine, other in zip(nbest, expected, strict=False):
                assert mine.score == pytest.approx(float(other.score), abs=1e-3)


def test_espnet2s_conformer_gives_a_batch_what_it_gives_each_alone():
    pytest.importorskip("espnet2")
    from espnet3.inference.espnet2 import ESPnet2Recogniser
    from espnet3.inference.espnet2_encoder import encode_alone, encode_together, is_known
    from espnet3.models.espnet2 import build

    torch.manual_seed(1)
    config = {
        "frontend_conf": {"fs": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 20},
        "normalize": "utterance_mvn", "encoder": "conformer", "decoder": "transformer",
        "encoder_conf": {
            "output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 2, "macaron_style": True,
            "rel_pos_type": "latest", "cnn_module_kernel": 7, "input_layer": "conv2d",
        },
        "decoder_conf": {"attention_heads": 2, "linear_units": 32, "num_blocks": 2},
        "model_conf": {"ctc_weight": 0.3},
    }  # fmt: skip
    model = build("espnet2.tasks.asr.ASRTask", config, vocab_size=20).eval()
    with torch.no_grad():
        model.decoder.output_layer.weight.mul_(5)
        model.ctc.ctc_lo.weight.mul_(8)
        for block in model.encoder.encoders:
            block.conv_module.norm.running_mean.normal_()
            block.conv_module.norm.running_var.uniform_(0.5, 2.0)
            block.self_attn.pos_bias_v.normal_()
    waveforms = [torch.randn(n) for n in (4000, 7900, 5500, 2500)]
    assert is_known(model)
    with torch.inference_mode():
        alone, together = encode_alone(model, waveforms), encode_together(model, waveforms)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=0)
    recognise = ESPnet2Recogniser(model, beam=3, slots=2)
    for one, other in zip(recognise(waveforms, batch=1), recognise(waveforms, batch=3), strict=True):
        assert one[0].tokens == other[0].tokens
        assert one[0].score == pytest.approx(other[0].score, abs=1e-3)
