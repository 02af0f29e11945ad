from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of three epochs that nothing disturbed."""
    from tiny import make_trainer

    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, 3).fit()
    return folder


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same training, stopped in its second epoch."""
    import signal

    from tiny import SignalAt, make_trainer

    folder = tmp_path_factory.mktemp("stopped")
    trainer = make_trainer(folder, 3)
    trainer.extra_callbacks.append(SignalAt(13, signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.fit()
    return folder
