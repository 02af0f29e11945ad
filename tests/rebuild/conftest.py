"""The tiny experiment, finished once, and a copy of it for each test to edit and run again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from forkserver import forked_python
from product import copy_product
from rebuild_lab import CONFIG, DATA, Lab, write_corpus


@pytest.fixture(scope="session")
def python() -> Iterator[Path]:
    with forked_python() as path:
        yield path


@pytest.fixture(scope="session")
def finished(python: Path, tmp_path_factory) -> Lab:
    """The experiment, finished. Do not edit it: take ``lab``."""
    lab = Lab(tmp_path_factory.mktemp("own") / "project", python)
    copy_product(lab.root)
    for path in (lab.root / "config").glob("*.yaml"):
        path.unlink()
    (lab.root / "config/own.yaml").write_text(CONFIG.lstrip())
    (lab.root / "config/data/own.yaml").write_text(DATA)
    write_corpus(lab.root)
    assert "train" in lab.run()
    return lab


@pytest.fixture
def lab(finished: Lab, tmp_path: Path) -> Lab:
    """A copy of the finished experiment, times and provenance included."""
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    return Lab(tmp_path / "project", finished.python)
