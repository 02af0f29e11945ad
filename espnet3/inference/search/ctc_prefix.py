"""CTC prefix scores without a loop over time.

The CTC prefix probability of g·c (Watanabe et al., "Hybrid CTC/attention architecture for end-to-end speech
recognition", 2017, algorithm 2) is the sum over t of phi[t-1] p[t](c), where phi[t] is the probability that the frames
up to t spell g (ending in blank where c repeats the last label of g). It needs no recursion: over the whole vocabulary
it is one matrix product. The recursion serves only the forward variables of the prefixes that survive, and there it is
a linear one, so that cumulative sums solve it: with X and B the cumulative log-probabilities of c and of blank,

    r_n = X + logcumsumexp(phi[t-1] - X[t-1]),    r_b = B + logcumsumexp(r_n[t-1] - B[t-1]).

X and B grow with the number of frames and cancel again, hence float64 throughout the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espnet3.inference.search.scorer import Scorer

LOG_ZERO = -1e10
# exp(-1000) is zero in float64; an infinity would turn the differences of the cumulative sums into NaN
FLOOR = -1e3
INF = float("inf")


@dataclass
class CTCState:
    """Stored utterances (B, V, T) and the forward variables of N rows.

    ``owner`` (N,) is each row's stored utterance; ``before_n`` and ``before_b`` (N, T) are r_n and r_b one frame
    earlier, so that entry t is what frame t continues; ``ending`` (N,) is the log-probability that the whole input
    spells the prefix; ``psi`` (N,) that it begins so.
    """

    log_probs: Tensor
    probs: Tensor
    lengths: Tensor
    owner: Tensor
    before_n: Tensor
    before_b: Tensor
    ending: Tensor
    psi: Tensor
    last: Tensor
    scored: Tensor | None = None
    candidates: Tensor | None = None


class CTCPrefixScorer(Scorer):
    """Label-synchronous CTC prefix scores; the sum of a prefix's scores is its log prefix probability.

    The score of eos is the log-probability of the whole input spelling exactly the prefix; blank scores minus infinity
    (as ``LOG_ZERO``, which is what ESPnet uses, so that impossible prefixes stay ordered after all others).

    Args:
        log_softmax: encoder output (B, T, D) → log-probabilities (B, T, V).
        eos: id of sos/eos.
        blank: id of blank.
        dtype: of the matrix product; float32 costs about 1e-6 of relative accuracy. The scan is always float64.
    """

    partial = True

    def __init__(
        self, log_softmax: Callable[[Tensor], Tensor], eos: int, blank: int = 0, dtype: torch.dtype = torch.float64
    ):
        self.log_softmax, self.eos, self.blank, self.dtype = log_softmax, eos, blank, dtype

    def start(self, encoded: Tensor, lengths: Tensor) -> CTCState:
        log_probs = self.log_softmax(encoded)
        frames = log_probs.size(1)
        outside = torch.arange(frames, device=log_probs.device) >= lengths[:, None]
        # (B, V, T): a label's frames lie together, which is what the survivors gather
        log_probs = log_probs.masked_fill(outside[:, :, None], 0.0).transpose(1, 2).clamp(min=FLOOR).contiguous()
        owner = torch.arange(log_probs.size(0), device=log_probs.device)
        blanks = log_probs[:, self.blank].double().cumsum(1)
        before_n = torch.full_like(blanks, -INF)
        before_b = _shift(blanks, 0.0).masked_fill_(outside, -INF)
        ending = blanks.gather(1, lengths[:, None] - 1).squeeze(1)
        return CTCState(
            log_probs=log_probs,
            probs=log_probs.to(self.dtype).exp(),
            lengths=lengths,
            owner=owner,
            before_n=before_n,
            before_b=before_b,
            ending=ending,
            psi=torch.zeros_like(ending),
            last=torch.full_like(owner, -1),
        )

    def score(self, state: CTCState, candidates: Tensor | None = None) -> Tensor:
        phi = torch.logaddexp(state.before_n, state.before_b)
        peak = phi.amax(1, keepdim=True).clamp(min=LOG_ZERO)
        weight = (phi - peak).exp_().to(self.dtype)
        vocabulary = state.probs.size(1)
        if candidates is not None and candidates.size(1) * 8 < vocabulary:
            columns = state.probs[state.owner[:, None], candidates]
            mass = torch.bmm(columns, weight[:, :, None]).squeeze(2)
        else:
            mass = _rowwise_product(weight, state.probs, state.owner)
            mass = mass if candidates is None else mass.gather(1, candidates)
        labels = torch.arange(vocabulary, device=mass.device)[None] if candidates is None else candidates
        psi = mass.double().log_().add_(peak)
        self._mend_underflow(state, phi, peak, mass, psi, labels)

        # a repeated label needs a blank between: only r_b continues
        repeat = labels == state.last[:, None]
        if bool(repeat.any()):
            again = self._label(state, state.owner, state.last.clamp(min=0)).add_(state.before_b).logsumexp(1)
            psi = torch.where(repeat, again[:, None], psi)
        psi = torch.where(labels == self.eos, state.ending[:, None], psi)
        psi.masked_fill_((labels == self.blank).expand_as(psi), LOG_ZERO).clamp_(min=LOG_ZERO)
        state.scored, state.candidates = psi, candidates
        return psi - state.psi[:, None]

    def advance(self, state: CTCState, rows: Tensor, tokens: Tensor) -> CTCState:
        owner, repeat = state.owner[rows], tokens == state.last[rows]
        before_b = state.before_b[rows]
        phi = torch.where(repeat[:, None], before_b, torch.logaddexp(state.before_n[rows], before_b))
        lengths = state.lengths[owner]
        outside = torch.arange(phi.size(1), device=phi.device) >= lengths[:, None]
        r_n = _linear_recursion(self._label(state, owner, tokens), phi)
        blank = self._label(state, owner, torch.full_like(tokens, self.blank))
        r_b = _linear_recursion(blank, _shift(r_n, -INF))
        final = lengths[:, None] - 1
        if state.candidates is None:
            psi = state.scored[rows, tokens]
        else:
            psi = state.scored[rows].gather(
                1, (state.candidates[rows] == tokens[:, None]).int().argmax(1, keepdim=True)
            )
        return replace(
            state,
            owner=owner,
            before_n=_shift(r_n, -INF).masked_fill_(outside, -INF),
            before_b=_shift(r_b, -INF).masked_fill_(outside, -INF),
            ending=torch.logaddexp(r_n, r_b).gather(1, final).squeeze(1),
            psi=psi.reshape(-1),
            last=tokens,
            scored=None,
            candidates=None,
        )

    def compact(self, state: CTCState, keep: Tensor, frames: int) -> CTCState:
        place = torch.full((state.lengths.numel(),), -1, dtype=torch.long, device=keep.device)
        place[keep] = torch.arange(keep.numel(), device=keep.device)
        return replace(
            state,
            log_probs=state.log_probs[keep, :, :frames],
            probs=state.probs[keep, :, :frames],
            lengths=state.lengths[keep],
            owner=place[state.owner],
            before_n=state.before_n[:, :frames],
            before_b=state.before_b[:, :frames],
        )

    def _label(self, state: CTCState, owner: Tensor, labels: Tensor) -> Tensor:
        return state.log_probs[owner, labels].double()

    def _mend_underflow(self, state, phi: Tensor, peak: Tensor, mass: Tensor, psi: Tensor, labels: Tensor) -> None:
        """Where so little mass is left that lost terms could matter, sum in the log domain; *psi* changes in place.

        It happens when a label's probability is next to nothing at all frames where the prefix is likely to end.
        """
        info = torch.finfo(self.dtype)
        poor = (
            (mass < phi.size(1) * info.tiny / info.eps)
            & (peak > LOG_ZERO)
            & (labels != self.eos)
            & (labels != self.blank)
        )
        if not bool(poor.any()):
            return
        rows, columns = poor.nonzero(as_tuple=True)
        labels = labels.expand_as(psi)
        for part in torch.arange(rows.numel(), device=rows.device).split(4096):
            row, column = rows[part], columns[part]
            psi[row, column] = self._label(state, state.owner[row], labels[row, column]).add_(phi[row]).logsumexp(1)


def _shift(x: Tensor, first: float) -> Tensor:
    """(N, T), one frame later, with *first* at frame 0."""
    shifted = torch.empty_like(x)
    shifted[:, 0] = first
    shifted[:, 1:] = x[:, :-1]
    return shifted


def _linear_recursion(log_a: Tensor, log_u: Tensor) -> Tensor:
    """log r, where r[t] = a[t] (r[t-1] + u[t]) and r[-1] = 0; (N, T) each."""
    total = log_a.cumsum(1)
    return total + torch.logcumsumexp(log_u - _shift(total, 0.0), 1)


def _rowwise_product(weight: Tensor, probs: Tensor, owner: Tensor) -> Tensor:
    """(N, T) times the (V, T) of each row's utterance → (N, V): one batched product, rows grouped by their owner."""
    count = torch.bincount(owner, minlength=probs.size(0))
    width = int(count.max())
    # rows of an utterance are neighbours, in the order of the stored utterances
    slot = torch.arange(owner.numel(), device=owner.device) - (count.cumsum(0) - count)[owner]
    grid = weight.new_zeros(probs.size(0), width, weight.size(1))
    grid[owner, slot] = weight
    return torch.bmm(grid, probs.transpose(1, 2))[owner, slot]
