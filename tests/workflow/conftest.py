"""A tiny experiment, run once through the real Snakemake to a WER; the tests look at it, edit it and run it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from product import Project, copy_product

# digits by four voices: small enough to train in seconds, real enough that the WER means something
TINY = """
defaults:
  - recipe: base
  - data: commands
  - tokenizer: char
  - model: conformer_small
  - trainer: small
  - decode: joint
  - parallel: local
  - _self_
data:
  corpus: tiny
  builder: {hours: 0.03, minutes_valid: 0.3, test_utterances: 6}
model:
  encoder: {blocks: 2, output_size: 48, hidden: 96, heads: 2}
  decoder: {blocks: 1, size: 48, hidden: 96, heads: 2}
trainer: {max_epochs: 2}
decode: {beam: 2, shards: 2, average: valid.loss.ave_2best}
"""


def tiny_project(root: Path) -> Project:
    project = copy_product(root)
    for path in (root / "config").glob("*.yaml"):
        path.unlink()
    (root / "config/tiny.yaml").write_text(TINY.lstrip())
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny experiment, finished. Do not edit it: take ``edited``."""
    project = tiny_project(tmp_path_factory.mktemp("tiny") / "project")
    project.snakemake("exp/tiny")
    return project
