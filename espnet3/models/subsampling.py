"""Convolutional front-ends that shorten a feature sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espnet3.errors import UserError
from espnet3.models.layers import length_mask

PROJECTION_SCALE = 4.0
"""Of the usual initial weights, in the projection.

The usual ones leave its output so small that the first block's branches drown it, and CTC stays on its plateau of blanks;
ESPnet's encoders scale what comes here by the square root of the width. Factors from 4 to 12 did equally well.
"""
_STRIDES = {2: (2,), 4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}


class ConvSubsampling(nn.Module):
    """Frames by 2, 4, 6 or 8: strided convolutions over time and frequency with few channels, and a projection.

    With as many channels as the encoder is wide, as usual, these convolutions are half of a small Conformer's
    multiplications; with 32 they are a few percent. Positions past an utterance's end are zeroed before each
    convolution, so that nothing depends on padding.
    """

    def __init__(self, input_size: int, output_size: int, factor: int = 4, channels: int = 32, dropout: float = 0.0):
        super().__init__()
        if factor not in _STRIDES:
            raise UserError(f"model.encoder.subsampling: {factor} is not one of {sorted(_STRIDES)}")
        self.factor = factor
        self.strides = _STRIDES[factor]
        bands = input_size
        self.convolutions = nn.ModuleList()
        for number, stride in enumerate(self.strides):
            # The time axis is strided by `stride`, the frequency axis always by 2
            shape = {"kernel_size": 3 if stride == 2 else 5, "stride": (stride, 2), "padding": 1 if stride == 2 else 2}
            self.convolutions.append(nn.Conv2d(channels if number else 1, channels, **shape))
            bands = (bands + 1) // 2
        self.project = nn.Linear(channels * bands, output_size)
        with torch.no_grad():
            self.project.weight.mul_(PROJECTION_SCALE)
            self.project.bias.mul_(PROJECTION_SCALE)
        self.dropout = nn.Dropout(dropout)

    def lengths(self, frames: Tensor) -> Tensor:
        """Output lengths of utterances of *frames* frames."""
        for stride in self.strides:
            frames = (frames + stride - 1) // stride
        return frames

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, ceil(T / factor), output_size), lengths."""
        x = feats.unsqueeze(1)
        for stride, convolution in zip(self.strides, self.convolutions, strict=True):
            x = x * length_mask(lengths, x.size(2))[:, None, :, None]
            x = torch.relu(convolution(x))
            lengths = (lengths + stride - 1) // stride
        x = x.permute(0, 2, 3, 1).flatten(2)
        return self.dropout(self.project(x)), lengths
