"""The house's floors: an import only points down (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from espnet3.config.fingerprint import imported

FLOORS = [
    {"io", "errors"},
    {"config"},
    {"models", "parallel"},
    {"data", "text", "trainer", "inference", "metrics", "report"},
    {"stages"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PACKAGE = Path(__file__).resolve().parents[1] / "espnet3"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_downwards(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    module = ".".join(("espnet3", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for name in imported(path, module):
        parts = name.split(".")
        if parts[0] == "espnet3" and len(parts) > 1 and parts[1] in FLOOR:
            other = parts[1]
            assert FLOOR[other] <= FLOOR[room], f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_a_small_room(path):
    assert len(path.read_text().splitlines()) <= 400


def test_models_and_parallel_know_nothing_of_the_rest():
    for room in ("models", "parallel"):
        for path in (PACKAGE / room).rglob("*.py"):
            names = set(imported(path, f"espnet3.{room}.{path.stem}"))
            allowed = {"io", "errors", "config", room}
            others = {n for n in names if n.startswith("espnet3.") and n.split(".")[1] not in allowed}
            assert not others, f"{path.name}: {sorted(others)}"


def test_public_functions_and_classes_have_docstrings():
    missing = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and path.name != "__main__.py" and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert not missing, missing
