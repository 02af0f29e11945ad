"""An ARPA n-gram language model held in tensors, scored for all rows and labels at once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet3.errors import UserError
from espnet3.inference.scorers.base import Scorer, keep_rows

_NATS = math.log(10.0)
# of a label that the model does not know, and that has no <unk> there: KenLM's -100, base 10
_UNSEEN = -100.0 * _NATS


@dataclass
class NgramState:
    """Each row's context (N,) as a number, and how many rows an utterance has."""

    context: Tensor
    width: int


class NgramScorer(Scorer):
    """A back-off n-gram model (Katz; the ARPA format) over the recogniser's labels.

    A context is a number. Its own continuations lie side by side; what it does not list is its back-off weight and the score
    in the context without the oldest label. So a row's scores over the vocabulary are those of the empty context, overwritten
    once for each order: as many scatters as the model's order, for all rows together.

    Args:
        path: an ARPA file whose words are the labels of *tokens*; ``<s>`` and ``</s>`` are sos and eos.
        tokens: the recogniser's labels, blank first and ``<sos/eos>`` last.

    Raises:
        UserError: the file is absent, or not in the ARPA format, or knows none of the labels.
    """

    def __init__(self, path: str | os.PathLike, tokens: Sequence[str]):
        grams = read_arpa(path)
        self.order, self.vocabulary, self.eos = len(grams), len(tokens), len(tokens) - 1
        ids = {token: number for number, token in enumerate(tokens)} | {"<s>": -1, "</s>": self.eos}
        unknown = next((grams[0][(w,)][0] for w in ("<unk>", "<UNK>") if (w,) in grams[0]), _UNSEEN)
        known = [
            {tuple(ids[w] for w in gram): value for gram, value in table.items() if all(w in ids for w in gram)}
            for table in grams
        ]
        if not any(0 <= gram[0] < self.eos for gram in known[0]):
            raise UserError(f"{path}: knows none of the model's {len(tokens)} labels; train it on tokenised text")
        contexts: dict[tuple[int, ...], int] = {(): 0}
        for table in known[:-1]:
            for gram in table:
                contexts.setdefault(gram, len(contexts))
        self._begin = contexts.get((-1,), 0)
        self._tables(known, contexts, unknown)

    def _tables(self, known: list[dict], contexts: dict[tuple[int, ...], int], unknown: float) -> None:
        def longest(gram: tuple[int, ...]) -> int:
            gram = gram[-(self.order - 1) :] if self.order > 1 else ()
            while gram not in contexts:
                gram = gram[1:]
            return contexts[gram]

        weights = [0.0] * len(contexts)
        shorter = [0] * len(contexts)
        for gram, number in contexts.items():
            if gram:
                weights[number] = known[len(gram) - 1][gram][1]
                shorter[number] = longest(gram[1:])
        arcs: list[tuple[int, int, float, int]] = []
        for table in known[1:]:
            for gram, (value, _) in table.items():
                if gram[-1] >= 0 and gram[:-1] in contexts:
                    arcs.append((contexts[gram[:-1]], gram[-1], value, longest(gram)))
        arcs.sort()
        base = torch.full((self.vocabulary,), unknown, dtype=torch.float64)
        after = torch.zeros(self.vocabulary, dtype=torch.long)
        for (label,), (value, _) in known[0].items():
            if label >= 0:
                base[label], after[label] = value, longest((label,))
        self.unigram, self.after = base, after
        self.backoff, self.shorter = torch.tensor(weights, dtype=torch.float64), torch.tensor(shorter)
        owner = torch.tensor([arc[0] for arc in arcs], dtype=torch.long)
        self.label = torch.tensor([arc[1] for arc in arcs], dtype=torch.long)
        self.value = torch.tensor([arc[2] for arc in arcs], dtype=torch.float64)
        self.next = torch.tensor([arc[3] for arc in arcs], dtype=torch.long)
        self.key = owner * self.vocabulary + self.label
        self.count = torch.bincount(owner, minlength=len(contexts))
        self.first = self.count.cumsum(0) - self.count

    def _to(self, device: torch.device) -> None:
        if self.unigram.device != device:
            names = ("unigram", "after", "backoff", "shorter", "label", "value", "next", "key", "count", "first")
            for name in names:
                setattr(self, name, getattr(self, name).to(device))

    def start(self, encoded: Tensor, lengths: Tensor, width: int) -> NgramState:
        self._to(encoded.device)
        context = torch.full((encoded.size(0) * width,), self._begin, dtype=torch.long, device=encoded.device)
        return NgramState(context, width)

    def score(self, state: NgramState, candidates: Tensor | None = None) -> Tensor:
        chain, sums = [state.context], [torch.zeros_like(state.context, dtype=torch.float64)]
        for _ in range(self.order - 1):
            sums.append(sums[-1] + self.backoff[chain[-1]])
            chain.append(self.shorter[chain[-1]])
        scores = self.unigram + sums[-1][:, None]
        # the shortest context first: a longer one that lists the label has the last word
        for context, weight in zip(reversed(chain[:-1]), reversed(sums[:-1]), strict=True):
            count = self.count[context]
            rows = torch.arange(context.numel(), device=context.device).repeat_interleave(count)
            within = torch.arange(rows.numel(), device=rows.device) - (count.cumsum(0) - count)[rows]
            arc = self.first[context][rows] + within
            scores[rows, self.label[arc]] = self.value[arc] + weight[rows]
        return scores if candidates is None else scores.gather(1, candidates)

    def advance(self, state: NgramState, rows: Tensor, tokens: Tensor) -> NgramState:
        context = state.context[rows]
        found = torch.zeros_like(context, dtype=torch.bool)
        following = self.after[tokens]
        for _ in range(self.order - 1):
            key = context * self.vocabulary + tokens
            place = torch.searchsorted(self.key, key).clamp_(max=max(0, self.key.numel() - 1))
            here = (self.key[place] == key) & ~found if self.key.numel() else found & False
            following = torch.where(here, self.next[place] if self.key.numel() else following, following)
            found |= here
            context = self.shorter[context]
        return NgramState(following, state.width)

    def select(self, state: NgramState, utterances: Tensor, frames: int) -> NgramState:
        return NgramState(state.context[keep_rows(utterances, state.width)], state.width)

    def replace(self, state: NgramState, slots: Tensor, fresh: NgramState, frames: int) -> NgramState:
        return NgramState(state.context.index_copy(0, keep_rows(slots, state.width), fresh.context), state.width)


def read_arpa(path: str | os.PathLike) -> list[dict[tuple[str, ...], tuple[float, float]]]:
    """For each order, ``{words: (log-probability, back-off weight)}`` in nats.

    Raises:
        UserError: the file is absent, or not in the ARPA format.
    """
    grams: list[dict[tuple[str, ...], tuple[float, float]]] = []
    announced: list[int] = []
    inside = False
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip()
                if line.startswith("ngram ") and not inside:
                    announced.append(int(line.partition("=")[2]))
                elif line.endswith("-grams:") and line.startswith("\\"):
                    inside = True
                    grams.append({})
                elif line == "\\end\\":
                    break
                elif inside and line:
                    order = len(grams)
                    fields = line.split()
                    if not order < len(fields) <= order + 2:
                        raise ValueError(f"line {number} is no {order}-gram")
                    backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
                    grams[-1][tuple(fields[1 : order + 1])] = (float(fields[0]) * _NATS, backoff * _NATS)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not an n-gram model in the ARPA format ({error})") from None
    if not grams or [len(table) for table in grams] != announced:
        raise UserError(f"{path}: not a whole n-gram model in the ARPA format; make it again")
    return grams
