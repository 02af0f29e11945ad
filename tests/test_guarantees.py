"""Each promise of docs/guarantees.md names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from product import REPOSITORY


def test_every_promise_has_its_test():
    text = (REPOSITORY / "docs/guarantees.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| promise" not in line]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) == len(rows) > 40, "each row names one test"
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(REPOSITORY / path)]
    assert not missing, missing


def _functions(path: Path) -> set[str]:
    return (
        {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if path.exists()
        else set()
    )
