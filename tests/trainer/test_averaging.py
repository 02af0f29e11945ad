"""Averages of checkpoints: exact, whatever the order, and of one model only."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet3.errors import UserError
from espnet3.io import sha256_file
from espnet3.stages.average import run
from espnet3.trainer.averaging import average


def checkpoints(folder, number: int = 5, **extra) -> list:
    generator = torch.Generator().manual_seed(3)
    paths = []
    for i in range(number):
        state = {
            "weight": torch.randn(40, 30, generator=generator)
            * 10.0 ** torch.randint(-3, 3, (40, 30), generator=generator),
            "half": torch.randn(7, generator=generator).bfloat16(),
            "scalar": torch.randn((), generator=generator),
            "empty": torch.zeros(0, 3),
            "batches": torch.tensor(100 + i),
            "mask": torch.tensor([True, False]),
        }
        paths.append(folder / f"epoch-{i}.safetensors")
        save_file(state | extra, paths[-1])
    return paths


def test_is_the_float64_mean_in_any_order(tmp_path):
    paths = checkpoints(tmp_path)
    average(paths, tmp_path / "a.safetensors", {"epochs": "0-4"})
    average(paths[::-1], tmp_path / "b.safetensors", {"epochs": "0-4"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    states, found = [load_file(p) for p in paths], load_file(tmp_path / "a.safetensors")
    assert found.keys() == states[0].keys()
    for name in ("weight", "half", "scalar"):
        exact = np.mean([s[name].double().numpy() for s in states], axis=0)
        assert found[name].dtype == states[0][name].dtype
        torch.testing.assert_close(
            found[name], torch.from_numpy(np.asarray(exact)).to(found[name].dtype), atol=0, rtol=1e-7
        )
    assert found["batches"] == 104 and found["mask"].tolist() == [True, False] and found["empty"].shape == (0, 3)


def test_of_one_checkpoint_is_the_checkpoint(tmp_path):
    (path,) = checkpoints(tmp_path, 1)
    average([path], tmp_path / "a.safetensors")
    one, found = load_file(path), load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(one[name], found[name]) for name in one)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    paths = checkpoints(tmp_path, 2)
    state = load_file(paths[1])
    odd = tmp_path / "epoch-9.safetensors"
    for change, message in (
        ({"weight": torch.zeros(2, 2)}, r"epoch-9.*'weight' is \(2, 2\)"),
        ({"weight": state["weight"].double()}, r"'weight'.*float64"),
        ({"scalar": torch.tensor(float("nan"))}, r"'scalar' is not finite"),
        ({"more": torch.zeros(1)}, r"'more' is not in all"),
    ):
        save_file(state | change, odd)
        with pytest.raises(UserError, match=message):
            average([*paths, odd], tmp_path / "a.safetensors")
    odd.write_bytes(paths[0].read_bytes()[:100])
    with pytest.raises(UserError, match="not a safetensors file"):
        average([*paths, odd], tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_needs_no_more_than_a_tensor_of_each_at_a_time(tmp_path):
    rows = {f"layer{i}": torch.ones(250_000) * i for i in range(20)}
    for i in range(3):
        save_file(rows, tmp_path / f"epoch-{i}.safetensors")
    tracemalloc.start()
    average(sorted(tmp_path.glob("epoch-*")), tmp_path / "a.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6, "Python's own share: the bytes of one tensor, not of the model (20 MB)"


def test_stage_takes_the_best_by_the_index(tmp_path):
    paths = checkpoints(tmp_path)
    losses = [5.0, 1.0, 3.0, 2.0, 4.0]
    entries = [
        {"epoch": i + 1, "step": i, "metrics": {"valid/loss": x}, "file": p.name, "sha256": sha256_file(p)}
        for i, (x, p) in enumerate(zip(losses, paths, strict=True))
    ]
    index = tmp_path / "checkpoints.json"
    index.write_text(json.dumps({"criteria": [["valid/loss", 5, "min"]], "checkpoints": entries}))
    run(index, "valid.loss", 3, tmp_path / "best.safetensors")
    average([paths[1], paths[2], paths[3]], tmp_path / "same.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            load_file(tmp_path / "best.safetensors").values(),
            load_file(tmp_path / "same.safetensors").values(),
            strict=True,
        )
    )
    run(index, "last", 2, tmp_path / "last.safetensors")
    assert load_file(tmp_path / "last.safetensors")["batches"] == 104
    with pytest.raises(UserError, match=r"'valid\.wer'"):
        run(index, "valid.wer", 3, tmp_path / "x.safetensors")
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(UserError, match=r"epoch-1\.safetensors: missing or not what training wrote"):
        run(index, "valid.loss", 3, tmp_path / "x.safetensors")
