"""Digests of the code that a stage runs: the import closure of its module inside espnet3, comments and docstrings aside.

Left out are the modules that decide where and how a job runs but not what it computes (:data:`INFRASTRUCTURE`); that
engines, shard counts and retries leave the bytes alone is a tested contract, so an edit there must not cost a training.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from espnet3.config.instantiate import ALLOWED
from espnet3.config.signature import module_file
from espnet3.io import write_json

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


def imported(path: Path, module: str) -> tuple[str, ...]:
    """Modules that the file at *path* imports, anywhere in it: also the imports inside functions."""
    names = []
    for level, base, *aliases in _facts(path)["imports"]:
        if level:
            parts = module.split(".")
            keep = len(parts) - level + (1 if path.name == "__init__.py" else 0)
            base = ".".join(parts[:keep] + ([base] if base else []))
        names += [base, *(f"{base}.{alias}" for alias in aliases)]
    return tuple(sorted({n for n in names if n}))


def file_digest(path: Path) -> str:
    """Digest of the file's syntax tree without comments, docstrings and layout; equal for one Python version."""
    return _facts(path)["digest"]


@cache
def _facts(path: Path) -> dict[str, Any]:
    """``{"digest", "imports"}`` of a source file.

    Parsing all of espnet3 takes half a CPU second, in every dry run and every cluster job; so what a text parses to is
    remembered beside Snakemake's own records, under the digest of that text.
    """
    source = path.read_bytes()
    key = hashlib.sha256(sys.version.encode() + source).hexdigest()[:32]
    remembered = Path(".snakemake/espnet3", key + ".json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts = json.loads(remembered.read_text(encoding="utf-8"))
        return {"digest": facts["digest"], "imports": facts["imports"]}
    facts = _parse(source, path)
    if remembered.parent.parent.is_dir():
        with contextlib.suppress(OSError):
            write_json(remembered, facts)
    return facts


def _parse(source: bytes, path: Path) -> dict[str, Any]:
    tree = ast.parse(source, filename=str(path))
    imports: list[list] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [[0, alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append([node.level, node.module or "", *(alias.name for alias in node.names)])
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return {"digest": hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], "imports": imports}
