"""Conformer encoder (arXiv 2005.08100) with rotary positions and fused attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.models.encoder import Encoder, begin_small
from espnet3.models.layers import FeedForward, SelfAttention, depthwise
from espnet3.models.subsampling import ConvSubsampling


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm over the frames (B, T, D) of a batch; in evaluation an utterance's result does not depend on its batch.

    The few padded frames of a bucketed batch count in training: leaving them out costs more time than they disturb.
    """

    def forward(self, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1)
        if self.training and frames.size(0) == 1:
            # One frame has no variance
            return F.batch_norm(frames, self.running_mean, self.running_var, self.weight, self.bias).view_as(x)
        return super().forward(frames).view_as(x)


_NORMS = {"batch": FrameBatchNorm, "layer": nn.LayerNorm}


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise convolution over time, norm, SiLU, pointwise."""

    def __init__(self, size: int, kernel: int, dropout: float, norm: str = "batch"):
        super().__init__()
        if norm not in _NORMS:
            raise UserError(f"model.encoder.norm: unknown '{norm}'; known: {', '.join(_NORMS)}")
        self.expand = nn.Linear(size, 2 * size)
        self.depthwise = depthwise(size, kernel)
        self.norm = _NORMS[norm](size)
        self.reduce = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """x (B, T, D), inside (B, T, 1): zero past an utterance's end."""
        x = F.glu(self.expand(x)) * inside
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.reduce(F.silu(self.norm(x))))


class ConformerBlock(nn.Module):
    """Half a feed-forward, self-attention, convolution, half a feed-forward, each added to its input; layer norm."""

    def __init__(
        self, size: int, heads: int, hidden: int, kernel: int, dropout: float, attention_dropout: float, norm: str
    ):
        super().__init__()
        self.norm_first = nn.LayerNorm(size)
        self.first = FeedForward(size, hidden, dropout)
        self.norm_attention = nn.LayerNorm(size)
        self.attention = SelfAttention(size, heads, attention_dropout)
        self.norm_convolution = nn.LayerNorm(size)
        self.convolution = ConvolutionModule(size, kernel, dropout, norm)
        self.norm_second = nn.LayerNorm(size)
        self.second = FeedForward(size, hidden, dropout)
        self.norm_out = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)
        begin_small(self.first[2], self.attention.out, self.convolution.reduce, self.second[2])

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
        x = torch.add(x, self.first(self.norm_first(x)), alpha=0.5)
        x = x + self.dropout(self.attention(self.norm_attention(x), turn, mask))
        x = x + self.convolution(self.norm_convolution(x), inside)
        x = torch.add(x, self.second(self.norm_second(x)), alpha=0.5)
        return self.norm_out(x)


class ConformerEncoder(Encoder):
    """Subsampling and a stack of Conformer blocks.

    Args:
        input_size: channels of the features.
        output_size: width of the blocks.
        heads, hidden, blocks, kernel: attention heads, feed-forward width, number of blocks, depthwise kernel in frames.
        subsampling: feature frames for each output frame (2, 4, 6 or 8); subsampling_channels: of its convolutions.
        norm: within the convolution module: ``batch`` (as in the paper; learns faster) or ``layer``.
        checkpointing: compute each block's activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        input_size: int = 80,
        output_size: int = 144,
        heads: int = 4,
        hidden: int = 576,
        blocks: int = 6,
        kernel: int = 15,
        subsampling: int = 4,
        subsampling_channels: int = 32,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        norm: str = "batch",
        checkpointing: bool = False,
    ):
        super().__init__(
            ConvSubsampling(input_size, output_size, subsampling, subsampling_channels, dropout),
            (
                ConformerBlock(output_size, heads, hidden, kernel, dropout, attention_dropout, norm)
                for _ in range(blocks)
            ),
            input_size=input_size,
            output_size=output_size,
            heads=heads,
            checkpointing=checkpointing,
        )
