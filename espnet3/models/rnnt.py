"""The transducer loss (A. Graves, arXiv 1211.3711), without a loop over labels.

Along the labels of one frame the forward recursion is a running sum in the log domain, so a frame is one
``logcumsumexp``; gradients are the occupancies of the lattice's arcs, from the forward and the backward variables.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet3.models.layers import length_mask


def rnnt_loss(logits: Tensor, lengths: Tensor, text: Tensor, text_lengths: Tensor, blank: int = 0) -> Tensor:
    """Negative log-likelihood of each utterance (B,).

    Args:
        logits: (B, T, U + 1, V), scores after frame t and u labels, not normalised.
        lengths: frames (B,), each at least 1. text: labels (B, U). text_lengths: (B,).
    """
    log_probs = logits.float().log_softmax(-1)
    labels = text.clamp(min=0)[:, None, :, None].expand(-1, log_probs.size(1), -1, -1)
    emit = log_probs[:, :, :-1].gather(3, labels).squeeze(3)
    return _Lattice.apply(log_probs[..., blank], emit, lengths, text_lengths)


class _Lattice(torch.autograd.Function):
    """-log of the sum over all paths, in float64: long sums of logarithms cancel.

    ``blank`` (B, T, U + 1): log-probability of going on to the next frame; ``emit`` (B, T, U): of the next label.
    """

    @staticmethod
    def forward(ctx, blank: Tensor, emit: Tensor, lengths: Tensor, text_lengths: Tensor) -> Tensor:
        frames = blank.size(1)
        b, e = blank.double(), emit.double()
        # sums[u]: of the labels before u within one frame; those past an utterance's end change nothing
        sums = F.pad(e.masked_fill(~length_mask(text_lengths, e.size(2))[:, None], 0.0).cumsum(2), (1, 0))
        alphas = torch.empty_like(b)
        row = torch.where(torch.arange(b.size(2), device=b.device) == 0, 0.0, float("-inf")).double().expand_as(b[:, 0])
        for t in range(frames):
            row = sums[:, t] + torch.logcumsumexp(row - sums[:, t], 1)
            alphas[:, t] = row
            row = row + b[:, t]
        rows = torch.arange(b.size(0), device=b.device)
        total = alphas[rows, lengths - 1, text_lengths] + b[rows, lengths - 1, text_lengths]
        ctx.save_for_backward(b, e, sums, alphas, total, lengths, text_lengths)
        ctx.types = blank.dtype, emit.dtype
        return -total.to(blank.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        b, e, sums, alphas, total, lengths, text_lengths = ctx.saved_tensors
        frames = b.size(1)
        end = torch.arange(b.size(2), device=b.device) == text_lengths[:, None]
        after = torch.where(end, 0.0, float("-inf")).double()
        # beyond[t]: backward variables of frame t + 1; an utterance's last frame leads to its end
        beyond, betas = torch.empty_like(b), torch.empty_like(b)
        for t in range(frames - 1, -1, -1):
            beyond[:, t] = after
            row = b[:, t] + after
            # a path from u in this frame takes the labels u..v-1, then the blank at v
            row = torch.logcumsumexp((row + sums[:, t]).flip(1), 1).flip(1) - sums[:, t]
            betas[:, t] = row
            after = torch.where((t < lengths)[:, None], row, after)
        inside = length_mask(lengths, frames)[:, :, None]
        scale = grad.double()[:, None, None]
        z = total[:, None, None]
        grad_blank = -scale * (alphas + b + beyond - z).exp().masked_fill(~inside, 0.0)
        inside = inside & length_mask(text_lengths, e.size(2))[:, None]
        grad_emit = -scale * (alphas[:, :, :-1] + e + betas[:, :, 1:] - z).exp().masked_fill(~inside, 0.0)
        return grad_blank.to(ctx.types[0]), grad_emit.to(ctx.types[1]), None, None
