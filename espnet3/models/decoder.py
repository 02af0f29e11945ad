"""Transformer decoder (arXiv 1706.03762) with a key/value cache for step-wise scoring."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.models.layers import CrossAttention, FeedForward, SelfAttention, length_mask, rotations, sinusoids

_GROWTH = 32


@dataclass
class DecoderCache:
    """What a decoder remembers about the hypotheses of B utterances.

    Hypotheses lie grouped by utterance: with N of them, utterance ``b`` owns rows ``b * N / B`` to ``(b + 1) * N / B``.
    So each utterance's projected memory exists once, however wide the beam.

    Attributes:
        memory: for each layer, the keys and values of the memory, each (B, H, T, head size).
        mask: bool (B, 1, 1, T), True inside an utterance.
        past: self-attention keys and values (layers, 2, N, H, capacity, head size), filled up to `length`.
        length: number of symbols seen.
    """

    memory: list[tuple[Tensor, Tensor]]
    mask: Tensor
    past: Tensor
    length: int = 0

    def reorder(self, index: Tensor) -> DecoderCache:
        """The cache of hypotheses ``index`` (N',): row i continues what row ``index[i]`` was. Keep the grouping by utterance."""
        return DecoderCache(self.memory, self.mask, self.past.index_select(2, index), self.length)

    def select(self, utterances: Tensor) -> DecoderCache:
        """The cache of some utterances (B',) only, each with all its hypotheses: drops those that are finished."""
        memory = [(k.index_select(0, utterances), v.index_select(0, utterances)) for k, v in self.memory]
        grouped = self.past.unflatten(2, (self.mask.size(0), -1)).index_select(2, utterances)
        return DecoderCache(memory, self.mask.index_select(0, utterances), grouped.flatten(2, 3), self.length)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention over the memory, feed-forward; normalised before each."""

    def __init__(self, size: int, heads: int, hidden: int, memory_size: int, dropout: float):
        super().__init__()
        self.norm_self = nn.LayerNorm(size)
        self.self_attention = SelfAttention(size, heads)
        self.norm_cross = nn.LayerNorm(size)
        self.cross_attention = CrossAttention(size, heads, memory_size)
        self.norm_feed = nn.LayerNorm(size)
        self.feed = FeedForward(size, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.norm_self(x), turn, causal=True))
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), keys, values, mask))
        return x + self.feed(self.norm_feed(x))


class TransformerDecoder(nn.Module):
    """Pre-norm Transformer decoder.

    Args:
        size, heads, hidden, blocks: width, attention heads, feed-forward width, number of blocks.
        memory_size: width of the encoder's output; None is `size`.
        vocab_size: None leaves it to the model that holds the decoder, which calls :meth:`set_vocabulary`.
    """

    def __init__(
        self,
        size: int = 144,
        heads: int = 4,
        hidden: int = 576,
        blocks: int = 3,
        dropout: float = 0.1,
        memory_size: int | None = None,
        vocab_size: int | None = None,
    ):
        super().__init__()
        self.size = size
        self.heads = heads
        self.memory_size = memory_size or size
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(size, heads, hidden, self.memory_size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)
        self.vocab_size = None
        if vocab_size is not None:
            self.set_vocabulary(vocab_size)

    def set_vocabulary(self, vocab_size: int) -> None:
        """Make the embedding and the output layer."""
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, self.size)
        nn.init.normal_(self.embedding.weight, std=self.size**-0.5)
        self.output = nn.Linear(self.size, vocab_size)

    def _positions(self, memory: Tensor) -> Tensor:
        return sinusoids(torch.arange(memory.size(1), device=memory.device), memory.size(2)).to(memory.dtype)

    def forward(self, tokens: Tensor, memory: Tensor, memory_lens: Tensor) -> Tensor:
        """Tokens (B, L), which begin with <sos>, memory (B, T, D), its lengths -> logits of the next token (B, L, V)."""
        positions = self._positions(memory)
        mask = length_mask(memory_lens, memory.size(1))[:, None, None, :]
        turn = rotations(torch.arange(tokens.size(1), device=tokens.device), self.size // self.heads)
        x = self.dropout(self.embedding(tokens) * math.sqrt(self.size))
        for block in self.blocks:
            x = block(x, turn, *block.cross_attention.memory(memory, positions), mask)
        return self.output(self.norm(x))

    def init_cache(self, memory: Tensor, memory_lens: Tensor) -> DecoderCache:
        """Project the memory (B, T, D) once, for one empty hypothesis of each utterance (N = B)."""
        positions = self._positions(memory)
        mask = length_mask(memory_lens, memory.size(1))[:, None, None, :]
        projected = [
            tuple(part.contiguous() for part in block.cross_attention.memory(memory, positions))
            for block in self.blocks
        ]
        shape = (len(self.blocks), 2, memory.size(0), self.heads, 0, self.size // self.heads)
        return DecoderCache(projected, mask, memory.new_zeros(shape))

    def step(self, prev_tokens: Tensor, cache: DecoderCache) -> tuple[Tensor, DecoderCache]:
        """Log-probabilities (N, V) of the symbol after `prev_tokens` (N,), and the cache that has seen those.

        The given cache is used up: go on with the returned one (and its :meth:`DecoderCache.reorder`).
        """
        hypotheses, utterances, here = prev_tokens.size(0), cache.mask.size(0), cache.length
        past = cache.past
        if here == past.size(4):
            past = F.pad(past, (0, 0, 0, _GROWTH))
        turn = rotations(torch.full((1,), here, device=prev_tokens.device), self.size // self.heads)
        x = self.embedding(prev_tokens).unsqueeze(1) * math.sqrt(self.size)
        for number, block in enumerate(self.blocks):
            q, k, v = block.self_attention.project(block.norm_self(x), turn)
            past[number, 0, :, :, here] = k.squeeze(2)
            past[number, 1, :, :, here] = v.squeeze(2)
            y = F.scaled_dot_product_attention(q, past[number, 0, :, :, : here + 1], past[number, 1, :, :, : here + 1])
            x = x + block.self_attention.out(y.transpose(1, 2).flatten(2))
            # An utterance's hypotheses are the queries of one attention over its memory, which is never copied
            grouped = block.norm_cross(x).view(utterances, hypotheses // utterances, -1)
            keys, values = cache.memory[number]
            x = x + block.cross_attention(grouped, keys, values, cache.mask).view(hypotheses, 1, -1)
            x = x + block.feed(block.norm_feed(x))
        log_probs = self.output(self.norm(x)).squeeze(1).float().log_softmax(-1)
        return log_probs, DecoderCache(cache.memory, cache.mask, past, here + 1)
