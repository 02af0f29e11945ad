"""What a model must offer to take part in the beam search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Scorer(ABC):
    """Scores the next label of every live prefix ("row") of a batch of utterances.

    The search owns the rows: it calls :meth:`start` once for a batch (one row, the empty prefix, for each utterance),
    then alternates :meth:`score` and :meth:`advance`. A score is the natural log of a probability, so that a longer
    prefix never scores better; the search's exact stopping rule depends on it.

    Attributes:
        partial: the scorer is costly over a large vocabulary and may be asked for some candidates of each row only.
    """

    partial = False

    @abstractmethod
    def start(self, encoded: Tensor, lengths: Tensor) -> Any:
        """The state of one empty prefix for each utterance.

        Args:
            encoded: (utterances, frames, size) encoder output, zero beyond each length.
            lengths: (utterances,) frames.
        """

    @abstractmethod
    def score(self, state: Any, candidates: Tensor | None = None) -> Tensor:
        """Log-probability of each next label, given its row's prefix.

        Args:
            state: of N rows; may be changed in place.
            candidates: (N, K) label ids, only ever given where ``partial`` is true; None: the whole vocabulary.

        Returns:
            (N, V), or (N, K) where candidates are given.
        """

    @abstractmethod
    def advance(self, state: Any, rows: Tensor, tokens: Tensor) -> Any:
        """The state after row ``rows[n]`` was prolonged by ``tokens[n]``, for each n; other rows are gone."""

    def compact(self, state: Any, keep: Tensor, frames: int) -> Any:
        """Let go of what belongs to utterances that are not in *keep* (indices into the stored utterances, ascending).

        *frames* is the longest length of those that stay. A scorer that stores nothing by utterance has nothing to do.
        """
        return state


@dataclass
class DecoderState:
    """Rows of a decoder whose cache wants as many rows for each stored utterance: the live ones and some idle ones.

    ``owner`` (N,) is each live row's stored utterance, ``place`` (N,) its row in the cache, ``previous`` the labels of
    all the cache's rows.
    """

    cache: Any
    previous: Tensor
    owner: Tensor
    place: Tensor
    utterances: int


class DecoderScorer(Scorer):
    """An attention decoder with a key/value cache, such as :class:`espnet3.models.decoder.TransformerDecoder`.

    Args:
        decoder: ``init_cache(memory, memory_lens)`` and ``step(previous labels (N,), cache)``, which returns log-probs
            (N, V) and the cache. The cache's rows lie grouped by utterance, equally many for each;
            ``cache.reorder(rows)`` gathers rows, ``cache.select(utterances)`` drops utterances.
        sos: id of the start symbol.
    """

    def __init__(self, decoder: Any, sos: int):
        self.decoder, self.sos = decoder, sos

    def start(self, encoded: Tensor, lengths: Tensor) -> DecoderState:
        owner = torch.arange(encoded.size(0), device=encoded.device)
        cache = self.decoder.init_cache(encoded, lengths)
        return DecoderState(cache, torch.full_like(owner, self.sos), owner, owner, encoded.size(0))

    def score(self, state: DecoderState, candidates: Tensor | None = None) -> Tensor:
        scores, state.cache = self.decoder.step(state.previous, state.cache)
        return scores if state.place.numel() == scores.size(0) else scores[state.place]

    def advance(self, state: DecoderState, rows: Tensor, tokens: Tensor) -> DecoderState:
        owner = state.owner[rows]
        count = torch.bincount(owner, minlength=state.utterances)
        width = int(count.max())
        slot = torch.arange(owner.numel(), device=owner.device) - (count.cumsum(0) - count)[owner]
        place = owner * width + slot
        # an idle row continues any row of its own utterance
        old_width = state.previous.numel() // state.utterances
        source = torch.arange(state.utterances, device=owner.device).repeat_interleave(width) * old_width
        source[place] = state.place[rows]
        previous = torch.full_like(source, self.sos)
        previous[place] = tokens
        return DecoderState(state.cache.reorder(source), previous, owner, place, state.utterances)

    def compact(self, state: DecoderState, keep: Tensor, frames: int) -> DecoderState:
        width = state.previous.numel() // state.utterances
        renumber = torch.full((state.utterances,), -1, dtype=torch.long, device=keep.device)
        renumber[keep] = torch.arange(keep.numel(), device=keep.device)
        owner = renumber[state.owner]
        return DecoderState(
            cache=state.cache.select(keep),
            previous=state.previous.view(-1, width)[keep].flatten(),
            owner=owner,
            place=owner * width + state.place % width,
            utterances=keep.numel(),
        )
