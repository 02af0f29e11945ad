"""Files of a training's state that are damaged: named, not trusted, and no reason to end elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make_trainer, weights

from espnet3.io import read_json


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def state(stopped: Path, tmp_path: Path, caplog) -> Path:
    caplog.set_level("INFO", logger="espnet3")
    shutil.copytree(stopped, tmp_path / "exp")
    return next((tmp_path / "exp").glob("state-*"))


def newest(state: Path) -> list[Path]:
    return [state / record["file"] for record in read_json(state / "resume.json")["checkpoints"]]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, empty])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(uninterrupted, state: Path, caplog, damage: Callable):
    new, old = newest(state)
    damage(new)
    make_trainer(state.parent, 3).fit()
    assert f"{new.name} is damaged or missing; going back to the checkpoint before it" in caplog.text
    assert f"({old.name})" in caplog.text
    assert weights(state.parent) == weights(uninterrupted)


def test_two_damaged_checkpoints_cost_the_training_and_not_its_result(uninterrupted, state: Path, caplog):
    for path in newest(state):
        flip_a_bit(path)
    make_trainer(state.parent, 3).fit()
    assert caplog.text.count("is damaged or missing") == 2
    assert weights(state.parent) == weights(uninterrupted)


def test_a_damaged_list_of_checkpoints_is_made_again_from_those_that_are_whole(uninterrupted, state: Path, caplog):
    new, old = newest(state)
    cut_in_half(state / "resume.json")
    flip_a_bit(new)
    make_trainer(state.parent, 3).fit()
    assert "resume.json is damaged" in caplog.text
    assert f"({old.name})" in caplog.text, "the older one is whole"
    assert weights(state.parent) == weights(uninterrupted)
