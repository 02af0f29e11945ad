"""This package's Transformer language model as a scorer (shallow fusion)."""

from __future__ import annotations

import math

from torch.nn import functional as F

from espnet3.inference.scorers.own import scale_queries
from espnet3.inference.scorers.transformer import Layer, Plan, TransformerScorer, linear_of, norm_of
from espnet3.models.layers import rotations
from espnet3.models.lm import LMBlock, TransformerLM


def lm_scorer(lm: TransformerLM) -> TransformerScorer:
    """The scorer of a :class:`espnet3.models.lm.TransformerLM`; it shares the recogniser's labels."""
    return TransformerScorer(lambda: _plan(lm), lm.sos, uses_memory=False)


def _plan(lm: TransformerLM) -> Plan:
    head_size = lm.size // lm.heads
    return Plan(
        heads=lm.heads,
        embed=lambda labels: lm.embedding(labels) * math.sqrt(lm.size),
        positions=None,
        turn=lambda positions: rotations(positions, head_size),
        layers=[_layer(block, head_size**-0.5) for block in lm.blocks],
        norm=norm_of(lm.norm),
        output=(lm.embedding.weight, lm.bias),
    )


def _layer(block: LMBlock, scale: float) -> Layer:
    return Layer(
        norm=norm_of(block.norm_self),
        qkv=scale_queries(block.self_attention, scale),
        out=linear_of(block.self_attention.out),
        cross=None,
        norm_feed=norm_of(block.norm_feed),
        inner=linear_of(block.feed[0]),
        outer=linear_of(block.feed[2]),
        activation=F.silu,
    )
