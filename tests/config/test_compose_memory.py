"""What an experiment was composed to is remembered beside Snakemake's records, and forgotten with anything it depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from espnet3.config import compose
from espnet3.config.compose import load_config


@pytest.fixture
def checkout(repository, tmp_path, monkeypatch) -> Path:
    """A folder with the experiments, in which Snakemake has run."""
    shutil.copytree(repository / "config", tmp_path / "config")
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def remembered(checkout: Path) -> list[Path]:
    return sorted((checkout / ".snakemake/espnet3").glob("composed-*.json"))


def load(*overrides: str) -> dict:
    """As another process would."""
    compose._composed.cache_clear()
    compose._texts.cache_clear()
    return load_config("fsdd", overrides)


def test_a_remembered_configuration_is_the_composed_one(checkout):
    first = load()
    (path,) = remembered(checkout)
    assert load() == first and remembered(checkout) == [path]
    # in its order, too: the first decoding is the one that a pack takes
    assert json.dumps(load()) == json.dumps(first) and list(first["decode"]["variants"]) == ["joint", "greedy"]
    content = json.loads(path.read_text())
    content["decode"]["beam"] = 77
    path.write_text(json.dumps(content))
    assert load()["decode"]["beam"] == 77  # so it is read
    path.write_text("damaged")
    assert load() == first


def test_a_text_an_override_and_the_environment_make_another(checkout, monkeypatch):
    assert load()["data"]["builder"]["source"] is None
    monkeypatch.setenv("ESPNET3_FSDD", "/somewhere")
    assert load()["data"]["builder"]["source"] == "/somewhere"
    assert load("decode.beam=3")["decode"]["beam"] == 3
    path = checkout / "config/decode/joint.yaml"
    path.write_text(path.read_text().replace("beam: 5", "beam: 6"))
    assert load()["decode"]["beam"] == 6
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    count = len(remembered(checkout))
    assert load()["decode"]["beam"] == 6 and len(remembered(checkout)) == count == 4


def test_what_cannot_be_foreseen_is_not_remembered(checkout):
    load("data.corpus=${now:%H%M%S}")
    assert not remembered(checkout)


def test_without_snakemakes_folder_nothing_is_written(checkout):
    (checkout / ".snakemake").rmdir()
    load()
    assert not (checkout / ".snakemake").exists()
