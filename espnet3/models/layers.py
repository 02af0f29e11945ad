"""Blocks that encoders and decoders share: lengths and masks, positions, attention, feed-forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Lengths (B,) -> bool (B, size), True inside."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Sinusoidal position codes (arXiv 1706.03762): positions (...,) -> (..., size)."""
    rate = torch.exp(torch.arange(0, size, 2, device=positions.device) * (-math.log(10000.0) / size))
    angle = positions.unsqueeze(-1).float() * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :size]


def rotations(positions: Tensor, head_size: int) -> Tensor:
    """Cosine and sine of rotary positions (arXiv 2104.09864): positions (T,) -> (T, 1, head_size / 2, 2)."""
    rate = torch.exp(torch.arange(0, head_size, 2, device=positions.device) * (-math.log(10000.0) / head_size))
    angle = positions.float().unsqueeze(-1) * rate
    return torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(-3)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs of the last dimension: x (..., T, H, head_size), turn from :func:`rotations`."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # the compiler makes no code for complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    return turned.flatten(-2).type_as(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions through PyTorch's fused attention."""

    def __init__(self, size: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if size % (2 * heads):
            raise ValueError(f"size {size} is not a multiple of twice the number of heads, {heads}")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def project(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> rotated queries, rotated keys, values, each (B, H, T, head_size)."""
        parts = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        turned = rotate(parts[:, :, : 2 * self.heads], turn).transpose(1, 2)
        values = parts[:, :, 2 * self.heads :].transpose(1, 2)
        return turned[:, : self.heads], turned[:, self.heads :], values

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (B, T, D); mask bool (B, 1, 1, T), True where a key may be seen."""
        q, k, v = self.project(x, turn)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention over an encoder's output; keys carry sinusoidal positions, values do not."""

    def __init__(self, size: int, heads: int, memory_size: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(memory_size, size)
        self.value = nn.Linear(memory_size, size)
        self.out = nn.Linear(size, size)

    def memory(self, memory: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, head_size) of a memory (B, T, D) with position codes (T, D)."""
        keys = self.key(memory + positions).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        values = self.value(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), keys and values from :meth:`memory`, mask bool (B, 1, 1, T)."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers with SiLU between; dropout on the output only, which is what costs little."""

    def __init__(self, size: int, hidden: int, dropout: float = 0.0):
        super().__init__(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size), nn.Dropout(dropout))


def depthwise(size: int, kernel: int, name: str = "kernel") -> nn.Conv1d:
    """A convolution over time that keeps channels apart and the length as it is; *kernel* is odd."""
    if kernel % 2 == 0:
        raise UserError(f"model.encoder.{name}: must be odd, not {kernel}")
    return nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size)
