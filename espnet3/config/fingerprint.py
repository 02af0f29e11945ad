"""Digests of the code that a stage runs: the import closure of its module inside espnet3, comments and docstrings aside.

Left out are the modules that decide where and how a job runs but not what it computes (:data:`INFRASTRUCTURE`); that
engines, shard counts and retries leave the bytes alone is a tested contract, so an edit there must not cost a training.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from espnet3.config.instantiate import ALLOWED
from espnet3.config.signature import module_file

INFRASTRUCTURE = ("espnet3", "espnet3.__main__", "espnet3.io", "espnet3.errors", "espnet3.config", "espnet3.parallel")


def code_digests(roots: Iterable[str], config: Any = None) -> dict[str, str]:
    """``{module: digest}`` of everything that the modules *roots*, and the targets named in *config*, import.

    Modules of the user's own (a target outside the built-in allowlist) count with their own file.
    """
    pending = list(roots) + [t.rpartition(".")[0] for t in targets(config)]
    seen: dict[str, str] = {}
    while pending:
        module = pending.pop()
        if module in seen or not _counts(module):
            continue
        path = module_file(module)
        if path is None or path.suffix != ".py":
            # `from package import name` lists the name too; it may be no module
            continue
        seen[module] = file_digest(path)
        pending += imported(path, module)
        pending += _parents(module)
    return dict(sorted(seen.items()))


def targets(node: Any) -> list[str]:
    """All ``_target_`` names in *node*."""
    if isinstance(node, dict):
        own = [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        return own + [t for value in node.values() for t in targets(value)]
    if isinstance(node, (list, tuple)):
        return [t for value in node for t in targets(value)]
    return []


def _counts(module: str) -> bool:
    top = module.partition(".")[0]
    if top == "espnet3":
        return not any(
            module == name or (name != "espnet3" and module.startswith(name + ".")) for name in INFRASTRUCTURE
        )
    if any(module == p or module.startswith(p + ".") for p in ALLOWED):
        return False
    # of other packages only those that lie in the working tree are the user's code
    path = module_file(top)
    return path is not None and Path.cwd() in path.resolve().parents and "site-packages" not in path.parts


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imported(path: Path, module: str) -> tuple[str, ...]:
    """Modules that the file at *path* imports, anywhere in it: also the imports inside functions."""
    names = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if path.name == "__init__.py" else 0)
                base = ".".join(parts[:keep] + ([base] if base else []))
            names += [base] + [f"{base}.{alias.name}" for alias in node.names]
    return tuple(sorted({n for n in names if n}))


@cache
def file_digest(path: Path) -> str:
    """Digest of the file's syntax tree without comments, docstrings and layout; equal for one Python version."""
    tree = _parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
