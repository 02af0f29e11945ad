"""An experiment's configuration: Hydra compose, then plain data.

One experiment is one file, ``config/<experiment>.yaml``; its ``defaults:`` list picks groups (``config/model/…``).
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from espnet3.config.schema import validate
from espnet3.errors import UserError, did_you_mean

CONFIG_DIR = "config"


def experiment_names(config_dir: str | os.PathLike = CONFIG_DIR) -> list[str]:
    """The experiments that exist: the YAML files that lie directly in *config_dir*."""
    names = sorted(path.stem for path in Path(config_dir).glob("*.yaml"))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(
                f"{config_dir}/{name}.yaml: an experiment's name may hold letters, digits, '_' and '-' only"
            )
    return names


def load_config(name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike = CONFIG_DIR) -> dict[str, Any]:
    """The resolved, validated configuration of experiment *name* as plain dicts and lists.

    Args:
        name: file name in *config_dir* without ``.yaml``.
        overrides: Hydra overrides such as ``decode.beam=4`` or ``model=conformer_small``.

    Raises:
        UserError: no such experiment, a key or a value that the schema refuses, an interpolation that leads nowhere.
    """
    known = experiment_names(config_dir)
    if name not in known:
        raise UserError(f"{config_dir}/{name}.yaml: no such experiment{did_you_mean(name, known)}")
    return validate(_compose(name, list(overrides), config_dir), where=f"{config_dir}/{name}.yaml")


def load_configs(
    names: Iterable[str], overrides: str = "", config_dir: str | os.PathLike = CONFIG_DIR
) -> dict[str, dict]:
    """Configurations of several experiments under one override string, as ``--config overrides="…"`` gives it.

    An override is for every experiment that has its key; ``asr:decode.beam=4`` is for experiment ``asr`` alone.

    Raises:
        UserError: as :func:`load_config`, and where an override fits no experiment.
    """
    names = list(names)
    chosen: dict[str, list[str]] = {name: [] for name in names}
    for item in shlex.split(overrides or ""):
        name, colon, rest = item.partition(":")
        if colon and name in chosen:
            chosen[name].append(rest)
            continue
        refused = None
        taken = 0
        for name in names:
            try:
                _compose(name, [item], config_dir)
            except UserError as error:
                refused = refused or error
            else:
                chosen[name].append(item)
                taken += 1
        if not taken and refused:
            raise refused
    return {name: load_config(name, chosen[name], config_dir) for name in names}


def _compose(name: str, overrides: list[str], config_dir: str | os.PathLike) -> dict[str, Any]:
    files = sorted(Path(config_dir).rglob("*.yaml"))
    stamps = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    return copy.deepcopy(_composed(name, tuple(overrides), str(config_dir), stamps))


@lru_cache(maxsize=256)
def _composed(name: str, overrides: tuple[str, ...], config_dir: str, stamps: tuple) -> dict[str, Any]:
    where = f"{config_dir}/{name}.yaml"
    try:
        with initialize_config_dir(str(Path(config_dir).resolve()), version_base="1.3"):
            config = compose(name, overrides=list(overrides))
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{where}: {_first_line(error, name, config_dir)}") from None
    except Exception as error:  # YAML errors carry a mark: file, line and column
        mark = getattr(error, "problem_mark", None)
        if mark is None:
            raise
        raise UserError(f"{mark.name}:{mark.line + 1}: {getattr(error, 'problem', error)}") from None


def _first_line(error: Exception, name: str, config_dir: str | os.PathLike) -> str:
    """Hydra's message on one line, with the nearest key where an override names one that does not exist."""
    text = " ".join(str(error).split())
    match = re.search(r"Could not override '([^']+)'", text)
    if not match:
        return text
    key = match.group(1)
    parent, _, last = key.rpartition(".")
    try:
        node: Any = _compose(name, [], config_dir)
        for part in filter(None, parent.split(".")):
            node = node[part]
    except (UserError, KeyError, TypeError):
        return f"there is no key '{key}' to override"
    return f"there is no key '{key}' to override{did_you_mean(last, node if isinstance(node, dict) else ())}"
