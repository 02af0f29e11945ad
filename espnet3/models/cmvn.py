"""Global mean and variance normalisation, kept in the model's own state."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from espnet3.errors import UserError


class GlobalCMVN(nn.Module):
    """``(x - mean) / std`` with the statistics of the training set, in buffers: a checkpoint needs no statistics file.

    Args:
        size: number of channels.
        path: ``cmvn.npz`` with ``mean`` and ``std``; None starts with zeros and ones, to be filled from a checkpoint.
    """

    def __init__(self, size: int, path: str | os.PathLike | None = None):
        super().__init__()
        mean, istd = torch.zeros(size), torch.ones(size)
        if path is not None:
            with np.load(path, allow_pickle=False) as stats:
                mean = torch.from_numpy(stats["mean"].astype(np.float32))
                istd = torch.from_numpy((1.0 / np.maximum(stats["std"], 1e-5)).astype(np.float32))
            if mean.numel() != size or not (mean.isfinite().all() and istd.isfinite().all()):
                raise UserError(f"{path}: not finite statistics of {size} channels; rebuild the stats stage")
        self.register_buffer("mean", mean)
        self.register_buffer("istd", istd)

    def forward(self, feats: Tensor) -> Tensor:
        return (feats - self.mean) * self.istd
