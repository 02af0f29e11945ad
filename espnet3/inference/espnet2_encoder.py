"""ESPnet2's Conformer encoder on batches: its weights, an utterance's result independent of its neighbours.

ESPnet2's own convolution module lets padding leak into the last frames of shorter utterances, and its subsampling gives
them a frame more than alone. Here an utterance of a batch has what ESPnet2 gives it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence


def encode_alone(model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Encoder output (T, D) of each waveform by ESPnet2's own ``encode``, one at a time."""
    encoded = []
    for speech in waveforms:
        memory, lengths = model.encode(speech[None], torch.tensor([speech.numel()], device=speech.device))
        memory = memory[0] if isinstance(memory, tuple) else memory
        encoded.append(memory[0, : int(lengths[0])])
    return encoded


def is_known(model: nn.Module) -> bool:
    """Whether :func:`encode_together` knows the model's encoder: a Conformer as most ESPnet2 recipes configure it."""
    encoder = model.encoder
    try:
        names = [type(encoder).__name__, type(encoder.embed).__name__, type(encoder.embed.out[-1]).__name__]
        blocks = list(encoder.encoders)
        plain = not encoder.interctc_layer_idx and encoder.normalize_before and len(encoder.embed.out) == 2
        return (
            names == ["ConformerEncoder", "Conv2dSubsampling", "RelPositionalEncoding"]
            and plain
            and getattr(model, "preencoder", None) is None
            and getattr(model, "postencoder", None) is None
            and all(_is_known_block(block) for block in blocks)
        )
    except (AttributeError, TypeError):
        return False


def _is_known_block(block: nn.Module) -> bool:
    return (
        type(block.self_attn).__name__ == "RelPositionMultiHeadedAttention"
        and not block.self_attn.zero_triu
        and not block.concat_after
        and block.normalize_before
        and block.conv_module is not None
        and isinstance(block.conv_module.norm, nn.BatchNorm1d)
        and all(
            feed is None or (hasattr(feed, "w_1") and isinstance(feed.w_1, nn.Linear))
            for feed in (block.feed_forward, block.feed_forward_macaron)
        )
    )


def encode_together(model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Encoder output (T, D) of each waveform (samples,), encoded as one batch.

    Features are made one utterance at a time: the spectrum of the last window depends on what follows it.
    """
    features = []
    for speech in waveforms:
        feats, lengths = model._extract_feats(speech[None], torch.tensor([speech.numel()], device=speech.device))
        if model.normalize is not None:
            feats, lengths = model.normalize(feats, lengths)
        features.append(feats[0, : int(lengths[0])])
    return _conformer(model.encoder, features)


def _conformer(encoder: nn.Module, features: list[Tensor]) -> list[Tensor]:
    # one at a time: the channels of a whole batch would not fit into a processor's cache
    parts = [_subsample(encoder.embed.conv, f) for f in features]
    lengths = [part.size(0) for part in parts]
    frames = max(lengths)
    x = encoder.embed.out[0](pad_sequence(parts, batch_first=True))
    encoding = encoder.embed.out[-1]
    # scales x, and gives the codes of distances T - 1 to 1 - T
    x, positions = encoding(x)
    outside = torch.arange(frames, device=x.device) >= torch.tensor(lengths, device=x.device)[:, None]
    padded = bool(outside.any())
    mask = torch.zeros_like(outside, dtype=x.dtype).masked_fill_(outside, -1e30) if padded else None
    inside = (~outside).unsqueeze(1).to(x.dtype) if padded else None
    for block in encoder.encoders:
        if block.feed_forward_macaron is not None:
            x = x + block.ff_scale * _feed(block.feed_forward_macaron, block.norm_ff_macaron(x))
        x = x + _attention(block.self_attn, block.norm_mha(x), positions[0], mask)
        x = x + _convolution(block.conv_module, block.norm_conv(x), inside)
        x = x + block.ff_scale * _feed(block.feed_forward, block.norm_ff(x))
        x = block.norm_final(x)
    x = encoder.after_norm(x)
    return [x[i, :length] for i, length in enumerate(lengths)]


def _subsample(layers: nn.Sequential, features: Tensor) -> Tensor:
    """(T, F) -> (T', channels * F')."""
    x = features[None, None]
    for layer in layers:
        x = F.relu_(x) if isinstance(layer, nn.ReLU) else layer(x)
    return x[0].transpose(0, 1).flatten(1)


def _feed(feed: nn.Module, x: Tensor) -> Tensor:
    inner = feed.w_1(x)
    inner = F.silu(inner, inplace=True) if type(feed.activation).__name__ == "Swish" else feed.activation(inner)
    return feed.w_2(inner)


def _attention(attention: nn.Module, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    """Relative self-attention (arXiv 1901.02860, section 3.3); x (B, T, D), positions (2T - 1, D), mask (B, T) added."""
    batch, frames, size = x.shape
    heads, scale = attention.h, attention.d_k**-0.5

    def split(part: Tensor) -> Tensor:
        return part.view(part.size(0), -1, heads, attention.d_k).transpose(1, 2)

    query = attention.linear_q(x).view(batch, frames, heads, attention.d_k)
    key, value = split(attention.linear_k(x)).flatten(0, 1), split(attention.linear_v(x)).flatten(0, 1)
    by_content = ((query + attention.pos_bias_u) * scale).transpose(1, 2).reshape(-1, frames, attention.d_k)
    by_place = ((query + attention.pos_bias_v) * scale).transpose(1, 2)
    distances = split(attention.linear_pos(positions[None]))
    places = torch.matmul(by_place, distances.transpose(2, 3)).contiguous()
    # row i begins at its own distance: T - 1 - i entries further on
    step = places.size(-1)
    shifted = places.as_strided(
        (batch * heads, frames, frames), (frames * step, step - 1, 1), places.storage_offset() + frames - 1
    )
    scores = torch.baddbmm(shifted, by_content, key.transpose(1, 2))
    if mask is not None:
        scores.view(batch, heads, frames, frames).add_(mask[:, None, None])
    y = torch.bmm(scores.softmax(-1), value).view(batch, heads, frames, -1)
    return attention.linear_out(y.transpose(1, 2).reshape(batch, frames, size))


def _convolution(module: Any, x: Tensor, inside: Tensor | None) -> Tensor:
    x = F.linear(x, module.pointwise_conv1.weight.squeeze(2), module.pointwise_conv1.bias)
    x = F.glu(x, -1).transpose(1, 2)
    if inside is not None:
        x = x * inside
    norm, conv = module.norm, module.depthwise_conv
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    x = F.conv1d(x, conv.weight * scale[:, None, None], bias, padding=conv.padding, groups=conv.groups)
    x = F.silu(x) if type(module.activation).__name__ == "Swish" else module.activation(x)
    return F.linear(x.transpose(1, 2), module.pointwise_conv2.weight.squeeze(2), module.pointwise_conv2.bias)
