"""ESPnet2's models as scorers (extra ``espnet``): its Transformer decoder, with its own weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.inference.scorers.transformer import Cross, Layer, Plan, TransformerScorer, fuse, linear_of, norm_of
from espnet3.models.layers import sinusoids

_SCORED = "pre-norm Transformer decoders with an embedding of labels and linear feed-forward layers"


def is_espnet2_decoder(decoder: Any) -> bool:
    """Whether *decoder* is built as ESPnet2's Transformer decoders are."""
    return all(hasattr(decoder, name) for name in ("embed", "decoders", "output_layer", "forward_one_step"))


def espnet2_scorer(decoder: nn.Module, sos: int) -> TransformerScorer:
    """The scorer of an ``espnet2.asr.decoder.transformer_decoder.TransformerDecoder``.

    Raises:
        UserError: it is of a kind whose steps are not known here.
    """
    _check(decoder)
    return TransformerScorer(lambda: _plan(decoder), sos)


def _check(decoder: nn.Module) -> None:
    def refuse(what: str) -> None:
        raise UserError(f"decoder {type(decoder).__name__}: {what}; scored are ESPnet2's {_SCORED}")

    if not is_espnet2_decoder(decoder):
        refuse("not a Transformer decoder")
    if not decoder.normalize_before:
        refuse("normalize_before: false")
    if not isinstance(decoder.embed[0], nn.Embedding):
        refuse("input_layer is not embed")
    for layer in decoder.decoders:
        if layer.concat_after or getattr(layer, "sequential_attn", None) is not None:
            refuse("concat_after or a second encoder")
        if not all(hasattr(layer.self_attn, f"linear_{name}") for name in ("q", "k", "v", "out")):
            refuse(f"self-attention {type(layer.self_attn).__name__}")
        if not all(hasattr(layer.feed_forward, name) for name in ("w_1", "w_2")):
            refuse(f"feed-forward {type(layer.feed_forward).__name__}")
        for attention in (layer.self_attn, layer.src_attn):
            if any(not isinstance(getattr(attention, n, nn.Identity()), nn.Identity) for n in ("q_norm", "k_norm")):
                refuse("qk_norm")


def _plan(decoder: nn.Module) -> Plan:
    embedding, encoding = decoder.embed[0], decoder.embed[1]
    heads = decoder.decoders[0].self_attn.h
    size = embedding.embedding_dim
    # PositionalEncoding scales the embedding, ScaledPositionalEncoding the sinusoids
    alpha = getattr(encoding, "alpha", None)
    scale = math.sqrt(size) if alpha is None else 1.0

    def positions(at: Tensor) -> Tensor:
        code = sinusoids(at, size).to(embedding.weight.dtype)
        return code if alpha is None else alpha * code

    return Plan(
        heads=heads,
        embed=lambda labels: F.embedding(labels, embedding.weight) * scale,
        positions=positions,
        turn=None,
        layers=[_layer(layer) for layer in decoder.decoders],
        norm=norm_of(decoder.after_norm),
        output=linear_of(decoder.output_layer),
    )


def _layer(layer: nn.Module) -> Layer:
    attention, source, feed = layer.self_attn, layer.src_attn, layer.feed_forward
    return Layer(
        norm=norm_of(layer.norm1),
        qkv=fuse(attention.linear_q, attention.linear_k, attention.linear_v, attention.d_k**-0.5),
        out=linear_of(attention.linear_out),
        cross=Cross(
            norm=norm_of(layer.norm2),
            query=linear_of(source.linear_q, source.d_k**-0.5),
            out=linear_of(source.linear_out),
            memory=lambda encoded: (source.linear_k(encoded), source.linear_v(encoded)),
        ),
        norm_feed=norm_of(layer.norm3),
        inner=linear_of(feed.w_1),
        outer=linear_of(feed.w_2),
        activation=_activation(feed),
    )


def _activation(feed: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.relu if isinstance(feed.activation, nn.ReLU) else feed.activation
