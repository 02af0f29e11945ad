"""``model: {task: espnet2.tasks.asr.ASRTask, config: …}`` as an ordinary ``_target_`` node.

The ESPnet2 configuration file is read here, when the workflow is parsed, and what builds the model is put into the
section: so it is part of the slices, an edit of the file makes the training stale, and no job reads it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from espnet3.errors import UserError
from espnet3.io import read_json

TARGET = "espnet3.models.espnet2.build"
HUGGING_FACE = "espnet3.models.huggingface."
PARTS = ("frontend", "specaug", "normalize", "preencoder", "encoder", "postencoder", "decoder", "model")
PARTS += ("deliberationencoder", "postdecoder")
KEPT = {*PARTS, *(f"{part}_conf" for part in PARTS), "token_list", "transcript_token_list", "init", "input_size"}
KEPT |= {"ctc_conf", "joint_net_conf", "aux_ctc_tasks"}
"""Keys of an ESPnet2 configuration that build the model; the others say how ESPnet2 trains it."""

LOGMEL = {"center": True, "normalized": False, "onesided": True, "apply_stft": True}
"""ESPnet2's defaults that :class:`espnet3.models.logmel.LogMel` stands for."""
LOGMEL_KEYS = {"fs", "n_fft", "win_length", "hop_length", "window", "n_mels", "fmin", "fmax", "htk"}


def expand_task(model: Mapping[str, Any], sampling_rate: int | None = None) -> dict[str, Any]:
    """A model section with ``task`` and ``config`` (a path or a mapping) as a node; any other section as it is.

    A Hugging Face model in a folder gets the configuration that lies there.

    Args:
        sampling_rate: of the data in Hz, held against the frontend's.

    Raises:
        UserError: no such file or no mapping in it, features in place of audio, or another sampling rate.
    """
    if str(model.get("_target_", "")).startswith(HUGGING_FACE):
        return _with_config(model)
    if "task" not in model or model.get("_target_", TARGET) != TARGET:
        return dict(model)
    section = dict(model)
    config = read_espnet2(section.get("config"))
    if config.get("input_size") is not None:
        raise UserError("model.config: input_size is set, but models are fed with waveforms here; set it to null")
    features = config.get("frontend_conf") or {}
    rate = hertz(features.get("fs", 16000))
    if sampling_rate and config.get("frontend", "default") == "default" and rate != sampling_rate:
        raise UserError(
            f"model.config: frontend_conf.fs is {rate} Hz, data.sampling_rate is {sampling_rate} Hz; make them equal"
        )
    section |= {"_target_": TARGET, "config": config}
    if config.get("normalize") == "global_mvn":
        # what the stats stage computes its statistics of
        section["frontend"] = _frontend(section["task"], config.get("frontend", "default"), features)
    return section


def _with_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """A Hugging Face model with the configuration of the folder that it names; a name on the hub stays a name."""
    section = dict(model)
    path = Path(str(section.get("model") or ""), "config.json")
    if section.get("model") and path.is_file():
        section["config"] = {**read_json(path), **(section.get("config") or {})}
    return section


def _frontend(task: str, name: str, features: Mapping[str, Any]) -> dict[str, Any]:
    """The usual frontend needs no ESPnet2; any other is ESPnet2's own."""
    plain = {key: value for key, value in features.items() if LOGMEL.get(key, key) != value}
    if name == "default" and plain.keys() <= LOGMEL_KEYS:
        return {"_target_": "espnet3.models.logmel.LogMel", **plain, "fs": hertz(plain.get("fs", 16000))}
    return {
        "_target_": "espnet3.models.espnet2.Frontend",
        "task": task,
        "frontend": name,
        "frontend_conf": dict(features),
    }


def read_espnet2(config: str | os.PathLike | Mapping[str, Any] | None) -> dict[str, Any]:
    """What builds the model in an ESPnet2 configuration: a file's path, or its content.

    Raises:
        UserError: the file cannot be read, or is no mapping.
    """
    where = "model.config"
    if not isinstance(config, Mapping):
        where = str(config)
        try:
            config = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except (OSError, TypeError):
            raise UserError(
                f"model.config: there is no file {where}; give the config.yaml of an ESPnet2 model"
            ) from None
        except yaml.YAMLError as error:
            raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: not an ESPnet2 configuration (a mapping of keys)")
    kept = {key: value for key, value in config.items() if key in KEPT}
    if isinstance(kept.get("token_list"), str):
        path = Path(kept["token_list"])
        try:
            kept["token_list"] = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            raise UserError(f"{where}: token_list: there is no file {path}") from None
    # the statistics come from the stats stage, or lie in a checkpoint
    normalize = dict(kept.get("normalize_conf") or {})
    normalize.pop("stats_file", None)
    return kept | ({"normalize_conf": normalize} if normalize else {"normalize_conf": {}})


def hertz(value: Any) -> int:
    """ESPnet2's ``fs``: 8000, ``8000`` or ``8k``."""
    text = str(value).lower()
    return int(float(text[:-1]) * 1000) if text.endswith("k") else int(text)
