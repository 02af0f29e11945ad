"""Objects from ``_target_`` nodes, through an allowlist that is checked on what the name resolves to.

A name such as ``lhotse.dataset.os.system`` starts well and ends in a shell: so the check is made twice, on the name before
anything is imported, and on the module and qualified name of the object found (the class of hole is NeMo's
CVE-2025-23304 and Hydra's GHSA-37p2-j732-x8pj).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from typing import Any

from espnet3.errors import UserError

ALLOWED = (
    "espnet3",
    "torch.optim",
    "torch.nn",
    "lightning.pytorch",
    "lightning.fabric.plugins",
    "lhotse.dataset",
    "lhotse.augmentation",
    "lhotse.cut",
)


def allowed_prefixes(extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The packages that targets may come from: the built-in list, an experiment's ``allow:``, and ``ESPNET3_ALLOW``."""
    return ALLOWED + tuple(extra) + tuple(filter(None, os.environ.get("ESPNET3_ALLOW", "").split(",")))


def check_name(target: str, allow: tuple[str, ...] = (), where: str = "_target_") -> None:
    """Refuse a dotted name that is not under an allowed package, without importing it."""
    if not any(target.startswith(prefix + ".") for prefix in allowed_prefixes(allow)):
        raise UserError(
            f"{where}: {target} is outside the allowed packages ({', '.join(allowed_prefixes(allow))}); "
            "for code of your own add its package to the experiment's 'allow:' list"
        )


def locate(target: str, allow: tuple[str, ...] = ()) -> Any:
    """The class or function that *target* names.

    Raises:
        UserError: it is outside the allowlist (by its name, or by where it is really defined), or does not exist.
    """
    check_name(target, allow)
    parts = target.split(".")
    found: Any = None
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise UserError(f"_target_ {target}: its module needs '{error.name}', which is not installed") from None
        break
    if found is None:
        raise UserError(f"_target_ {target}: there is no such module")
    for part in parts[length:]:
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UserError(f"_target_ {target}: {getattr(found, '__name__', found)} has no '{part}'") from None
        if inspect.ismodule(found):
            check_name(found.__name__ + ".", allow, where=f"_target_ {target}")
    if not (inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)):
        raise UserError(f"_target_ {target}: neither a class nor a function")
    real = f"{found.__module__}.{found.__qualname__}"
    if not any(real.startswith(prefix + ".") for prefix in allowed_prefixes(allow)):
        raise UserError(f"_target_ {target}: is really {real}, which is outside the allowed packages")
    return found


def instantiate(node: Any, *, allow: tuple[str, ...] = (), **extra: Any) -> Any:
    """Build *node*: nested nodes first, then the target with the node's keys and *extra* as keyword arguments.

    A node without ``_target_`` is returned as plain data with its nested nodes built. ``_partial_: true`` gives a
    ``functools.partial``, for objects that need arguments known only later.

    Raises:
        UserError: the allowlist refuses a target, or the target refuses its arguments.
    """
    if isinstance(node, (list, tuple)):
        return [instantiate(item, allow=allow) for item in node]
    if not isinstance(node, dict):
        return node
    built = {k: instantiate(v, allow=allow) for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return {**built, **extra}
    target = locate(node["_target_"], allow)
    arguments = {**built, **extra}
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"_target_ {node['_target_']}: {error}") from None
    except ValueError:  # no signature to be had
        pass
    return target(**arguments)
