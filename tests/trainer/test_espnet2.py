"""ESPnet2's models: configuration, training, checkpoints, decoding. Most needs the extra ``espnet``, and skips without."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import RATE, TOKENIZER, config, make_trainer, utterances

from espnet3.config.tasks import expand_task
from espnet3.errors import UserError

TASK = "espnet2.tasks.asr.ASRTask"
MODEL = {
    "frontend": "default",
    "frontend_conf": {"fs": RATE, "n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 20},
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1, "dropout_rate": 0.0},
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 32, "num_blocks": 1, "dropout_rate": 0.0},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
}
installed = importlib.util.find_spec("espnet2") is not None
needs_espnet2 = pytest.mark.skipif(not installed, reason="the extra espnet is not installed")


def test_a_configuration_file_becomes_part_of_the_section(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MODEL, "normalize": "global_mvn", "optim": "adam", "max_epoch": 3}))
    section = expand_task({"task": TASK, "config": str(path)}, RATE)
    assert section["_target_"] == "espnet3.models.espnet2.build" and "optim" not in section["config"]
    assert section["frontend"] == {"_target_": "espnet3.models.logmel.LogMel", **MODEL["frontend_conf"]}
    assert expand_task(section, RATE) == section, "of an expanded section nothing is left to do"
    for change, message in (
        ({"frontend_conf": {"fs": "16k"}}, r"fs is 16000 Hz, data\.sampling_rate is 8000 Hz"),
        ({"input_size": 80}, "input_size is set"),
        ({"token_list": str(tmp_path / "none.txt")}, r"no file .*none\.txt"),
    ):
        with pytest.raises(UserError, match=message):
            expand_task({"task": TASK, "config": {**MODEL, **change}}, RATE)
    path.write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml"):
        expand_task({"task": TASK, "config": str(path)})


@pytest.mark.skipif(installed, reason="ESPnet2 is installed here")
def test_without_espnet2_a_job_says_so_in_one_line():
    from espnet3.trainer.model import LitESPnetModel

    with pytest.raises(UserError, match=r"needs '(espnet2|torchaudio)', which is not installed"):
        LitESPnetModel({"task": TASK, "config": {**MODEL, "token_list": TOKENIZER.tokens}})


@needs_espnet2
def test_the_features_are_those_of_espnet2():
    from espnet3.models.espnet2 import without_torchaudio_binaries
    from espnet3.models.logmel import LogMel

    without_torchaudio_binaries()
    from espnet2.asr.frontend.default import DefaultFrontend

    speech, length = torch.randn(1, 9000) * 0.1, torch.tensor([9000])
    for settings in (MODEL["frontend_conf"], {"htk": True, "fmin": 50, "fmax": 7000, "n_mels": 40}):
        ours, frames = LogMel(**settings)(speech, length)
        theirs, expected = DefaultFrontend(**settings)(speech, length)
        assert int(frames) == int(expected)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@needs_espnet2
def test_the_real_model_trains_and_decodes(tmp_path):
    from safetensors.torch import load_file

    from espnet3.inference.decode import decode_batch
    from espnet3.inference.search import build_search
    from espnet3.trainer.model import LitESPnetModel

    torch.manual_seed(0)
    settings = {"model": {"config": {**MODEL, "token_list": TOKENIZER.tokens}}}
    model = LitESPnetModel(
        TASK, settings | {k: v for k, v in config(4).items() if k in ("optimizer", "scheduler")}
    ).model
    assert type(model).__mro__[2].__module__ == "espnet2.asr.espnet_model"
    trainer = make_trainer(tmp_path, 4, model=model)
    before = trainer.validate()["valid/loss"]
    index = trainer.fit()
    assert trainer.validate()["valid/loss"] < 0.8 * before

    # its tensors have ESPnet2's names
    import argparse

    from espnet2.tasks.asr import ASRTask

    arguments = {**vars(ASRTask.get_parser().parse_known_args([])[0]), **MODEL, "token_list": TOKENIZER.tokens}
    theirs = ASRTask.build_model(argparse.Namespace(**arguments)).eval()
    theirs.load_state_dict(load_file(tmp_path / index["checkpoints"][-1]["file"]))
    speech = torch.randn(1, 8000) * 0.1
    ours, _ = model.eval().encode(speech, torch.tensor([8000]))
    assert torch.equal(ours, theirs.encode(speech, torch.tensor([8000]))[0])

    waveforms = [item["audio"]["array"] for item in utterances(4, 2)]
    search = build_search(model, {"method": "joint", "beam": 3, "ctc_weight": 0.3})
    together = [n[0].tokens for n in decode_batch(waveforms, model, search)]
    assert together == [decode_batch([w], model, search)[0][0].tokens for w in waveforms]


@needs_espnet2
def test_what_does_not_fit_is_refused():
    from espnet3.models.espnet2 import build, check_tokens

    with pytest.raises(UserError, match="token_list has 6 tokens, the tokenizer has 9"):
        build(TASK, {**MODEL, "token_list": TOKENIZER.tokens}, vocab_size=9)
    with pytest.raises(UserError, match="refuses it"):
        build(TASK, {**MODEL, "encoder_conf": {"output_sise": 16}}, vocab_size=6)
    with pytest.raises(UserError, match=r"has no espnet2\.tasks\.asr\.Nothing"):
        build("espnet2.tasks.asr.Nothing", MODEL, vocab_size=6)
    with pytest.raises(UserError, match="not one of ESPnet2's tasks"):
        build("os.system", MODEL, vocab_size=6)
    model = build(TASK, {**MODEL, "token_list": TOKENIZER.tokens})
    with pytest.raises(UserError, match="from number 2 on"):
        check_tokens(model, ["<blank>", "<unk>", "x", "y", "z", "<sos/eos>"])


@needs_espnet2
def test_a_checkpoint_of_espnet2s_trainer_gives_its_hypotheses(shared, tmp_path, repository):
    import espnet3
    from espnet3.stages.espnet2 import run

    folder = shared / "data/espnet2-digits"
    archive = Path(os.environ.get("ESPNET3_FSDD", shared / "data/free-spoken-digit-dataset.tar.gz"))
    if not archive.exists() or not folder.is_dir():
        pytest.skip("no recordings of digits, or no model of ESPnet2's, among the test data")
    sys.path.insert(0, str(repository / "benchmarks"))
    import numpy as np
    from digits import PARTS, _write

    from espnet3.data.corpora.fsdd import FsddCorpus

    corpus = FsddCorpus(source=str(archive), downloads=str(tmp_path / "downloads"))
    corpus.prepare(tmp_path)
    count, indices, seed = PARTS["test"]
    _write(tmp_path / "test", corpus.recordings, "test", count, list(indices), np.random.default_rng(seed))
    expected = {}
    for line in (folder / "hyp.beam10.ctc0.3.txt").read_text().splitlines():
        uid, _, text = line.partition(" ")
        expected[uid] = text
    chosen = sorted(expected)[::10]
    run(folder / "exp/asr_char/config.yaml", folder / "exp/asr_char/valid.acc.ave_5best.pth", tmp_path / "pack")
    recognise = espnet3.from_pretrained(tmp_path / "pack")
    found = recognise.batch([tmp_path / "test/wav" / f"{uid}.wav" for uid in chosen])
    assert [result.text for result in found] == [expected[uid] for uid in chosen]
    with pytest.raises(UserError, match="is not in both"):
        other = folder / "exp/asr_char/config.yaml"
        smaller = yaml.safe_load(other.read_text())
        smaller["encoder_conf"]["num_blocks"] = 5
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(smaller))
        run(tmp_path / "config.yaml", folder / "exp/asr_char/valid.acc.ave_5best.pth", tmp_path / "pack2")
