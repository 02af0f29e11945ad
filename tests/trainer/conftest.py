from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of a training of three epochs that nothing disturbed."""
    from tiny import make_trainer

    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, 3).fit()
    return folder
