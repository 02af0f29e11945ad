"""What all tests share: the repository, a copy of it to edit, the recorded test data where there is some."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from product import REPOSITORY, Project, copy_product

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of the product, for one test."""
    return copy_product(tmp_path / "project")


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder of recorded test data beside the checkout; a test that needs it skips where there is none."""
    folder = Path(os.environ.get("ESPNET3_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of recorded test data ({folder.name})")
    return folder
