"""An experiment's configuration: Hydra compose, then plain data.

One experiment is one file, ``config/<experiment>.yaml``; its ``defaults:`` list picks groups (``config/model/…``).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from espnet3.config.schema import validate
from espnet3.errors import UserError, did_you_mean
from espnet3.io import atomic_write

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
    remembered = _remembered(name, overrides, config_dir, stamps)
    if remembered is not None:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(remembered.read_text(encoding="utf-8"))
    composed = _compose_anew(name, overrides, config_dir)
    if remembered is not None and json.loads(json.dumps(composed)) == composed:
        with contextlib.suppress(OSError):
            # not sorted: the first decoding is the one that a pack takes
            with atomic_write(remembered) as handle:
                json.dump(composed, handle)
    return composed


def _remembered(name: str, overrides: tuple[str, ...], config_dir: str, stamps: tuple) -> Path | None:
    """Where, beside Snakemake's own records, lies what the experiment was composed to; None: nowhere.

    Composing takes 0.1 CPU seconds an experiment, in every dry run and every cluster job. The place's name is a digest of
    everything that the result depends on: all texts in *config_dir*, and the environment that they name.
    """
    if not Path(".snakemake").is_dir():
        return None
    texts, variables = _texts(config_dir, stamps)
    variables = variables | _variables(" ".join(overrides))
    if None in variables:
        return None
    seen = {variable: os.environ.get(variable) for variable in sorted(variables)}
    key = hashlib.sha256(repr((sys.version, texts, name, overrides, seen)).encode()).hexdigest()[:32]
    return Path(".snakemake/espnet3", f"composed-{key}.json")


_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)")
# what the texts alone do not tell
_UNFORESEEN = re.compile(r"\$\{\s*(?:now\s*:|hydra\s*:|oc\.env\s*:\s*[^\w\s])")


def _variables(text: str) -> set[str | None]:
    """The environment variables that *text* reads; None among them where a result cannot be foreseen."""
    return {*_VARIABLE.findall(text), *((None,) if _UNFORESEEN.search(text) else ())}


@lru_cache(maxsize=8)
def _texts(config_dir: str, stamps: tuple) -> tuple[str, frozenset[str | None]]:
    """Digest of the files of *config_dir*, and the environment variables that they name."""
    digest, variables = hashlib.sha256(), set()
    for path, _ in stamps:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        digest.update(f"{path}\0{len(text)}\0{text}".encode())
        variables |= _variables(text)
    return digest.hexdigest(), frozenset(variables)


def _compose_anew(name: str, overrides: tuple[str, ...], config_dir: str) -> dict[str, Any]:
    # 0.2 CPU seconds of imports that a remembered result does not need
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

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
