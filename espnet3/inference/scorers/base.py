"""What a model must offer to take part in the beam search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Scorer(ABC):
    """Scores the next label of every prefix ("row") of a batch of utterances.

    The rows lie grouped by utterance, equally many (*width*) for each: row ``b * width + w`` is prefix w of stored
    utterance b. The search calls :meth:`start` once, then alternates :meth:`score` and :meth:`advance`. When utterances
    are done it keeps the others by :meth:`select`, or puts waiting ones in their places by :meth:`replace`. A score is
    the natural log of a probability, so that a longer prefix never scores better; the search's exact stopping rule
    depends on it.

    Some rows may be idle (their prefix is dead): what they score is not looked at, but must not disturb their neighbours.

    Attributes:
        partial: the scorer is costly over a large vocabulary and may be asked for some candidates of each row only.
        replaces: :meth:`replace` is there; without it, waiting utterances wait until all others are done.
    """

    partial = False
    replaces = True

    @abstractmethod
    def start(self, encoded: Tensor, lengths: Tensor, width: int) -> Any:
        """The state of *width* empty prefixes for each utterance.

        Args:
            encoded: (utterances, frames, size) encoder output.
            lengths: (utterances,) frames, at least 1.
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
        """The state (N rows) whose row n is row ``rows[n]``, of the same utterance, prolonged by ``tokens[n]``.

        *state* was scored before, and is used up.
        """

    @abstractmethod
    def select(self, state: Any, utterances: Tensor, frames: int) -> Any:
        """The state of some stored utterances only (ascending), whose longest has *frames* frames; just advanced."""

    def replace(self, state: Any, slots: Tensor, fresh: Any, frames: int) -> Any:
        """*state* (just advanced) with those of *fresh* (just started) in place of the utterances *slots*, one for each.

        The longest utterance is now of *frames* frames.
        """
        raise NotImplementedError


def keep_rows(utterances: Tensor, width: int) -> Tensor:
    """The rows of some utterances, each with its *width* rows."""
    return (utterances[:, None] * width + torch.arange(width, device=utterances.device)).flatten()


def fit(x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """*x* with its last dimension cut or padded to *size*; contiguous."""
    if x.size(-1) < size:
        return torch.nn.functional.pad(x, (0, size - x.size(-1)), value=value)
    return x[..., :size].contiguous()
