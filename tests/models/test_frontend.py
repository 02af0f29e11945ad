"""Log-mel features against an independent computation, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espnet3.errors import UserError
from espnet3.models.frontend import Fbank


def reference(x: np.ndarray, rate: int, n_mels: int, n_fft: int, floor: float = 1e-9) -> np.ndarray:
    """The definition in NumPy, in float64, with a loop over the frames."""
    win, hop = rate * 25 // 1000, rate // 100
    emphasised = np.append(x[0] * 0.03, x[1:] - 0.97 * x[:-1])
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / (win - 1))) ** 0.85
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + rate / 2 / 700), n_mels + 2)
    mels = 1127 * np.log(1 + np.arange(n_fft // 2 + 1) * rate / n_fft / 700)
    filters = np.zeros((n_mels, len(mels)))
    for m in range(n_mels):
        left, centre, right = edges[m : m + 3]
        for k, mel in enumerate(mels):
            if left < mel <= centre:
                filters[m, k] = (mel - left) / (centre - left)
            elif centre < mel < right:
                filters[m, k] = (right - mel) / (right - centre)
    frames = [
        np.log(np.maximum(filters @ np.abs(np.fft.rfft(emphasised[i : i + win] * window, n_fft)) ** 2, floor))
        for i in range(0, len(x) - win + 1, hop)
    ]
    return np.array(frames)


@pytest.mark.parametrize(("rate", "n_mels"), [(16000, 80), (8000, 80), (8000, 40)])
def test_equals_the_definition(rate, n_mels):
    frontend = Fbank(rate, n_mels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(rate) * np.linspace(1e-3, 0.3, rate)
    feats, lengths = frontend(torch.from_numpy(x).float()[None], torch.tensor([rate]))
    expected = reference(x, rate, n_mels, frontend.n_fft)
    assert feats.shape[1:] == expected.shape and lengths.item() == len(expected)
    np.testing.assert_allclose(feats[0].numpy(), expected, atol=2e-3)


def test_silence_and_a_single_sample_are_finite():
    frontend = Fbank(16000, 80)
    feats, lengths = frontend(torch.zeros(2, 100), torch.tensor([100, 1]))
    assert lengths.tolist() == [1, 1] and feats.shape == (2, 1, 80)
    assert torch.isfinite(feats).all() and feats.unique().numel() == 1


def test_no_filter_is_empty_and_impossible_bands_are_refused():
    assert Fbank(8000, 120).n_fft > 256
    with pytest.raises(UserError, match="empty"):
        Fbank(8000, 120, n_fft=256)
    with pytest.raises(UserError, match="band"):
        Fbank(8000, 40, fmax=6000)
    with pytest.raises(UserError, match="povey"):
        Fbank(8000, 40, window="square")


def test_half_precision_training_keeps_features_in_float32():
    x, n = torch.randn(1, 8000) * 0.1, torch.tensor([8000])
    frontend = Fbank(16000, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feats, _ = frontend(x, n)
    assert feats.dtype == torch.float32
    torch.testing.assert_close(feats, frontend(x, n)[0])
