"""What encoders share: subsampling, a stack of blocks, and a look at the layers between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet3.models.layers import length_mask, rotations

BRANCH_SCALE = 0.2
"""Of the usual initial weights, in the last layer of each residual branch."""


def begin_small(*last: nn.Linear) -> None:
    """Scale down the last layers of residual branches.

    Branches that begin small leave the first steps to the direct path: CTC's plateau of blanks ends sooner.
    """
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(BRANCH_SCALE)
            layer.bias.zero_()


class Encoder(nn.Module):
    """Subsampling and a stack of blocks, each ``block(x, turn, mask, inside)``.

    Args:
        subsampling: ``(features, lengths) -> (x, lengths)`` with ``lengths()``.
        blocks: modules that take x (B, T, D), the rotations of the positions, a mask of the keys (B, 1, 1, T), and the
            valid frames (B, T, 1) as zeros and ones.
        input_size, output_size: channels of the features; width of the blocks.
        heads: attention heads, which set the rotations' size.
        checkpointing: compute each block's activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        subsampling: nn.Module,
        blocks: Iterable[nn.Module],
        input_size: int,
        output_size: int,
        heads: int,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.heads = heads
        self.checkpointing = checkpointing
        self.subsampling = subsampling
        self.blocks = nn.ModuleList(blocks)

    def lengths(self, frames: Tensor) -> Tensor:
        """Output lengths of utterances of *frames* feature frames."""
        return self.subsampling.lengths(frames)

    def forward(
        self, feats: Tensor, lengths: Tensor, between: Mapping[int, Callable[[Tensor], Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, T, F), lengths (B,) -> (B, T', D), lengths; independent of padding and of the rest of the batch.

        Args:
            between: for some blocks, counted from 1, what their output (B, T', D) passes through before the next one.
        """
        x, lengths = self.subsampling(feats, lengths)
        valid = length_mask(lengths, x.size(1))
        inside = valid.unsqueeze(2).to(x.dtype)
        mask = valid[:, None, None, :]
        turn = rotations(torch.arange(x.size(1), device=x.device), x.size(2) // self.heads)
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, turn, mask, inside, use_reentrant=False)
            else:
                x = block(x, turn, mask, inside)
            if between and number in between:
                x = between[number](x)
        return x, lengths
