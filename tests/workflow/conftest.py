"""A tiny experiment, run once through the real Snakemake to a WER; the tests look at it, edit it and run it again."""

from __future__ import annotations

import pytest
from product import Project, tiny_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny experiment, finished. Do not edit it: take ``edited``."""
    project = tiny_project(tmp_path_factory.mktemp("tiny") / "project")
    project.snakemake("exp/tiny")
    return project
