"""From waveforms to records: one batch through model, search and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet3.inference.encoded import encode_batch
from espnet3.inference.search import Hypothesis, Search
from espnet3.inference.timestamps import Alignment, ctc_align, token_times, words_of

# float32 sums differ in the sixth digit or so with the shapes of a batch; what is written should not
DECIMALS = 3


def decode_batch(
    waveforms: Sequence[np.ndarray], model: Any, search: Search, device: torch.device | str = "cpu"
) -> list[list[Hypothesis]]:
    """The n best hypotheses of each waveform (float32 (T,), at the model's sampling rate), best first."""
    with torch.inference_mode():
        return search(*encode_batch(waveforms, model, device))


@torch.inference_mode()
def align_batch(
    encoded: Tensor, lengths: Tensor, labels: Sequence[Sequence[int]], model: Any
) -> list[Alignment | None]:
    """The CTC alignment of each utterance's labels, see :func:`espnet3.inference.timestamps.ctc_align`."""
    return ctc_align(model.ctc.log_softmax(encoded), lengths.tolist(), labels, model.blank)


def to_record(uid: str, nbest: list[Hypothesis], tokenizer: Any) -> dict[str, Any]:
    """``{"id", "text", "tokens", "score", <each scorer's score>}``, and ``"nbest"`` where there is more than one."""
    best = nbest[0]
    record = {"id": uid, **describe(best, tokenizer)}
    record["tokens"] = [tokenizer.tokens[t] for t in best.tokens]
    if len(nbest) > 1:
        record["nbest"] = [describe(hypothesis, tokenizer) for hypothesis in nbest]
    return record


def describe(hypothesis: Hypothesis, tokenizer: Any) -> dict[str, Any]:
    """A hypothesis's text and rounded scores."""
    scores = {"score": hypothesis.score} | {k: v for k, v in hypothesis.scores.items() if k != "length"}
    # a sum of zero turns -0.0 into 0.0
    return {"text": tokenizer.decode(hypothesis.tokens)} | {k: round(v, DECIMALS) + 0.0 for k, v in scores.items()}


def describe_times(
    labels: Sequence[int], alignment: Alignment | None, tokenizer: Any, seconds: float
) -> dict[str, Any]:
    """``"times"``, [start, end] of each token, and ``"words"``, in seconds; null and empty where it is not aligned."""
    words = words_of(labels, alignment, tokenizer, seconds)
    return {"times": token_times(alignment, seconds), "words": [word.as_dict() for word in words]}
