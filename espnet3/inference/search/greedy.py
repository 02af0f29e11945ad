"""Best-path CTC decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet3.inference.search.hypothesis import Hypothesis


@torch.inference_mode()
def ctc_greedy(log_probs: Tensor, lengths: Tensor, *, eos: int | None = None, blank: int = 0) -> list[list[Hypothesis]]:
    """The labels of the most likely alignment of each utterance, repeats merged and blanks dropped.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) frames.
        eos: id of a label that CTC never emits.

    Returns:
        One hypothesis for each utterance, in a list as from a beam search; its score is that of the alignment.
    """
    if eos is not None:
        log_probs = log_probs.index_fill(2, torch.tensor([eos], device=log_probs.device), -float("inf"))
    best, path = log_probs.max(2)
    inside = torch.arange(path.size(1), device=path.device) < lengths.to(path.device)[:, None]
    new = torch.ones_like(inside)
    new[:, 1:] = path[:, 1:] != path[:, :-1]
    kept = (inside & new & (path != blank)).tolist()
    scores = best.double().masked_fill(~inside, 0.0).sum(1).tolist()
    paths = path.tolist()
    return [
        [Hypothesis([label for label, keep in zip(row, mask, strict=True) if keep], score, {"ctc": score})]
        for row, mask, score in zip(paths, kept, scores, strict=True)
    ]
