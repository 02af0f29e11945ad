"""Transformer decoders and language models, one label at a time, from the weights alone.

Keys and values of the encoder's output are made once for each utterance, and serve all its prefixes. So are those of the
labels: an utterance's prefixes are a tree, whose nodes stay where they are; a mask says which of them are a prefix's own.
All prefixes of an utterance are the queries of one attention over its tree; new nodes take the places of branches that died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.inference.scorers.base import Scorer, fit, keep_rows
from espnet3.models.layers import rotate

# nodes of a tree that there is room for at first
_CAPACITY = 64
_OUTSIDE = -1e30


@dataclass
class Norm:
    """A layer norm's weight, bias and epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass
class Cross:
    """Attention over the encoder's output: its norm, query and output layers, and the keys and values (B, T, D) each.

    The query layer carries the factor 1 / sqrt(head size).
    """

    norm: Norm
    query: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    memory: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Layer:
    """One block: norm, self-attention (queries scaled by 1 / sqrt(head size), keys, values in one layer), cross-attention
    where there is an encoder, norm, feed-forward. Weights are (out, in)."""

    norm: Norm
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    cross: Cross | None
    norm_feed: Norm
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]
    activation: Callable[[Tensor], Tensor]


@dataclass
class Plan:
    """A decoder as its weights.

    Attributes:
        embed: labels (N,) -> (N, D), scaled.
        positions: positions (N,) -> what is added to the embedding (N, D); None: nothing.
        turn: positions (N,) -> cosine and sine (N, 1, head size / 2, 2) of rotary positions; None: none.
        output: weight (V, D) and bias (V,).
    """

    heads: int
    embed: Callable[[Tensor], Tensor]
    positions: Callable[[Tensor], Tensor] | None
    turn: Callable[[Tensor], Tensor] | None
    layers: list[Layer]
    norm: Norm
    output: tuple[Tensor, Tensor]


@dataclass
class StepState:
    """N rows of B utterances.

    Attributes:
        memory: for each layer keys and values, (B, H, T, head size) each; empty for a language model.
        outside: (B, 1, T), 0 inside an utterance and very negative behind it; None: nothing is padded.
        nodes: keys and values of the labels (layers, 2, B, H, capacity, head size); None: of none yet.
        seen: (B, width, capacity), 0 where a node belongs to a prefix, and very negative elsewhere.
        step: of the search; begin: (B,) the step at which each utterance began, None: all at 0.
        previous: (N,) the label that comes next.
    """

    plan: Plan
    memory: list[tuple[Tensor, Tensor]]
    outside: Tensor | None
    nodes: Tensor | None
    seen: Tensor
    step: int
    begin: Tensor | None
    previous: Tensor
    width: int

    @property
    def utterances(self) -> int:
        """How many are stored."""
        return self.previous.numel() // self.width


class TransformerScorer(Scorer):
    """A pre-norm Transformer as a scorer.

    Args:
        plan: makes the plan; called at each start, so that moved or trained weights are seen.
        sos: id of the start symbol.
        uses_memory: it attends to the encoder's output; False for a language model.
    """

    def __init__(self, plan: Callable[[], Plan], sos: int, uses_memory: bool = True):
        self.plan, self.sos, self.uses_memory = plan, sos, uses_memory

    def start(self, encoded: Tensor, lengths: Tensor, width: int) -> StepState:
        plan = self.plan()
        utterances, device = encoded.size(0), encoded.device
        memory, outside = [], None
        if self.uses_memory:
            memory = [
                tuple(
                    x.unflatten(-1, (plan.heads, -1)).transpose(1, 2).contiguous() for x in layer.cross.memory(encoded)
                )
                for layer in plan.layers
            ]
            padded = torch.arange(encoded.size(1), device=device) >= lengths[:, None]
            if bool(padded.any()):
                outside = torch.zeros_like(padded, dtype=encoded.dtype).masked_fill_(padded, _OUTSIDE)[:, None]
        seen = plan.output[0].new_full((utterances, width, max(_CAPACITY, width)), _OUTSIDE)
        previous = torch.full((utterances * width,), self.sos, device=device)
        return StepState(plan, memory, outside, None, seen, 0, None, previous, width)

    def score(self, state: StepState, candidates: Tensor | None = None) -> Tensor:
        plan, width, heads, utterances = state.plan, state.width, state.plan.heads, state.utterances
        size = plan.layers[0].out[0].size(1) // heads
        if state.nodes is None:
            # what is masked must be finite
            shape = (len(plan.layers), 2, utterances, heads, state.seen.size(2), size)
            state.nodes = state.seen.new_zeros(shape)
        free, filled = _place(state)
        nodes = state.nodes
        state.seen.scatter_(2, free[:, :, None], 0.0)
        # of each node's keys and values of one head, its row in a layer
        first = torch.arange(2 * utterances * heads, device=nodes.device).view(2, utterances, heads, 1)
        places = (first * nodes.size(4) + free[None, :, None]).flatten()
        seen = state.seen[:, None, :, :filled].expand(-1, heads, -1, -1).reshape(-1, width, filled)
        if state.begin is None:
            position = torch.full((1,), state.step, device=nodes.device)
        else:
            position = (state.step - state.begin).repeat_interleave(width)
        x = plan.embed(state.previous)
        if plan.positions is not None:
            x = x + plan.positions(position)
        turn = None if plan.turn is None else plan.turn(position).unsqueeze(1)
        for number, layer in enumerate(plan.layers):
            qkv = F.linear(layer.norm(x), *layer.qkv).view(-1, 3, heads, size)
            if turn is not None:
                qkv = torch.cat([rotate(qkv[:, :2], turn), qkv[:, 2:]], 1)
            qkv = qkv.view(utterances, width, 3, heads, size).permute(2, 0, 3, 1, 4)
            nodes[number].view(-1, size).index_copy_(0, places, qkv[1:].reshape(-1, size))
            keys, values = nodes[number, :, :, :, :filled].flatten(1, 2)
            y = _attend(qkv[0].flatten(0, 1), keys, values, seen).view(utterances, heads, width, size)
            x = x + F.linear(y.transpose(1, 2).reshape(x.shape[0], -1), *layer.out)
            if layer.cross is not None:
                x = x + self._cross(layer.cross, x, state, number)
            inner = layer.activation(F.linear(layer.norm_feed(x), *layer.inner))
            x = x + F.linear(inner, *layer.outer)
        state.step += 1
        return F.linear(plan.norm(x), *plan.output).float().log_softmax(-1)

    def _cross(self, layer: Cross, x: Tensor, state: StepState, number: int) -> Tensor:
        keys, values = state.memory[number]
        utterances, heads = keys.size(0), keys.size(1)
        # an utterance's prefixes are the queries of one attention over its memory, which is never copied
        query = F.linear(layer.norm(x), *layer.query).view(utterances, state.width, heads, -1).transpose(1, 2)
        outside = state.outside
        if outside is not None:
            outside = outside.repeat_interleave(heads, 0).expand(-1, state.width, -1)
        y = _attend(query.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), outside)
        return F.linear(y.view(utterances, heads, state.width, -1).transpose(1, 2).reshape(x.shape), *layer.out)

    def advance(self, state: StepState, rows: Tensor, tokens: Tensor) -> StepState:
        seen = state.seen.flatten(0, 1).index_select(0, rows).view_as(state.seen)
        return replace(state, seen=seen, previous=tokens)

    def select(self, state: StepState, utterances: Tensor, frames: int) -> StepState:
        memory = [
            tuple(part.index_select(0, utterances)[:, :, :frames].contiguous() for part in layer)
            for layer in state.memory
        ]
        outside = state.outside
        return replace(
            state,
            memory=memory,
            outside=None if outside is None else outside.index_select(0, utterances)[:, :, :frames],
            nodes=state.nodes.index_select(2, utterances),
            seen=state.seen.index_select(0, utterances),
            begin=None if state.begin is None else state.begin[utterances],
            previous=state.previous[keep_rows(utterances, state.width)],
        )

    def replace(self, state: StepState, slots: Tensor, fresh: StepState, frames: int) -> StepState:
        memory, outside = [], None
        if state.memory:
            for old, new in zip(state.memory, fresh.memory, strict=True):
                parts = [(_fit_frames(a, frames), _fit_frames(b, frames)) for a, b in zip(old, new, strict=True)]
                memory.append(tuple(a.index_copy_(0, slots, b) for a, b in parts))
            outside = _outside(state, frames).index_copy_(0, slots, _outside(fresh, frames))
        begin = state.previous.new_zeros(state.utterances) if state.begin is None else state.begin
        previous = state.previous.index_copy(0, keep_rows(slots, state.width), fresh.previous)
        return replace(
            state,
            memory=memory,
            outside=outside,
            seen=state.seen.index_fill(0, slots, _OUTSIDE),
            begin=begin.index_fill(0, slots, state.step),
            previous=previous,
        )


def _place(state: StepState) -> tuple[Tensor, int]:
    """The lowest nodes (B, width) of each utterance that no prefix sees, and the number of nodes up to the last in use."""
    width, capacity = state.width, state.seen.size(2)
    number = torch.arange(capacity, device=state.seen.device)
    used = state.seen.amax(1) == 0
    free = (number + capacity * used).topk(width, 1, largest=False).values
    last = int(torch.maximum((number * used).amax(), free.amax()))
    if last < capacity:
        return free, last + 1
    # some utterance has no room
    room = max(capacity, width)
    state.seen = F.pad(state.seen, (0, room), value=_OUTSIDE)
    state.nodes = F.pad(state.nodes, (0, 0, 0, room))
    return _place(state)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """(M, Q, d), (M, K, d), (M, K, d), added mask (M, Q or 1, K) -> (M, Q, d); products beat the fused attention for so few."""
    if mask is None:
        weights = torch.bmm(query, keys.transpose(1, 2))
    else:
        weights = torch.baddbmm(mask, query, keys.transpose(1, 2))
    return torch.bmm(weights.softmax(-1), values)


def _fit_frames(part: Tensor, frames: int) -> Tensor:
    """(B, H, T, d) cut or padded to *frames*."""
    if part.size(2) < frames:
        return F.pad(part, (0, 0, 0, frames - part.size(2)))
    return part[:, :, :frames].contiguous()


def _outside(state: StepState, frames: int) -> Tensor:
    """The mask of the encoder's output, cut or padded to *frames*."""
    mask = state.outside
    if mask is None:
        mask = state.seen.new_zeros(state.utterances, 1, state.memory[0][0].size(2))
    return fit(mask, frames, _OUTSIDE)


def norm_of(module: nn.LayerNorm) -> Norm:
    """A layer norm's parameters."""
    return Norm(module.weight, module.bias, module.eps)


def linear_of(module: nn.Linear, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A linear layer's weight and bias, scaled."""
    return (module.weight, module.bias) if scale == 1.0 else (module.weight * scale, module.bias * scale)


def fuse(query: nn.Linear, key: nn.Linear, value: nn.Linear, scale: float) -> tuple[Tensor, Tensor]:
    """Three layers of one input as one; the query's part is scaled."""
    weight = torch.cat([query.weight * scale, key.weight, value.weight])
    return weight, torch.cat([query.bias * scale, key.bias, value.bias])
