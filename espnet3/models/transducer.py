"""Transducer (arXiv 1211.3711) with a stateless prediction network (arXiv 2109.07848): an embedding and a short convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.models.asr import ASRModel
from espnet3.models.rnnt import rnnt_loss


class Predictor(nn.Module):
    """What the last `context` labels say about the next one; blanks stand before the first."""

    def __init__(self, vocab_size: int, size: int, context: int = 2):
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocab_size, size)
        self.convolution = nn.Conv1d(size, size, context, groups=size, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B, context + U) -> (B, U + 1, size): after each number of the labels that follow the context."""
        x = self.embedding(labels).transpose(1, 2)
        return F.relu(self.convolution(x)).transpose(1, 2)


class Joiner(nn.Module):
    """Scores of the next symbol from a frame and a prediction."""

    def __init__(self, memory_size: int, predicted_size: int, size: int, vocab_size: int):
        super().__init__()
        self.memory = nn.Linear(memory_size, size)
        self.predicted = nn.Linear(predicted_size, size)
        self.output = nn.Linear(size, vocab_size)

    def forward(self, memory: Tensor, predicted: Tensor) -> Tensor:
        """Projected memory and prediction, shapes that broadcast (..., size) -> logits (..., V)."""
        return self.output(torch.tanh(memory + predicted))


class TransducerModel(ASRModel):
    """Encoder, stateless predictor and joiner, with an auxiliary CTC loss.

    The arguments are :class:`~espnet3.models.asr.ASRModel`'s without a decoder; ``ctc_weight`` weighs CTC against the
    transducer loss. The lattice of a batch, (B, T, U + 1, V) scores, is held whole: right for characters and small BPE
    vocabularies.

    Args:
        predictor_size, joiner_size: widths. context: labels that the predictor sees.

    Raises:
        UserError: sizes of the parts do not fit.
    """

    other_losses = True

    def __init__(
        self,
        vocab_size: int,
        frontend: nn.Module,
        encoder: nn.Module,
        specaug: nn.Module | None = None,
        cmvn=None,
        ctc_weight: float = 0.3,
        predictor_size: int = 144,
        joiner_size: int = 256,
        context: int = 2,
        intermediate=(),
        intermediate_weight: float = 0.5,
        self_conditioning: bool = False,
        consistency_weight: float = 0.0,
    ):
        super().__init__(
            vocab_size,
            frontend,
            encoder,
            specaug=specaug,
            cmvn=cmvn,
            ctc_weight=ctc_weight,
            intermediate=intermediate,
            intermediate_weight=intermediate_weight,
            self_conditioning=self_conditioning,
            consistency_weight=consistency_weight,
        )
        if ctc_weight >= 1:
            raise UserError("model.ctc_weight: must be below 1 for a transducer; for CTC alone take ASRModel")
        if context < 1:
            raise UserError(f"model.context: must be at least 1, not {context}")
        self.predictor = Predictor(vocab_size, predictor_size, context)
        self.joiner = Joiner(encoder.output_size, predictor_size, joiner_size, vocab_size)

    def _losses(self, memory, lengths, text, text_lengths, stats: dict[str, Tensor]) -> Tensor:
        labels = F.pad(text.clamp(min=0), (self.predictor.context, 0), value=self.blank)
        predicted = self.joiner.predicted(self.predictor(labels)).unsqueeze(1)
        logits = self.joiner(self.joiner.memory(memory).unsqueeze(2), predicted)
        loss = rnnt_loss(logits, lengths, text, text_lengths, self.blank).mean()
        stats["loss_rnnt"] = loss.detach()
        return (1 - self.ctc_weight) * loss
