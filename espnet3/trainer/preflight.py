"""What can be known to go wrong before hours of training: transcripts, symbols, devices, the disk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.io import read_json, require_space, write_json
from espnet3.models.ctc import frames_needed
from espnet3.trainer.state import KEEP_ALL_BYTES

log = logging.getLogger(__name__)

MAX_TOO_SHORT = 0.1
"""Part of the utterances that may be too short for CTC before training is refused."""


def check(
    dataset: Any, tokenizer: Any, model: torch.nn.Module, sampling_rate: int, report: Path, where: str
) -> dict[str, Any]:
    """Hold transcripts of *dataset* (one with ``cuts``) against the vocabulary and against the encoder's frames.

    CTC needs a frame for each label and a blank between equal ones; an utterance with fewer frames gives no CTC loss. What
    is found is logged and written to *report*, which stands in for another look where it exists.

    Raises:
        UserError: most symbols are unknown, or more than a tenth of the utterances are too short.
    """
    found = _known(report)
    if found is None:
        found = _look(dataset, tokenizer, model, sampling_rate)
        write_json(report, found)
    too_short, with_unknown, number = found["too_short_for_ctc"], found["with_unknown"], found["utterances"]
    if with_unknown:
        shown = ", ".join(repr(u) for u, _ in Counter(found["unknown"]).most_common(5))
        log.warning("%s: %d utterances hold symbols that the token list lacks (%s)", where, len(with_unknown), shown)
    if too_short:
        log.warning(
            "%s: %d of %d utterances have fewer encoder frames than CTC needs for their transcript: %s",
            where,
            len(too_short),
            number,
            " ".join(too_short[:5]) + (" ..." if len(too_short) > 5 else ""),
        )
    if len(too_short) > MAX_TOO_SHORT * number:
        raise UserError(
            f"{where}: {len(too_short)} of {number} utterances are too short for CTC (such as {too_short[0]}, all in "
            f"{report}); lower model.encoder.subsampling or use longer tokens"
        )
    if len(with_unknown) == number > 0:
        raise UserError(f"{where}: every transcript has symbols that the token list lacks; rebuild the tokenizer stage")
    return found


def _known(report: Path) -> dict[str, Any] | None:
    try:
        found = read_json(report)
        return found if {"utterances", "too_short_for_ctc", "with_unknown", "unknown"} <= found.keys() else None
    except (UserError, AttributeError):
        return None


def _look(dataset: Any, tokenizer: Any, model: torch.nn.Module, sampling_rate: int) -> dict[str, Any]:
    unknown: Counter[str] = Counter()
    with_unknown: list[str] = []
    ids, needed, samples = [], [], []
    for cut in dataset.cuts:
        text = " ".join(s.text or "" for s in cut.supervisions)
        encoded = tokenizer.encode(text)
        if tokenizer.unknown in encoded:
            with_unknown.append(cut.id)
            units = tokenizer.text_to_tokens(text)
            unknown.update(u for u, i in zip(units, encoded, strict=False) if i == tokenizer.unknown)
        ids.append(cut.id)
        needed.append(frames_needed(encoded))
        samples.append(round(cut.duration * sampling_rate))
    too_short: list[str] = []
    if hasattr(model, "output_lengths") and ids:
        frames = model.output_lengths(torch.tensor(samples)).tolist()
        too_short = [uid for uid, have, need in zip(ids, frames, needed, strict=True) if have < need]
    found = {
        "utterances": len(ids),
        "too_short_for_ctc": too_short,
        "with_unknown": with_unknown,
        "unknown": dict(unknown),
    }
    return found


def check_devices(execution: Mapping[str, Any]) -> None:
    """Hold ``execution.accelerator`` and ``devices`` against what this process sees.

    Raises:
        UserError: there is no such accelerator, or there are fewer devices than asked for.
    """
    asked = str(execution.get("accelerator", "auto")).lower()
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind = {"gpu": "cuda" if there["cuda"] or not there["mps"] else "mps"}.get(asked, asked)
    if kind == "auto":
        kind = next((name for name, number in there.items() if number), "cpu")
    if kind not in there:
        return
    number = there[kind]
    if not number:
        raise UserError(
            f"execution.accelerator: {asked}, but torch sees no {kind} device here; ask the scheduler for one"
            " (profiles/*/config.yaml, set-resources: train: gpu), or use auto or cpu"
        )
    devices = execution.get("devices", "auto")
    if least_devices(devices) > number:
        seen = f"there {'is' if number == 1 else 'are'} {number} {kind} device{'s' if number != 1 else ''} here"
        raise UserError(f"execution.devices: {devices}, but {seen}; ask for fewer, or the scheduler for more")


def least_devices(devices: int | str | Sequence[int]) -> int:
    """How many devices there must be for Lightning's ``devices``: a number, ``auto``, ``-1``, indices or ``"0,2"``.

    Raises:
        UserError: it is none of them.
    """
    try:
        if isinstance(devices, str) and devices != "auto":
            devices = [int(i) for i in devices.split(",") if i.strip()] if "," in devices else int(devices)
        if isinstance(devices, str) or devices == -1:
            return 1
        return devices if isinstance(devices, int) else max(map(int, devices), default=-1) + 1
    except (TypeError, ValueError):
        raise UserError(f"execution.devices: {devices!r} is no number, list of indices, -1 or auto") from None


def check_disk(
    folder: Path, model: torch.nn.Module, optimizer: Any, max_epochs: int, criteria: list, allow: tuple[str, ...] = ()
) -> int:
    """Hold the free space of *folder*'s file system against what a training writes there, at the most; the bytes.

    Three full checkpoints (two are kept while the third is written) of the model and its optimiser, and the weights of the
    epochs that are kept.

    Raises:
        UserError: there is less.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    full = weights + round(trained * _state_of_optimizer(optimizer, allow))
    epochs = min(max_epochs, max(KEEP_ALL_BYTES // max(weights, 1), sum(k for _, k, _ in criteria))) + 1
    need = 3 * full + epochs * weights
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".ckpt", ".safetensors"))
    what = f"a training ({epochs} epochs of {weights / 1e6:.1f} MB, 3 checkpoints of {full / 1e6:.1f} MB)"
    require_space(folder, need - held, what)
    return need


def _state_of_optimizer(node: Any, allow: tuple[str, ...]) -> float:
    """Numbers that an optimiser keeps for each one that it trains, found by a step with 64 of them."""
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.zeros(8, 8)
    node = dict(node or {"_target_": "torch.optim.AdamW"})
    try:
        optimizer = instantiate(node, allow=allow, params=[parameter])
        optimizer.step()
    except Exception:
        # one of a user's own may want more than a parameter: Adam's two
        return 2.0
    values = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(value.numel() for value in values if value.ndim) / parameter.numel()
