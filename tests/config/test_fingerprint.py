"""The code digest follows what a stage computes: code yes, comments and docstrings no."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from espnet3.config.fingerprint import code_digests, file_digest

SOURCE = '"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        (SOURCE.replace("Doc.", "Other words."), True),
        ("# a comment\n" + SOURCE + "\n# another\n", True),
        (SOURCE.replace("    return x + 1", "    return (x  +  1)"), True),
        (SOURCE.replace("x + 1", "x + 2"), False),
        (SOURCE.replace("def f(x)", "def f(x, y=0)"), False),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path, edited, same):
    before, after = tmp_path / "a.py", tmp_path / "b.py"
    before.write_text(SOURCE)
    after.write_text(edited)
    assert (file_digest(before) == file_digest(after)) is same


def test_a_stage_owns_what_it_imports_and_nothing_else():
    train = set(code_digests(["espnet3.stages.train"]))
    decode = set(code_digests(["espnet3.stages.decode"]))
    assert "espnet3.trainer.trainer" in train
    assert not [m for m in train if m.startswith(("espnet3.inference", "espnet3.metrics", "espnet3.report"))]
    assert [m for m in decode if m.startswith("espnet3.inference.search")]
    assert not [m for m in decode if m.startswith(("espnet3.trainer", "espnet3.report", "espnet3.data.corpora"))]
    assert not [m for m in train | decode if m.startswith(("espnet3.parallel", "espnet3.config"))]


def test_targets_in_the_configuration_count():
    digests = code_digests([], {"model": {"_target_": "espnet3.models.asr.ASRModel"}})
    assert "espnet3.models.asr" in digests


def test_nothing_above_the_stages_imports_torch(repository: Path):
    code = (
        "import sys, pkgutil, importlib, espnet3.stages, espnet3.__main__, espnet3.config.experiment, espnet3.parallel\n"
        "for m in pkgutil.iter_modules(espnet3.stages.__path__): importlib.import_module('espnet3.stages.' + m.name)\n"
        "bad = sorted({'torch', 'lightning', 'lhotse', 'datasets'} & set(sys.modules))\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
