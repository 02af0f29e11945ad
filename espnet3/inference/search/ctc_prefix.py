"""CTC prefix scores without a loop over time.

The CTC prefix probability of g·c (Watanabe et al., "Hybrid CTC/attention architecture for end-to-end speech
recognition", 2017, algorithm 2) is the sum over t of phi[t-1] p[t](c), where phi[t] is the probability that the frames
up to t spell g (ending in blank where c repeats the last label of g). It needs no recursion: over the whole vocabulary
it is one matrix product. The recursion serves only the forward variables of the prefixes that survive, and there it is
a linear one, so that cumulative sums solve it: with X and B the cumulative log-probabilities of c and of blank,

    r_n = X + logcumsumexp(phi[t-1] - X[t-1]),    r_n + r_b = B + logcumsumexp(r_n - B),

the sum on the right being that of the probabilities.

X and B grow with the number of frames and cancel again, hence float64 throughout the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet3.inference.scorers.base import Scorer, fit, keep_rows

LOG_ZERO = -1e10
# exp(-1000) is zero in float64; an infinity would turn the differences of the cumulative sums into NaN
FLOOR = -1e3
# where exponentials underflow, the vector library takes the slow way; terms so small are lost in any sum that counts
LEAST = -700.0
INF = float("inf")
# Within a block of frames the probabilities of a label alone lie within e^(25 * 16), so that float64 loses a prefix's earlier
# ends only where they are less than e^-300 of its later ones
BLOCK = 16
SLOPE = -25.0
LEAST_PEAK = -1e30


@dataclass
class CTCState:
    """Stored utterances (B, V, T), and the forward variables of N rows.

    ``blanks`` (B, T + 1) sums the blank's log-probabilities before each frame; ``final`` (B,) is each utterance's last frame.
    ``phi`` and ``before_b`` (N, T) belong to the frame before: entry t is what frame t continues, in any way or after a
    blank; minus infinity past the end. ``ending`` (N,) is the log-probability that the whole input spells the prefix,
    ``psi`` (N,) that it begins so, ``again`` (N,) that it does with its last label once more. ``base`` (N,) is where the
    row's utterance begins in the (B * V, T) of the labels, ``least`` the smallest of them (known on CPUs only).
    """

    log_probs: Tensor
    probs: Tensor
    blanks: Tensor
    outside: Tensor
    final: Tensor
    base: Tensor
    phi: Tensor
    before_b: Tensor
    ending: Tensor
    psi: Tensor
    again: Tensor
    last: Tensor | None
    width: int
    least: float = -INF
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

    def start(self, encoded: Tensor, lengths: Tensor, width: int) -> CTCState:
        log_probs = self.log_softmax(encoded)
        utterances, frames, vocabulary = log_probs.shape
        outside = torch.arange(frames, device=log_probs.device) >= lengths[:, None]
        # (B, V, T): a label's frames lie together, which is what the survivors gather
        log_probs = log_probs.masked_fill(outside[:, :, None], 0.0).transpose(1, 2).clamp(min=FLOOR).contiguous()
        blanks = F.pad(log_probs[:, self.blank].double().cumsum(1), (1, 0))
        final = lengths - 1
        ending = blanks.gather(1, lengths[:, None]).expand(-1, width).flatten()
        before_b = blanks[:, :-1].masked_fill(outside, -INF).repeat_interleave(width, 0)
        first = torch.arange(utterances, device=log_probs.device) * vocabulary
        return CTCState(
            log_probs=log_probs,
            probs=log_probs.to(self.dtype).exp(),
            blanks=blanks,
            outside=outside,
            final=final,
            base=first.repeat_interleave(width),
            phi=before_b,
            before_b=before_b,
            ending=ending,
            psi=torch.zeros_like(ending),
            again=torch.zeros_like(ending),
            last=None,
            width=width,
            least=float(log_probs.min()) if log_probs.device.type == "cpu" and log_probs.numel() else -INF,
        )

    def score(self, state: CTCState, candidates: Tensor | None = None) -> Tensor:
        utterances, vocabulary, frames = state.probs.shape
        peak = state.phi.amax(1, keepdim=True).clamp_(min=LOG_ZERO)
        weight = (state.phi - peak).clamp_(min=LEAST).exp_().to(self.dtype)
        if candidates is not None and candidates.size(1) * 8 < vocabulary:
            columns = state.probs.flatten(0, 1)[state.base[:, None] + candidates]
            mass = torch.bmm(columns, weight[:, :, None]).squeeze(2)
        else:
            mass = torch.bmm(weight.view(utterances, state.width, frames), state.probs.transpose(1, 2)).flatten(0, 1)
            mass = mass if candidates is None else mass.gather(1, candidates)
        psi = mass.double().log().add_(peak)
        self._mend_underflow(state, peak, mass, psi, candidates)
        if state.last is not None:
            # a repeated label needs a blank between: only r_b continues
            if candidates is None:
                psi.scatter_(1, state.last[:, None], state.again[:, None])
            else:
                psi = torch.where(candidates == state.last[:, None], state.again[:, None], psi)
        if candidates is None:
            psi[:, self.eos] = state.ending
            psi[:, self.blank] = LOG_ZERO
        else:
            psi = torch.where(candidates == self.eos, state.ending[:, None], psi)
            psi.masked_fill_(candidates == self.blank, LOG_ZERO)
        psi.clamp_(min=LOG_ZERO)
        state.scored, state.candidates = psi, candidates
        return psi - state.psi[:, None]

    def advance(self, state: CTCState, rows: Tensor, tokens: Tensor) -> CTCState:
        before_b, phi = state.before_b.index_select(0, rows), state.phi.index_select(0, rows)
        if state.last is not None:
            repeat = tokens == state.last[rows]
            phi = torch.where(repeat[:, None], before_b, phi)
        # a row keeps its utterance: base, blanks and lengths stay in place
        utterances, frames = state.final.numel(), phi.size(1)
        own = self._label(state, state.base, tokens)
        label = own.cumsum(1)
        r_n = self._scan(state, phi.sub_(label).add_(own)).add_(label)
        blanks = state.blanks[:, None, 1:]
        grid = (utterances, state.width, frames)
        total = self._scan(state, r_n.view(grid).sub_(blanks).view_as(r_n)).view(grid).add_(blanks)
        ending = total.gather(2, state.final[:, None, None].expand(-1, state.width, 1)).flatten()
        new_phi, new_b = torch.full_like(total, -INF), torch.full_like(total, -INF)
        new_phi[:, :, 1:] = total[:, :, :-1]
        # the frame before was a blank, after any end of the prefix
        torch.add(new_phi[:, :, :-1], state.log_probs[:, None, self.blank, :-1], out=new_b[:, :, 1:])
        new_phi, new_b = (x.masked_fill_(state.outside[:, None], -INF).view_as(r_n) for x in (new_phi, new_b))
        place = tokens
        if state.candidates is not None:
            place = (state.candidates.index_select(0, rows) == tokens[:, None]).int().argmax(1)
        psi = state.scored.flatten()[rows * state.scored.size(1) + place]
        return replace(
            state,
            phi=new_phi,
            before_b=new_b,
            ending=ending,
            psi=psi,
            again=_logsumexp(own.add_(new_b)),
            last=tokens,
            scored=None,
            candidates=None,
        )

    def select(self, state: CTCState, utterances: Tensor, frames: int) -> CTCState:
        rows = keep_rows(utterances, state.width)
        return replace(
            state,
            log_probs=state.log_probs[utterances, :, :frames].contiguous(),
            probs=state.probs[utterances, :, :frames].contiguous(),
            blanks=state.blanks[utterances, : frames + 1],
            outside=state.outside[utterances, :frames],
            final=state.final[utterances],
            base=state.base[: rows.numel()],
            phi=state.phi[rows, :frames],
            before_b=state.before_b[rows, :frames],
            ending=state.ending[rows],
            psi=state.psi[rows],
            again=state.again[rows],
            last=None if state.last is None else state.last[rows],
        )

    def replace(self, state: CTCState, slots: Tensor, fresh: CTCState, frames: int) -> CTCState:
        rows = keep_rows(slots, state.width)
        widths = {"blanks": frames + 1} | dict.fromkeys(("log_probs", "probs", "outside", "phi", "before_b"), frames)
        values = {"probs": 1.0, "outside": True, "phi": -INF, "before_b": -INF}
        changed: dict[str, Any] = {}
        for name in ("log_probs", "probs", "blanks", "outside", "final", "phi", "before_b", "ending", "psi", "again"):
            old, new = getattr(state, name), getattr(fresh, name)
            if name in widths:
                old, new = (fit(x, widths[name], values.get(name, 0.0)) for x in (old, new))
            changed[name] = old.index_copy_(0, slots if new.size(0) == slots.numel() else rows, new)
        # no label repeats that of an empty prefix; blank is scored apart
        last = state.last.clone()
        last[rows] = self.blank
        return replace(state, last=last, least=min(state.least, fresh.least), **changed)

    def _scan(self, state: CTCState, x: Tensor) -> Tensor:
        """``x.logcumsumexp(1)``, by blocks where the slopes allow it; torch's own goes through frames one by one on a CPU."""
        if state.least < SLOPE or x.size(1) <= 2 * BLOCK:
            return x.logcumsumexp(1)
        frames = x.size(1)
        blocks = F.pad(x, (0, -frames % BLOCK), value=-INF).view(x.size(0), -1, BLOCK)
        peak = blocks.amax(2, keepdim=True).clamp_(min=LEAST_PEAK)
        sums = blocks.sub(peak).exp_().cumsum(2)
        # up to the end of each block, and before it
        upto = (sums[:, :, -1:].log() + peak).logcumsumexp(1)
        before = torch.full_like(upto, -INF)
        before[:, 1:] = upto[:, :-1]
        top = torch.maximum(before, peak)
        sums.mul_((peak - top).exp_()).add_((before - top).exp_())
        return sums.log_().add_(top).flatten(1)[:, :frames]

    def _label(self, state: CTCState, base: Tensor, labels: Tensor) -> Tensor:
        return state.log_probs.flatten(0, 1).index_select(0, base + labels).double()

    def _mend_underflow(
        self, state: CTCState, peak: Tensor, mass: Tensor, psi: Tensor, candidates: Tensor | None
    ) -> None:
        """Where so little mass is left that lost terms could matter, sum in the log domain; *psi* changes in place.

        It happens when a label's probability is next to nothing at all frames where the prefix is likely to end.
        """
        info = torch.finfo(self.dtype)
        least = state.phi.size(1) * info.tiny / info.eps
        if mass.numel() == 0 or float(mass.min()) >= least:
            return
        labels = torch.arange(psi.size(1), device=psi.device)[None] if candidates is None else candidates
        poor = (mass < least) & (peak > LOG_ZERO) & (labels != self.eos) & (labels != self.blank)
        rows, columns = poor.nonzero(as_tuple=True)
        labels = labels.expand_as(psi)
        for part in torch.arange(rows.numel(), device=rows.device).split(4096):
            row, column = rows[part], columns[part]
            psi[row, column] = _logsumexp(self._label(state, state.base[row], labels[row, column]).add_(state.phi[row]))


def _logsumexp(x: Tensor) -> Tensor:
    """(M, T) -> (M,); under ``LOG_ZERO`` where all is impossible."""
    peak = x.amax(1, keepdim=True).clamp_(min=LOG_ZERO)
    return x.sub_(peak).clamp_(min=LEAST).exp_().sum(1).log_().add_(peak.squeeze(1))
