"""E-Branchformer encoder (arXiv 2210.00077): attention and a convolutional gated MLP side by side, merged by a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.models.encoder import Encoder, begin_small
from espnet3.models.layers import FeedForward, SelfAttention, depthwise
from espnet3.models.subsampling import ConvSubsampling


class GatedMLP(nn.Module):
    """Convolutional gated MLP (§2.2 of arXiv 2207.02971): one half of the channels, convolved, gates the other."""

    def __init__(self, size: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(size, hidden)
        self.norm = nn.LayerNorm(hidden // 2)
        self.depthwise = depthwise(hidden // 2, kernel)
        self.reduce = nn.Linear(hidden // 2, size)
        self.dropout = nn.Dropout(dropout)
        # The gate begins near one, so that the branch is at first a plain MLP
        nn.init.normal_(self.depthwise.weight, std=1e-6)
        nn.init.ones_(self.depthwise.bias)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        kept, gate = F.gelu(self.expand(x)).chunk(2, dim=-1)
        gate = self.norm(gate) * inside
        gate = self.depthwise(gate.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.reduce(kept * gate))


class EBranchformerBlock(nn.Module):
    """Half a feed-forward, the two branches and their merging, half a feed-forward; layer norm."""

    def __init__(
        self,
        size: int,
        heads: int,
        hidden: int,
        gated: int,
        kernel: int,
        merge_kernel: int,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        self.norm_first = nn.LayerNorm(size)
        self.first = FeedForward(size, hidden, dropout)
        self.norm_attention = nn.LayerNorm(size)
        self.attention = SelfAttention(size, heads, attention_dropout)
        self.norm_gated = nn.LayerNorm(size)
        self.gated = GatedMLP(size, gated, kernel, dropout)
        self.merge_depthwise = depthwise(2 * size, merge_kernel, "merge_kernel")
        self.merge = nn.Linear(2 * size, size)
        self.norm_second = nn.LayerNorm(size)
        self.second = FeedForward(size, hidden, dropout)
        self.norm_out = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)
        begin_small(self.first[2], self.merge, self.second[2])

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
        x = torch.add(x, self.first(self.norm_first(x)), alpha=0.5)
        seen = self.dropout(self.attention(self.norm_attention(x), turn, mask))
        both = torch.cat([seen, self.gated(self.norm_gated(x), inside)], dim=-1) * inside
        both = both + self.merge_depthwise(both.transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(self.merge(both))
        x = torch.add(x, self.second(self.norm_second(x)), alpha=0.5)
        return self.norm_out(x)


class EBranchformerEncoder(Encoder):
    """Subsampling and a stack of E-Branchformer blocks.

    Args:
        input_size: channels of the features.
        output_size: width of the blocks.
        heads, hidden, blocks: attention heads, feed-forward width, number of blocks.
        gated: width of the gated MLP, an even number; kernel, merge_kernel: of its convolution, and of the merging one, in frames.
        subsampling: feature frames for each output frame (2, 4, 6 or 8); subsampling_channels: of its convolutions.
        checkpointing: compute each block's activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        input_size: int = 80,
        output_size: int = 144,
        heads: int = 4,
        hidden: int = 576,
        gated: int = 576,
        blocks: int = 6,
        kernel: int = 31,
        merge_kernel: int = 31,
        subsampling: int = 4,
        subsampling_channels: int = 32,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        checkpointing: bool = False,
    ):
        if gated % 2:
            raise UserError(f"model.encoder.gated: must be even, not {gated}")
        sizes = (output_size, heads, hidden, gated, kernel, merge_kernel, dropout, attention_dropout)
        super().__init__(
            ConvSubsampling(input_size, output_size, subsampling, subsampling_channels, dropout),
            (EBranchformerBlock(*sizes) for _ in range(blocks)),
            input_size=input_size,
            output_size=output_size,
            heads=heads,
            checkpointing=checkpointing,
        )
