"""This package's Transformers as scorers: the decoder, and the language model (shallow fusion)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet3.inference.scorers.transformer import Cross, Layer, Plan, TransformerScorer, linear_of, norm_of
from espnet3.models.decoder import DecoderBlock, TransformerDecoder
from espnet3.models.layers import CrossAttention, SelfAttention, rotations, sinusoids
from espnet3.models.lm import LMBlock, TransformerLM


def own_scorer(decoder: TransformerDecoder, sos: int) -> TransformerScorer:
    """The scorer of a :class:`espnet3.models.decoder.TransformerDecoder`."""
    return TransformerScorer(lambda: _plan(decoder, linear_of(decoder.output)), sos)


def lm_scorer(lm: TransformerLM) -> TransformerScorer:
    """The scorer of a :class:`espnet3.models.lm.TransformerLM`; it shares the recogniser's labels."""
    return TransformerScorer(lambda: _plan(lm, (lm.embedding.weight, lm.bias)), lm.sos, uses_memory=False)


def _plan(model: TransformerDecoder | TransformerLM, output: tuple[Tensor, Tensor]) -> Plan:
    head_size = model.size // model.heads
    return Plan(
        heads=model.heads,
        embed=lambda labels: model.embedding(labels) * math.sqrt(model.size),
        positions=None,
        turn=lambda positions: rotations(positions, head_size),
        layers=[_layer(block, head_size**-0.5) for block in model.blocks],
        norm=norm_of(model.norm),
        output=output,
    )


def _layer(block: DecoderBlock | LMBlock, scale: float) -> Layer:
    cross = None
    if isinstance(block, DecoderBlock):
        cross = Cross(
            norm=norm_of(block.norm_cross),
            query=linear_of(block.cross_attention.query, scale),
            out=linear_of(block.cross_attention.out),
            memory=lambda encoded: _memory(block.cross_attention, encoded),
        )
    return Layer(
        norm=norm_of(block.norm_self),
        qkv=_scale_queries(block.self_attention, scale),
        out=linear_of(block.self_attention.out),
        cross=cross,
        norm_feed=norm_of(block.norm_feed),
        inner=linear_of(block.feed[0]),
        outer=linear_of(block.feed[2]),
        activation=F.silu,
    )


def _scale_queries(attention: SelfAttention, scale: float) -> tuple[Tensor, Tensor]:
    """The joint layer of queries, keys and values, the first third of it scaled."""
    size = attention.qkv.in_features
    factor = torch.ones(3 * size, dtype=attention.qkv.weight.dtype, device=attention.qkv.weight.device)
    factor[:size] = scale
    return attention.qkv.weight * factor[:, None], attention.qkv.bias * factor


def _memory(attention: CrossAttention, encoded: Tensor) -> tuple[Tensor, Tensor]:
    positions = sinusoids(torch.arange(encoded.size(1), device=encoded.device), encoded.size(2)).to(encoded.dtype)
    return attention.key(encoded + positions), attention.value(encoded)
