"""ESPnet2's own models (extra ``espnet``): built by ESPnet2, with this package's contract around them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet3.errors import UserError

TASKS = "espnet2.tasks."


def build(
    task: str,
    config: Mapping[str, Any],
    vocab_size: int | None = None,
    cmvn: str | os.PathLike | None = None,
    frontend: nn.Module | None = None,
) -> nn.Module:
    """The model that an ESPnet2 task builds from its configuration; its tensors keep ESPnet2's names.

    Args:
        task: such as ``espnet2.tasks.asr.ASRTask``.
        config: ESPnet2's configuration, or the part of it that builds the model; ESPnet2's defaults for the rest.
        vocab_size: number of tokens, where the configuration has no ``token_list``.
        cmvn: statistics for ``normalize: global_mvn``; None leaves them to a checkpoint.
        frontend: what the stats stage uses; ESPnet2 builds its own.

    Raises:
        UserError: ESPnet2 is not installed, the task does not exist, or ESPnet2 refuses the configuration.
    """
    settings = dict(config)
    tokens = settings.get("token_list")
    if tokens is None:
        if vocab_size is None:
            raise UserError("model.config: no token_list, and no tokenizer whose size could stand in for it")
        settings["token_list"] = ["<blank>", "<unk>", *(f"<{i}>" for i in range(2, vocab_size - 1)), "<sos/eos>"]
        # error rates of tokens without a text mean nothing
        settings["model_conf"] = {"report_cer": False, "report_wer": False, **(settings.get("model_conf") or {})}
    elif vocab_size is not None and len(tokens) != vocab_size:
        raise UserError(f"model.config: token_list has {len(tokens)} tokens, the tokenizer has {vocab_size}")
    chosen = load_task(task)
    # the parser's defaults, and not those that the command line of this process would give
    defaults = vars(chosen.get_parser().parse_known_args([])[0])
    arguments = {**defaults, **settings}
    normalize = arguments.get("normalize")
    if normalize == "global_mvn":
        arguments["normalize"] = None
    try:
        model = chosen.build_model(argparse.Namespace(**arguments))
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, ImportError) as error:
        raise UserError(f"model.config: {task} refuses it: {' '.join(str(error).split()) or repr(error)}") from None
    if normalize == "global_mvn":
        model.normalize = _global_mvn(model.frontend.output_size(), arguments.get("normalize_conf") or {}, cmvn)
    kind = type(model)
    model.__class__ = type(f"ESPnet2{kind.__name__}", (_Contract, kind), {"__module__": __name__})
    model.token_list_given = tokens is not None
    return model


class _Contract:
    """What differs from this package's contract in ESPnet2's models; state and computation stay ESPnet2's."""

    inside_forward = False

    @property
    def blank(self) -> int:
        return self.blank_id

    def forward(self, *args: Any, **batch: Any) -> tuple[Tensor, dict[str, Tensor | None], Tensor]:
        self.inside_forward = True
        try:
            loss, stats, weight = super().forward(*args, **batch)
        finally:
            self.inside_forward = False
        # ESPnet2 makes vectors of scalars for DataParallel
        stats = {name: value.squeeze() if isinstance(value, Tensor) else value for name, value in stats.items()}
        return loss.squeeze(), stats, weight.squeeze()

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        feats, lengths = self._extract_feats(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.inside_forward:
            return super().encode(speech, speech_lengths)
        # alone, as ESPnet2 decodes: its subsampling and convolutions let padding leak into shorter utterances
        alone, lengths = [], []
        for waveform, length in zip(speech, speech_lengths, strict=True):
            memory, frames = super().encode(waveform[None, : int(length)], length[None])
            alone.append((memory[0] if isinstance(memory, tuple) else memory)[0])
            lengths.append(frames)
        return nn.utils.rnn.pad_sequence(alone, batch_first=True), torch.cat(lengths)


class Frontend(nn.Module):
    """The features of an ESPnet2 model, for the statistics: ``(speech, lengths) -> (features, lengths)``."""

    def __init__(self, task: str, frontend: str = "default", frontend_conf: Mapping[str, Any] | None = None):
        super().__init__()
        choices = vars(sys.modules[load_task(task).__module__]).get("frontend_choices")
        if choices is None:
            raise UserError(f"model.task: {task} has no frontends to compute statistics of")
        try:
            self.frontend = choices.get_class(frontend)(**(frontend_conf or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"model.config: frontend: {' '.join(str(error).split())}") from None
        self.output_size = self.frontend.output_size()

    @torch.no_grad()
    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.frontend(speech, speech_lengths)


def load_task(name: str) -> Any:
    """The task class *name*.

    Raises:
        UserError: it is not one of ESPnet2's, or ESPnet2 is not installed.
    """
    if not name.startswith(TASKS):
        raise UserError(f"model.task: {name} is not one of ESPnet2's tasks ({TASKS}asr.ASRTask, ...)")
    module, _, attribute = name.rpartition(".")
    try:
        without_torchaudio_binaries()
        # some of what it imports prints, or tries a download
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith(TASKS):
            raise UserError(f"model.task: ESPnet2 has no {name}") from None
        raise UserError(
            f"model.task: {name} needs '{error.name}', which is not installed; docs/training.md says how to install ESPnet2"
        ) from None
    except AttributeError:
        raise UserError(f"model.task: ESPnet2 has no {name}") from None


def without_torchaudio_binaries() -> None:
    """Let torchaudio be imported where its compiled part cannot be loaded.

    torchaudio's wheels are built for CUDA and fail at import beside PyTorch for CPUs; what ESPnet2 needs of it is Python.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
    """
    try:
        importlib.import_module("torchaudio")
    except OSError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
        extension._IS_ALIGN_AVAILABLE = False
        extension.fail_if_no_align = _no_alignment
        sys.modules["torchaudio._extension"] = extension
        importlib.import_module("torchaudio")


def _no_alignment(function: Any) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled part, which cannot be loaded here")

    return refuse


def _global_mvn(size: int, settings: Mapping[str, Any], cmvn: str | os.PathLike | None) -> nn.Module:
    from espnet2.layers.global_mvn import GlobalMVN

    with tempfile.TemporaryDirectory() as folder:
        path = cmvn
        if path is None:
            path = Path(folder, "cmvn.npz")
            np.savez(path, count=1, sum=np.zeros(size, np.float32), sum_square=np.ones(size, np.float32))
        layer = GlobalMVN(str(path), **settings)
    if layer.mean.numel() != size or not (layer.mean.isfinite().all() and layer.std.isfinite().all()):
        raise UserError(f"{cmvn}: not finite statistics of {size} channels; rebuild the stats stage")
    layer.mean, layer.std = layer.mean.float(), layer.std.float()
    return layer


def check_tokens(model: nn.Module, tokens: Sequence[str]) -> None:
    """Hold the tokens of an ESPnet2 configuration against the tokenizer's.

    Raises:
        UserError: they differ.
    """
    if not getattr(model, "token_list_given", False) or list(model.token_list) == list(tokens):
        return
    odd = next((i for i, (a, b) in enumerate(zip(model.token_list, tokens, strict=False)) if a != b), len(tokens))
    raise UserError(
        f"model.config: token_list differs from the tokenizer's tokens from number {odd} on; remove token_list from it to train "
        "on the tokenizer's, or use the tokens.txt that belongs to it"
    )
