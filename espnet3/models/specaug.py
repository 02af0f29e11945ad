"""SpecAugment (arXiv 1904.08779): masks over time and frequency, drawn for each utterance, without a loop over the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Mask stripes of normalised features with zero, their mean; only in training.

    Args:
        freq_masks, freq_width: number of frequency stripes, and the greatest width in channels.
        time_masks, time_width: number of time stripes, and the greatest width in frames.
        time_ratio: a time stripe is at most this part of its utterance (adaptive SpecAugment, arXiv 1912.05533).
    """

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 5,
        time_width: int = 40,
        time_ratio: float = 0.05,
    ):
        super().__init__()
        self.freq_masks = freq_masks
        self.freq_width = freq_width
        self.time_masks = time_masks
        self.time_width = time_width
        self.time_ratio = time_ratio

    def forward(self, feats: Tensor, lengths: Tensor) -> Tensor:
        """Features (B, T, F), lengths in frames (B,) -> features with stripes of zeros."""
        if not self.training:
            return feats
        batch, frames, channels = feats.shape
        masked = feats.new_zeros((batch, frames, 1), dtype=torch.bool)
        if self.time_masks:
            longest = torch.clamp(lengths * self.time_ratio, max=self.time_width)
            masked = self._stripes(self.time_masks, longest, lengths, frames, feats.device).unsqueeze(2)
        if self.freq_masks:
            widths = torch.full((batch,), float(min(self.freq_width, channels)), device=feats.device)
            every = torch.full((batch,), channels, device=feats.device)
            masked = masked | self._stripes(self.freq_masks, widths, every, channels, feats.device).unsqueeze(1)
        return feats.masked_fill(masked, 0.0)

    @staticmethod
    def _stripes(number: int, longest: Tensor, extent: Tensor, size: int, device: torch.device) -> Tensor:
        """Union of *number* random stripes for each utterance: bool (B, size)."""
        batch = extent.size(0)
        width = (torch.rand(batch, number, device=device) * (longest.unsqueeze(1) + 1)).floor()
        start = (torch.rand(batch, number, device=device) * (extent.unsqueeze(1) - width + 1).clamp(min=1)).floor()
        place = torch.arange(size, device=device)
        return ((place >= start.unsqueeze(2)) & (place < (start + width).unsqueeze(2))).any(dim=1)
