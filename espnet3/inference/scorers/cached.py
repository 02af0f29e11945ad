"""Any decoder that keeps a cache of its own as a scorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet3.inference.scorers.base import Scorer


@dataclass
class CachedState:
    """The decoder's cache, the label that each of its rows is to see next, and how many rows an utterance has."""

    cache: Any
    previous: Tensor
    width: int


class DecoderScorer(Scorer):
    """A decoder with a key/value cache.

    Args:
        decoder: ``init_cache(memory, memory_lens)``, of one row for each utterance, and
            ``step(previous labels (N,), cache)``, which returns log-probs (N, V) and the cache. The cache's rows lie grouped
            by utterance, equally many for each; ``cache.reorder(rows)`` gathers rows, ``cache.select(utterances)`` drops
            utterances, each with its rows.
        sos: id of the start symbol.
    """

    replaces = False

    def __init__(self, decoder: Any, sos: int):
        self.decoder, self.sos = decoder, sos

    def start(self, encoded: Tensor, lengths: Tensor, width: int) -> CachedState:
        rows = torch.arange(encoded.size(0), device=encoded.device).repeat_interleave(width)
        cache = self.decoder.init_cache(encoded, lengths).reorder(rows)
        return CachedState(cache, torch.full_like(rows, self.sos), width)

    def score(self, state: CachedState, candidates: Tensor | None = None) -> Tensor:
        scores, state.cache = self.decoder.step(state.previous, state.cache)
        return scores

    def advance(self, state: CachedState, rows: Tensor, tokens: Tensor) -> CachedState:
        return CachedState(state.cache.reorder(rows), tokens, state.width)

    def select(self, state: CachedState, utterances: Tensor, frames: int) -> CachedState:
        previous = state.previous.view(-1, state.width)[utterances].flatten()
        return CachedState(state.cache.select(utterances), previous, state.width)
