"""From waveforms to records: one batch through model, search and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from espnet3.inference.search import Hypothesis, Search

# float32 sums differ in the sixth digit or so with the shapes of a batch; what is written should not
DECIMALS = 3


@torch.inference_mode()
def decode_batch(
    waveforms: Sequence[np.ndarray], model: Any, search: Search, device: torch.device | str = "cpu"
) -> list[list[Hypothesis]]:
    """The n best hypotheses of each waveform (float32 (T,), at the model's sampling rate), best first."""
    tensors = [torch.as_tensor(np.asarray(w, dtype=np.float32)) for w in waveforms]
    lengths = torch.tensor([t.numel() for t in tensors])
    speech = pad_sequence(tensors, batch_first=True)
    return search(*model.encode(speech.to(device), lengths.to(device)))


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
