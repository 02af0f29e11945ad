"""ESPnet2's default frontend: log-mel energies as librosa makes them, for its models and their statistics."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from espnet3.errors import UserError


class LogMel(nn.Module):
    """What ``frontend: default`` computes in ESPnet2, without ESPnet2: a centred STFT, power, Slaney's mel filters, logarithm.

    An utterance's last frames see what follows it: compute it alone where that matters.

    Args:
        fs: Hz. n_fft, win_length, hop_length: samples; a window is as long as the FFT unless it is given.
        window: ``hann``, ``hamming``, ``blackman`` or ``bartlett``, in torch's periodic form; None: a rectangle.
        fmin, fmax: Hz; 0 and half the sampling rate.
        htk: HTK's mel scale instead of Slaney's.
    """

    def __init__(
        self,
        fs: int = 16000,
        n_fft: int = 512,
        win_length: int | None = None,
        hop_length: int = 128,
        window: str | None = "hann",
        n_mels: int = 80,
        fmin: float | None = None,
        fmax: float | None = None,
        htk: bool = False,
    ):
        super().__init__()
        self.output_size = n_mels
        self.n_fft, self.hop = n_fft, hop_length
        self.length = win_length or n_fft
        if self.length > n_fft or self.length % 2:
            raise UserError(f"frontend_conf: win_length {self.length} must be even, and at most n_fft, {n_fft}")
        shape = torch.ones(self.length) if window is None else getattr(torch, f"{window}_window")(self.length)
        bank = mel_bank(fs, n_fft, n_mels, fmin or 0.0, fmax or fs / 2, htk)
        # real and imaginary parts are squared side by side, and added up by the filters
        doubled = np.repeat(bank, 2, axis=0).astype(np.float32)
        self.register_buffer("window", shape, persistent=False)
        self.register_buffer("filters", torch.from_numpy(doubled), persistent=False)

    @torch.no_grad()
    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T), lengths in samples -> features (B, T', n_mels), lengths; zero past an utterance's end."""
        half = self.length // 2
        padded = nn.functional.pad(speech.float().unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        frames = padded.unfold(1, self.length, self.hop) * self.window
        squares = torch.view_as_real(torch.fft.rfft(frames, n=self.n_fft)).square_().flatten(-2)
        feats = (squares @ self.filters).clamp_(min=1e-10).log_()
        lengths = speech_lengths // self.hop + 1
        if feats.size(0) > 1:
            outside = torch.arange(feats.size(1), device=feats.device) >= lengths.unsqueeze(1)
            feats.masked_fill_(outside.unsqueeze(-1), 0.0)
        return feats, lengths


def mel_bank(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool = False) -> np.ndarray:
    """Triangular filters of unit area (Slaney 1998, Auditory Toolbox): (n_fft // 2 + 1, n_mels)."""
    edges = _hertz(np.linspace(_mel(fmin, htk), _mel(fmax, htk), n_mels + 2), htk)
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


# Slaney's scale is linear below 1 kHz and logarithmic above: 27 steps make a factor of 6.4
_LINEAR, _STEP = 200.0 / 3, np.log(6.4) / 27


def _mel(hertz: float, htk: bool) -> float:
    if htk:
        return float(2595.0 * np.log10(1.0 + hertz / 700.0))
    return hertz / _LINEAR if hertz < 1000 else 1000 / _LINEAR + float(np.log(hertz / 1000)) / _STEP


def _hertz(mels: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels < 15, mels * _LINEAR, 1000 * np.exp((mels - 1000 / _LINEAR) * _STEP))
