"""What can be known to go wrong before hours of training: transcripts that cannot fit, symbols that do not exist."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from espnet3.errors import UserError
from espnet3.io import write_json
from espnet3.models.ctc import frames_needed

log = logging.getLogger(__name__)

MAX_TOO_SHORT = 0.1
"""Part of the utterances that may be too short for CTC before training is refused."""


def check(
    dataset: Any, tokenizer: Any, model: torch.nn.Module, sampling_rate: int, report: Path, where: str
) -> dict[str, Any]:
    """Hold transcripts of *dataset* (one with ``cuts``) against the vocabulary and against the encoder's frames.

    CTC needs a frame for each label and a blank between equal ones; an utterance with fewer frames gives no CTC loss. What
    is found is logged and written to *report*.

    Raises:
        UserError: most symbols are unknown, or more than a tenth of the utterances are too short.
    """
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
    write_json(report, found)
    if with_unknown:
        shown = ", ".join(repr(u) for u, _ in unknown.most_common(5))
        log.warning("%s: %d utterances hold symbols that the token list lacks (%s)", where, len(with_unknown), shown)
    if too_short:
        log.warning(
            "%s: %d of %d utterances have fewer encoder frames than CTC needs for their transcript: %s",
            where,
            len(too_short),
            len(ids),
            " ".join(too_short[:5]) + (" ..." if len(too_short) > 5 else ""),
        )
    if len(too_short) > MAX_TOO_SHORT * len(ids):
        raise UserError(
            f"{where}: {len(too_short)} of {len(ids)} utterances are too short for CTC (such as {too_short[0]}, all in "
            f"{report}); lower model.encoder.subsampling or use longer tokens"
        )
    if len(with_unknown) == len(ids) and ids:
        raise UserError(f"{where}: every transcript has symbols that the token list lacks; rebuild the tokenizer stage")
    return found
