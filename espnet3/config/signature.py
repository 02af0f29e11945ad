"""What a ``_target_`` accepts, read from its source without importing it.

Importing a model's module to look at its signature would import torch (2.5 CPU seconds), once in every cluster job.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

from espnet3.config.instantiate import check_name
from espnet3.errors import UserError, did_you_mean

CONTROL = frozenset({"_target_", "_partial_"})


def check_targets(node: Any, path: str = "", allow: tuple[str, ...] = ()) -> None:
    """Refuse, anywhere in *node*, a target outside the allowlist, one of ours that does not exist, an unknown argument.

    Raises:
        UserError: naming the key, with the nearest name that exists.
    """
    if isinstance(node, list):
        for number, item in enumerate(node):
            check_targets(item, f"{path}.{number}".lstrip("."), allow)
        return
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    if target is not None:
        if not isinstance(target, str):
            raise UserError(f"{path}._target_: must be a dotted name, not {target!r}")
        check_name(target, allow, where=f"{path}._target_")
        known = parameters(target)
        if known is None and target.startswith("espnet3.") and _definition(target) is None:
            raise UserError(f"{path}._target_: {target} does not exist{_nearest(target)}")
        for key in node:
            if known is not None and key not in known and key not in CONTROL:
                raise UserError(f"unknown key '{path}.{key}'{did_you_mean(key, known)}")
    for key, value in node.items():
        check_targets(value, f"{path}.{key}".lstrip("."), allow)


@cache
def parameters(target: str) -> frozenset[str] | None:
    """Names of the arguments that *target* (a dotted class or function) takes; None: anything, or not to be told."""
    found = _definition(target)
    if found is None:
        return None
    node, module = found
    if isinstance(node, ast.ClassDef):
        node = _init_of(node, module)
        if node is None:
            return None
        if isinstance(node, frozenset):
            return node
        arguments = node.args.posonlyargs + node.args.args
        arguments = arguments[1:]
    else:
        arguments = node.args.posonlyargs + node.args.args
    if node.args.kwarg is not None:
        return None
    return frozenset(a.arg for a in arguments + node.args.kwonlyargs)


def _init_of(node: ast.ClassDef, module: str) -> ast.FunctionDef | frozenset[str] | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = (i.target.id for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name))
        return frozenset(fields) if not node.bases else None
    for base in node.bases:
        if isinstance(base, ast.Name):
            found = _definition(f"{module}.{base.id}")
            if found and isinstance(found[0], ast.ClassDef):
                return _init_of(*found)
    return None


@cache
def _definition(target: str, depth: int = 0) -> tuple[ast.ClassDef | ast.FunctionDef, str] | None:
    """The node that defines *target* and its module's name; imports are followed a few steps."""
    module, _, name = target.rpartition(".")
    tree = _tree(module)
    if tree is None or depth > 4:
        return None
    stars = []
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{source}.{alias.name}", depth + 1)
                if alias.name == "*":
                    stars.append(source)
    for source in stars:
        found = _definition(f"{source}.{name}", depth + 1)
        if found:
            return found
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    path = module_file(module)
    parts = module.split(".")
    keep = len(parts) - node.level + (1 if path and path.name == "__init__.py" else 0)
    return ".".join(parts[:keep] + ([node.module] if node.module else []))


@cache
def module_file(name: str) -> Path | None:
    """The source file of module *name*; only its top-level package is looked up, nothing is imported."""
    top, *rest = name.split(".")
    if not top:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and os.path.exists(spec.origin) else None
    for root in spec.submodule_search_locations or ():
        base = Path(root, *rest)
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.exists():
                return path
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    path = module_file(module)
    if path is None or path.suffix != ".py":
        return None
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, OSError):
        return None


def _nearest(target: str) -> str:
    module, _, name = target.rpartition(".")
    tree = _tree(module)
    if tree is None:
        return f" (there is no module {module})"
    return did_you_mean(name, [n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))])
