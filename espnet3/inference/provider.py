"""What a decoding worker needs: the data set, the model with its weights, the search and the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.inference.search import build_search
from espnet3.inference.timestamps import frame_seconds
from espnet3.parallel import InferenceProvider
from espnet3.text.tokenizer import Tokenizer


def pick_device(execution: Mapping[str, Any] | None = None) -> torch.device:
    """The device of ``execution: {accelerator: auto | cpu | gpu | cuda}``; a worker decodes on one.

    Raises:
        UserError: an accelerator is asked for that this machine lacks.
    """
    wanted = (execution or {}).get("accelerator", "auto")
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted in ("auto", "cpu"):
        return torch.device("cpu")
    raise UserError(f"execution.accelerator: this machine has no '{wanted}'; use auto or cpu")


def load_model(
    model: dict[str, Any],
    vocab_size: int,
    weights: str | os.PathLike,
    device: torch.device | str = "cpu",
    allow: tuple[str, ...] = (),
) -> nn.Module:
    """Build the ``model:`` section, fill it with a safetensors file, ready for inference.

    Raises:
        UserError: the file is absent or damaged, or its tensors are not the model's.
    """
    built = instantiate(model, allow=allow, vocab_size=vocab_size)
    try:
        state = load_file(weights, device=str(device))
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: not a readable safetensors file ({error})") from None
    built = built.to(device)
    own = built.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) + sorted(
        name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
    )
    if wrong:
        raise UserError(
            f"{weights}: does not fit the model of the configuration and its {vocab_size} tokens ({len(wrong)} tensors "
            f"differ, the first is {wrong[0]}); average the checkpoints of this configuration again"
        )
    built.load_state_dict(state)
    return built.eval()


class DecodeProvider(InferenceProvider):
    """``{"dataset", "model", "tokenizer", "search", "device"}`` for :class:`espnet3.inference.runner.DecodeRunner`, and
    ``frame_seconds`` where the decoding wants timestamps.

    Args:
        config: ``conf`` (the decode stage's slice), ``manifest``, ``weights`` (safetensors), ``tokens`` (the
            tokenizer's folder), ``execution``, and ``lm`` (safetensors) where the decoding has an ``lm_weight``.
        params: further entries of the environment.
    """

    @staticmethod
    def build_dataset(config: Mapping[str, Any]) -> Any:
        """The manifest as an :class:`espnet3.data.dataset.ESPnet3Dataset`."""
        from espnet3.data.dataset import ESPnet3Dataset

        return ESPnet3Dataset(config["manifest"])

    @staticmethod
    def build_model(config: Mapping[str, Any]) -> nn.Module:
        """The model on its device, in evaluation mode."""
        conf = config["conf"]
        tokenizer = Tokenizer.load(config["tokens"], conf["tokenizer"]["type"])
        device = pick_device(config.get("execution"))
        return load_model(conf["model"], len(tokenizer), config["weights"], device, tuple(conf.get("allow", ())))

    def build_env_local(self) -> dict[str, Any]:
        """See :class:`DecodeProvider`."""
        conf = self.config["conf"]
        env = super().build_env_local()
        tokenizer = Tokenizer.load(self.config["tokens"], conf["tokenizer"]["type"])
        device = pick_device(self.config.get("execution"))
        lm = None
        if conf["decode"].get("lm_weight") and self.config.get("lm"):
            allow = tuple(conf.get("allow", ()))
            lm = load_model(conf["lm"]["model"], len(tokenizer), self.config["lm"], device, allow)
        search = build_search(env["model"], conf["decode"], lm=lm, tokens=tokenizer.tokens)
        timing = {}
        if conf["decode"].get("timestamps"):
            timing = {"frame_seconds": frame_seconds(env["model"], conf["data"]["sampling_rate"])}
        return {"tokenizer": tokenizer, "search": search, "device": device, **timing, **env}
