"""Optimisers by name, averages of weights, frozen parts, a start from a checkpoint, callbacks: no interruption changes them."""

from __future__ import annotations

import logging
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SignalAt, make_trainer, model_node, weights

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.io import read_json

NAMED = {
    "optimizers": {
        "front": {
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-3, "momentum": 0.9},
            "params": ["encoder", "ctc"],
        },
        "back": {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3, "weight_decay": 0.01}, "params": "decoder"},
    },
    "schedulers": {
        "front": {"scheduler": {"_target_": "espnet3.trainer.schedulers.WarmupInverseSqrt", "warmup_steps": 4}},
        "back": {"scheduler": {"_target_": "espnet3.trainer.schedulers.WarmupCosine", "warmup_steps": 2, "steps": 60}},
    },
}


def trainer_of(folder: Path, epochs: int, sections: dict[str, Any] | None = None, **settings: Any):
    torch.manual_seed(0)
    trainer = make_trainer(folder, epochs, model=instantiate(model_node(blocks=2)), **settings)
    for key, value in (sections or {}).items():
        trainer.config[key] = trainer.model.config[key] = value
    if sections and "optimizers" in sections:
        for config in (trainer.config, trainer.model.config):
            config["optimizer"] = config["scheduler"] = None
    return trainer


@pytest.mark.parametrize(
    ("sections", "settings"),
    [
        (NAMED, {}),
        ({}, {"ema": {"decay": 0.9}}),
        ({}, {"freeze": ["encoder"], "gradient_checkpointing": False}),
        ({}, {"gradient_checkpointing": True, "accumulate_grad_batches": 2, "precision": "bf16-mixed"}),
    ],
    ids=["optimizers", "ema", "freeze", "checkpointing"],
)
def test_an_interruption_changes_nothing(tmp_path, sections, settings):
    trainer_of(tmp_path / "whole", 2, sections, **settings).fit()
    first = trainer_of(tmp_path / "parts", 2, sections, **settings)
    first.extra_callbacks.append(SignalAt(4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        first.fit()
    trainer_of(tmp_path / "parts", 2, sections, **settings).fit()
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    histories = [read_json(tmp_path / part / "checkpoints.json")["history"] for part in ("parts", "whole")]
    assert [r["metrics"] for r in histories[0]] == [r["metrics"] for r in histories[1]]


class Rates(pl.Callback):
    def __init__(self):
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_each_optimiser_has_its_parameters_and_its_schedule(tmp_path):
    trainer = trainer_of(tmp_path, 1, NAMED)
    trainer.extra_callbacks.append(rates := Rates())
    trainer.fit()
    named = trainer.model.trainer.optimizers[0].named
    assert {name: type(o).__name__ for name, o in named.items()} == {"front": "SGD", "back": "AdamW"}
    count = {name: sum(len(g["params"]) for g in o.param_groups) for name, o in named.items()}
    assert sum(count.values()) == len(list(trainer.model.parameters())) and min(count.values()) > 0
    # SGD has one group, AdamW two: with and without weight decay
    assert [r[0] for r in rates.seen[:4]] == pytest.approx([1e-3 * n / 4 for n in (1, 2, 3, 4)])
    assert [r[1] for r in rates.seen[:2]] == pytest.approx([1.5e-3, 3e-3])


@pytest.mark.parametrize(
    ("part", "message"),
    [("encoder", r"ctc\S* is in none of them"), (["encoder", "ctc", "decoder.output"], "in both front and back")],
)
def test_a_parameter_belongs_to_one_optimiser(tmp_path, part, message):
    front = {**NAMED["optimizers"]["front"], "params": part}
    trainer = trainer_of(tmp_path, 1, {**NAMED, "optimizers": {**NAMED["optimizers"], "front": front}})
    with pytest.raises(UserError, match=message):
        trainer.fit()


class Weights(pl.Callback):
    """The model's own tensors after each step."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: value.clone() for name, value in module.model.state_dict().items()})


def test_the_moving_average_is_published_and_validated(tmp_path):
    trainer = trainer_of(tmp_path, 1, ema=0.9)
    initial = {name: value.clone() for name, value in trainer.model.model.state_dict().items()}
    trainer.extra_callbacks.append(seen := Weights())
    index = trainer.fit()
    average = {name: value.double() for name, value in initial.items()}
    for n, state in enumerate(seen.steps):
        decay = min(0.9, (1 + n) / (10 + n))
        average = {name: decay * value + (1 - decay) * state[name].double() for name, value in average.items()}
    published = load_file(tmp_path / index["checkpoints"][0]["file"])
    for name, value in ((n, v) for n, v in published.items() if v.is_floating_point()):
        torch.testing.assert_close(value.double(), average[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(published["ctc.output.weight"], seen.steps[-1]["ctc.output.weight"])
    assert trainer.validate()["valid/loss"] == pytest.approx(index["history"][0]["metrics"]["valid/loss"], rel=1e-5)


def test_frozen_parts_stay_and_the_others_learn(tmp_path):
    trainer = trainer_of(tmp_path, 1, freeze=["encoder", "ctc.output.bias"])
    before = {name: value.clone() for name, value in trainer.model.model.state_dict().items()}
    trainer.fit()
    for name, value in trainer.model.model.state_dict().items():
        held = name.startswith("encoder.") or name == "ctc.output.bias"
        assert torch.equal(value, before[name]) == (held or not value.is_floating_point() or name.startswith("cmvn")), (
            name
        )
    with pytest.raises(UserError, match="no parameter begins with 'encodr'; did you mean 'encoder'"):
        trainer_of(tmp_path, 1, freeze="encodr")


def test_a_start_from_a_checkpoint_says_what_fits(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="espnet3")
    torch.manual_seed(5)
    other = instantiate(model_node(blocks=2))
    state = {f"asr.{name}": value for name, value in other.state_dict().items() if not name.startswith("decoder.norm")}
    state["asr.ctc.output.weight"] = torch.zeros(9, 16)
    state["asr.speaker.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "other.safetensors")
    init = {"path": str(tmp_path / "other.safetensors"), "prefixes": {"asr.": ""}}
    trainer = trainer_of(tmp_path / "exp", 1, {"init": init}, freeze=["encoder"])
    trainer.fit()
    report = read_json(next((tmp_path / "exp").glob("state-*")) / "init.json")
    assert report["missing"] == ["decoder.norm.bias", "decoder.norm.weight"] and report["unused"] == ["speaker.weight"]
    assert report["mismatched"] == {"ctc.output.weight": [[9, 16], [6, 16]]}
    assert "speaker.weight" in caplog.text and "1 of another shape (ctc.output.weight)" in caplog.text
    ours = trainer.model.model.state_dict()
    assert all(torch.equal(ours[n], v) for n, v in other.state_dict().items() if n.startswith("encoder."))
    with pytest.raises(UserError, match="does not fill this model"):
        trainer_of(tmp_path / "strict", 1, {"init": {**init, "strict": True}}).fit()
    with pytest.raises(UserError, match=r"nothing of .* fits this model"):
        trainer_of(tmp_path / "none", 1, {"init": init["path"]}).fit()


@pytest.mark.parametrize("suffix", ["pth", "ckpt"])
def test_checkpoints_of_other_trainers_are_read_without_running_code(tmp_path, suffix):
    from espnet3.trainer.finetune import read_weights

    state = instantiate(model_node()).state_dict()
    path = tmp_path / f"5epoch.{suffix}"
    content = state if suffix == "pth" else {"state_dict": {f"model.{n}": v for n, v in state.items()}, "epoch": 1}
    torch.save(content, path)
    assert read_weights(path).keys() == state.keys()
    torch.save({"model": state, "reporter": Path("x")}, path)
    with pytest.raises(UserError, match="holds more than tensors"):
        read_weights(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"not a readable checkpoint|more than tensors"):
        read_weights(path)


def test_the_defaults_can_be_removed(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="espnet3")
    monitor = {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}
    silent = trainer_of(tmp_path / "silent", 1, log_seconds=0.0, callbacks={"log": None, "lr": monitor})
    index = silent.fit()
    assert "s of audio/s" not in caplog.text and index["checkpoints"]
    assert any(type(c).__name__ == "LearningRateMonitor" for c in silent.model.trainer.callbacks)
    bare = trainer_of(tmp_path / "bare", 1, callbacks={"defaults": False}, logger=False)
    assert bare.fit() == {}
    assert not list((tmp_path / "bare").rglob("*.ckpt")) and bare.model.trainer.global_step > 0
    assert not any(type(c).__module__.startswith("espnet3") for c in bare.model.trainer.callbacks)
    with pytest.raises(UserError, match=r"callbacks\.wrong"):
        trainer_of(tmp_path, 1, callbacks={"wrong": 3})


def test_gradient_checkpointing_changes_memory_alone():
    from espnet3.trainer.acceleration import recompute

    torch.manual_seed(0)
    batch = {
        "speech": torch.randn(3, 8000),
        "speech_lengths": torch.tensor([8000, 7000, 6000]),
        "text": torch.tensor([[2, 3], [3, 4], [2, -1]]),
        "text_lengths": torch.tensor([2, 2, 1]),
    }
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = instantiate(model_node(blocks=2, norm="batch", dropout=0.1)).train()
        if checkpointed:
            assert recompute(model, ["encoder.blocks"]) == 2
        torch.manual_seed(2)
        loss, _, _ = model(**batch)
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    assert all(torch.equal(found[0][2][name], found[1][2][name]) for name in found[0][2])
    with pytest.raises(UserError, match=r"no list of blocks 'encoder\.block'; did you mean 'encoder\.blocks'"):
        recompute(instantiate(model_node(blocks=2)), ["encoder.block"])


def test_the_log_tells_the_time_left_and_the_use_of_the_device(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="espnet3")
    trainer_of(tmp_path, 2, log_seconds=0.0, peak_tflops=0.1).fit()
    lines = [r.message for r in caplog.records if "s of audio/s" in r.message]
    assert "epoch 1/2" in lines[2] and "left" in lines[2], "in the first epoch, too"
    assert "% of the peak FLOP/s" in lines[2]
    used = float(lines[2].split(" % of the peak")[0].split(", ")[-1])
    assert 0 < used < 100 and math.isfinite(used)


def test_the_largest_batch_is_found_in_few_trials():
    from espnet3.trainer.memory import largest

    for capacity in (0, 1, 7, 64, 100):
        tried: list[int] = []
        assert largest(lambda n, c=capacity, t=tried: t.append(n) or n <= c, 100) == min(capacity, 100)
        assert len(tried) == len(set(tried)) <= 14


def test_the_memory_probe_says_what_it_cannot_measure(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="espnet3")
    trainer_of(tmp_path, 1, memory_probe=True).fit()
    assert "measures the memory of CUDA devices only; this is cpu" in caplog.text


def test_a_range_of_epochs_is_averaged_kept_by_a_criterion_or_not(tmp_path):
    from espnet3.stages.average import run
    from espnet3.trainer.averaging import average

    trainer = trainer_of(tmp_path, 3)
    trainer.criteria = [["valid/loss", 1, "min"]]
    index = trainer.fit()
    assert len(index["checkpoints"]) < 3
    run(tmp_path / "checkpoints.json", None, None, tmp_path / "range.safetensors", epochs="1-2")
    state = next(tmp_path.glob("state-*"))
    average([state / f"epoch-{n:04d}.safetensors" for n in (1, 2)], tmp_path / "same.safetensors")
    found, same = load_file(tmp_path / "range.safetensors"), load_file(tmp_path / "same.safetensors")
    assert all(torch.equal(found[name], same[name]) for name in same)
    for epochs, message in (("2-4", "epoch 4 was not trained"), ("3-2", "is no range"), ("x", "is no range")):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "checkpoints.json", None, None, tmp_path / "x.safetensors", epochs=epochs)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_block_computes_the_same_for_batches_of_any_length_and_is_compiled_once():
    from espnet3.trainer.acceleration import compile_model, recompute

    def gradients(samples: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(samples)
        model.zero_grad()
        loss, _, _ = model(
            speech=torch.randn(2, samples, generator=generator),
            speech_lengths=torch.tensor([samples, samples - 2000]),
            text=torch.tensor([[2, 3], [3, -1]]),
            text_lengths=torch.tensor([2, 1]),
        )
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.manual_seed(1)
    still = {**model_node(blocks=2, norm="batch", dropout=0.0), "specaug": None}
    still["decoder"]["dropout"] = 0.0
    model = instantiate(still).train()
    names = list(model.state_dict())
    lengths = (8000, 9000, 12000, 10500)
    expected = [gradients(samples) for samples in lengths]
    assert compile_model(model, {"modules": ["encoder.blocks.1"]}, "cpu") == ["encoder.blocks.1"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples, exact in zip(lengths, expected, strict=True):
            assert (gradients(samples) - exact).norm() < 1e-4 * exact.norm()
    assert list(model.state_dict()) == names
    model = instantiate(still).train()
    expected = [gradients(samples) for samples in lengths[:2]]
    # both keys at once; this backend needs no compiler
    recompute(model, True)
    assert compile_model(model, {"backend": "aot_eager"}, "cpu") == ["encoder.blocks"]
    for samples, exact in zip(lengths, expected, strict=False):
        assert (gradients(samples) - exact).norm() < 1e-4 * exact.norm()
    with pytest.raises(UserError, match=r"no module 'encoder\.block'; did you mean 'encoder\.blocks'"):
        compile_model(model, {"modules": ["encoder.block"]}, "cpu")
