"""Connectionist temporal classification: output layer and loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.models.layers import length_mask


class CTC(nn.Module):
    """A linear layer over the vocabulary; symbol 0 is the blank."""

    def __init__(self, input_size: int, vocab_size: int):
        super().__init__()
        self.output = nn.Linear(input_size, vocab_size)

    def log_softmax(self, encoded: Tensor) -> Tensor:
        """(B, T, D) -> log-probabilities (B, T, V), float32."""
        return self.output(encoded).float().log_softmax(-1)

    def forward(self, encoded: Tensor, lengths: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
        """Negative log-likelihood of each utterance (B,); zero where its labels cannot fit into its frames."""
        return ctc_loss(self.log_softmax(encoded), lengths, text, text_lengths)

    def greedy(self, encoded: Tensor) -> Tensor:
        """Best symbol of each frame (B, T), blanks and repeats included."""
        return self.output(encoded).argmax(-1)


def frames_needed(labels: Sequence[int]) -> int:
    """Least number of frames that *labels* fit into: one for each, and a blank between two equal ones."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def ctc_loss(log_probs: Tensor, lengths: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
    """Negative log-likelihood (B,) of labels (B, L) under log-probabilities (B, T, V); zero where they cannot fit."""
    return F.ctc_loss(
        log_probs.transpose(0, 1), text.clamp(min=0), lengths, text_lengths, reduction="none", zero_infinity=True
    )


def consistency_loss(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """How far two views of the same utterances disagree, frame by frame (CR-CTC, arXiv 2410.05101, eq. 5).

    log_probs (2B, T, V): the first half of the batch is one view, the second the other. For each utterance (B,): half the
    sum over its frames of the two Kullback-Leibler divergences, each towards a target without gradient.
    """
    one, other = log_probs.chunk(2)
    divergence = F.kl_div(one, other.detach(), reduction="none", log_target=True).sum(-1)
    divergence = divergence + F.kl_div(other, one.detach(), reduction="none", log_target=True).sum(-1)
    inside = length_mask(lengths[: one.size(0)], one.size(1))
    return 0.5 * divergence.masked_fill(~inside, 0.0).sum(1)
