"""A wrong key, value or target is refused when the workflow is parsed, in one line that names the mend."""

from __future__ import annotations

import pytest

from espnet3.config.compose import experiment_names, load_config, load_configs
from espnet3.errors import UserError


@pytest.fixture(autouse=True)
def _in_the_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decode.beem=4", "no key 'decode.beem' to override; did you mean 'beam'?"),
        ("+decode.beem=4", "unknown key 'decode.beem'; did you mean 'beam'?"),
        ("decode.beam=four", "decode.beam: Input should be a valid integer"),
        ("decode.beam=0", "decode.beam: Input should be greater than or equal to 1 (found 0)"),
        ("decode.ctc_weight=1.5", "decode.ctc_weight"),
        ("decode.average=valid.accu.ave_5best", "did you mean"),
        ("decode.average=valid.loss.ave_500best", "keeps only"),
        ("+decode.variants.joint.bean=3", "variant 'joint' has no key 'bean'; did you mean 'beam'?"),
        ("+trainer.max_epoch=3", "trainer: unknown key 'max_epoch'; did you mean 'max_epochs'?"),
        ("+trainer.gradient_clip_vall=3", "did you mean 'gradient_clip_val'?"),
        ("trainer.max_epochs=0", "max_epochs must be a whole number above 0"),
        ("+optimizer.lrr=3", "unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        ("+model.encodr=3", "unknown key 'model.encodr'; did you mean 'encoder'?"),
        ("model._target_=espnet3.models.asr.ASRModle", "does not exist; did you mean 'ASRModel'?"),
        ("model._target_=os.system", "outside the allowed packages"),
        ("model._target_=subprocess.run", "outside the allowed packages"),
        ("tokenizer.type=chars", "tokenizer.type: Input should be 'char', 'word' or 'bpe' (found 'chars')"),
        ("tokenizer.type=bpe", "needs vocab_size"),
        ("data.test=[]", "data.test"),
        ("data.test=[test,test]", "a test set is listed twice"),
        ("data.min_duration=50", "min_duration must be below max_duration"),
        ("model=conformer_smal", "conformer_smal"),
    ],
)
def test_a_mistake_is_one_clear_line(override, expected):
    with pytest.raises(UserError) as caught:
        load_configs(["asr"], override)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config/asr.yaml: ")


def test_a_mistake_in_the_file_itself(tmp_path, repository):
    import shutil

    shutil.copytree(repository / "config", tmp_path / "config")
    path = tmp_path / "config/asr.yaml"
    path.write_text(path.read_text() + "\nsede: 3\n")
    with pytest.raises(UserError, match="unknown key 'sede'; did you mean 'seed'"):
        load_config("asr", config_dir=tmp_path / "config")
    path.write_text("defaults: [\n")
    with pytest.raises(UserError, match=r"asr.yaml:\d+: "):
        load_config("asr", config_dir=tmp_path / "config")
    with pytest.raises(UserError, match="no such experiment; did you mean 'asr'"):
        load_config("ars", config_dir=tmp_path / "config")


def test_an_override_is_for_the_experiments_that_have_its_key():
    configs = load_configs(["asr", "fsdd"], "asr:decode.beam=7 seed=3")
    assert (configs["asr"]["decode"]["beam"], configs["asr"]["seed"]) == (7, 3)
    assert configs["fsdd"]["decode"]["beam"] != 7
    assert configs["fsdd"]["seed"] == 3
    assert load_configs(["asr", "fsdd"], "data.builder.hours=0.1")["asr"]["data"]["builder"]["hours"] == 0.1


def test_exponents_are_numbers():
    assert load_config("asr", ["optimizer.lr=2e-3"]) == load_config("asr", ["optimizer.lr=0.002"])


def test_every_experiment_is_valid():
    assert {"asr", "fsdd", "fsdd_heldout"} <= set(load_configs(experiment_names()))
