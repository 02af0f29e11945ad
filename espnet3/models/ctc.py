"""Connectionist temporal classification: output layer and loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


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
        log_probs = self.log_softmax(encoded).transpose(0, 1)
        return F.ctc_loss(log_probs, text.clamp(min=0), lengths, text_lengths, reduction="none", zero_infinity=True)

    def greedy(self, encoded: Tensor) -> Tensor:
        """Best symbol of each frame (B, T), blanks and repeats included."""
        return self.output(encoded).argmax(-1)


def frames_needed(labels: Sequence[int]) -> int:
    """Least number of frames that *labels* fit into: one for each, and a blank between two equal ones."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))
