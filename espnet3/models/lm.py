"""Transformer language model over labels, with ESPnet's model contract."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.models.layers import FeedForward, SelfAttention, length_mask, rotations


class LMBlock(nn.Module):
    """Causal self-attention and feed-forward; normalised before each."""

    def __init__(self, size: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm_self = nn.LayerNorm(size)
        self.self_attention = SelfAttention(size, heads)
        self.norm_feed = nn.LayerNorm(size)
        self.feed = FeedForward(size, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.norm_self(x), turn, causal=True))
        return x + self.feed(self.norm_feed(x))


class TransformerLM(nn.Module):
    """Pre-norm Transformer decoder without an encoder (arXiv 1706.03762), rotary positions, tied output layer.

    The last symbol is <sos/eos>, and -1 pads texts.

    Args:
        vocab_size: number of symbols.
        size, heads, hidden, blocks: width, attention heads, feed-forward width, number of blocks.
        label_smoothing: mass that the target spreads over the vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        size: int = 128,
        heads: int = 4,
        hidden: int = 512,
        blocks: int = 4,
        dropout: float = 0.1,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.vocab_size, self.size, self.heads, self.label_smoothing = vocab_size, size, heads, label_smoothing
        self.sos = self.eos = vocab_size - 1
        self.embedding = nn.Embedding(vocab_size, size)
        nn.init.normal_(self.embedding.weight, std=size**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(LMBlock(size, heads, hidden, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L), which begin with <sos> -> logits of the next token (B, L, V)."""
        turn = rotations(torch.arange(tokens.size(1), device=tokens.device), self.size // self.heads)
        x = self.dropout(self.embedding(tokens) * math.sqrt(self.size))
        for block in self.blocks:
            x = block(x, turn)
        return F.linear(self.norm(x), self.embedding.weight, self.bias)

    def forward(self, text: Tensor, text_lengths: Tensor, **_) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss (the mean over symbols, eos included, in nats), detached statistics, and the number of symbols as weight.

        text (B, L) padded with -1, text_lengths (B,).
        """
        inside = length_mask(text_lengths, text.size(1))
        tokens = F.pad(text.masked_fill(~inside, self.eos), (1, 0), value=self.sos)
        target = F.pad(text.masked_fill(~inside, -1), (0, 1), value=-1).scatter(1, text_lengths.unsqueeze(1), self.eos)
        logits = self.logits(tokens).float().flatten(0, 1)
        target = target.flatten()
        loss = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=self.label_smoothing)
        scored = target != -1
        stats = {"loss": loss.detach(), "acc": ((logits.detach().argmax(-1) == target) & scored).sum() / scored.sum()}
        return loss, stats, scored.sum()
