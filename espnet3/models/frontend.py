"""Log-mel filterbank energies, computed in batches inside the model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from espnet3.errors import UserError


def mel_filterbank(n_mels: int, n_fft: int, sampling_rate: int, fmin: float, fmax: float) -> np.ndarray:
    """Triangular filters on the HTK mel scale, each with a peak of one, as in Kaldi: (n_fft // 2 + 1, n_mels)."""

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)

    points = np.linspace(mel(fmin), mel(fmax), n_mels + 2)
    bins = mel(np.arange(n_fft // 2 + 1) * sampling_rate / n_fft)[:, None]
    rising = (bins - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - bins) / (points[2:] - points[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


# frames that a CPU works on at a time: their spectra stay in its cache, which is half of the time
BLOCK = 128


class Fbank(nn.Module):
    """Log-mel filterbank in the manner of Kaldi: pre-emphasis, Povey window, power spectrum, mel sums, logarithm.

    Differs from Kaldi in that pre-emphasis runs over the whole signal, there is no dither, and energies are floored at
    *floor* of a full-scale signal, so that digital silence is not an outlier. A frame never sees samples past its
    utterance's end, so features do not depend on padding. Without learnable parameters; no gradient flows through it.
    Batches that hold features already, computed where the data is loaded (:mod:`espnet3.data.features`), pass unchanged.

    Args:
        sampling_rate: Hz.
        n_mels: number of filters.
        frame_length, frame_shift: milliseconds.
        n_fft: FFT size; None takes the least power of two for which no filter is empty.
        fmin, fmax: Hz; fmax None is half the sampling rate, a negative one counts down from there.
        window: ``povey``, ``hann`` or ``hamming``.
        framewise: each frame loses its mean and is pre-emphasised by itself, as in Kaldi and Lhotse.

    Raises:
        UserError: a filter would be empty, or the band is impossible.
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        n_mels: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        n_fft: int | None = None,
        fmin: float = 20.0,
        fmax: float | None = None,
        preemphasis: float = 0.97,
        window: str = "povey",
        floor: float = 1e-9,
        framewise: bool = False,
    ):
        super().__init__()
        self.sampling_rate = sampling_rate
        self.output_size = n_mels
        self.win_length = round(sampling_rate * frame_length / 1000)
        self.hop_length = round(sampling_rate * frame_shift / 1000)
        self.preemphasis = preemphasis
        self.floor = floor
        self.framewise = framewise
        nyquist = sampling_rate / 2
        fmax = nyquist if fmax is None else fmax if fmax > 0 else nyquist + fmax
        if not 0 <= fmin < fmax <= nyquist:
            raise UserError(f"model.frontend: the band {fmin}-{fmax} Hz is not within 0-{nyquist} Hz; mend fmin, fmax")
        automatic = n_fft is None
        self.n_fft = n_fft or 1 << (self.win_length - 1).bit_length()
        if self.n_fft < self.win_length:
            raise UserError(f"model.frontend: n_fft {self.n_fft} is shorter than the frame ({self.win_length} samples)")
        filters = mel_filterbank(n_mels, self.n_fft, sampling_rate, fmin, fmax)
        while automatic and not filters.any(axis=0).all() and self.n_fft < 16 * self.win_length:
            self.n_fft *= 2
            filters = mel_filterbank(n_mels, self.n_fft, sampling_rate, fmin, fmax)
        if not filters.any(axis=0).all():
            raise UserError(f"model.frontend: {n_mels} mel filters leave some empty with n_fft {self.n_fft}; use fewer")
        # Bins above the last filter cost time in the product and add nothing
        self.bins = int(np.flatnonzero(filters.any(axis=1))[-1]) + 1
        self.register_buffer("filters", torch.from_numpy(filters[: self.bins].astype(np.float32)), persistent=False)
        self.register_buffer("window", self._window(window), persistent=False)

    def _window(self, name: str) -> Tensor:
        n = self.win_length
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n, dtype=torch.float64) / (n - 1))
        windows = {"povey": hann**0.85, "hann": hann, "hamming": 0.08 + 0.92 * hann}
        if name not in windows:
            raise UserError(f"model.frontend.window: unknown '{name}'; known: {', '.join(sorted(windows))}")
        return windows[name].float()

    def frames(self, samples: Tensor) -> Tensor:
        """Number of frames of *samples* samples: only whole frames count, and at least one."""
        return torch.clamp((samples - self.win_length) // self.hop_length + 1, min=1)

    @torch.no_grad()
    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) in [-1, 1] and their lengths in samples -> features (B, T', n_mels) and their lengths.

        Always in float32, whatever the autocast precision; frames past an utterance's length hold rubbish. Features
        (B, T', n_mels) and their lengths are returned as they are.
        """
        if speech.dim() == 3:
            return speech, speech_lengths
        with torch.autocast(speech.device.type, enabled=False):
            speech = speech.float()
            if speech.size(1) < self.win_length:
                speech = nn.functional.pad(speech, (0, self.win_length - speech.size(1)))
            original = speech
            if self.preemphasis:
                first = speech[:, :1] * (1 - self.preemphasis)
                speech = torch.cat([first, torch.sub(speech[:, 1:], speech[:, :-1], alpha=self.preemphasis)], dim=1)
            frames = speech.unfold(1, self.win_length, self.hop_length)
            if self.framewise:
                frames = frames - self._offsets(original)
            if speech.device.type == "cpu":
                energy = speech.new_empty(*frames.shape[:2], self.output_size)
                for row, out in zip(frames, energy, strict=True):
                    for some, place in zip(row.split(BLOCK), out.split(BLOCK), strict=True):
                        torch.mm(self._power(some), self.filters, out=place)
            else:
                energy = self._power(frames) @ self.filters
            # The floor is relative to a full-scale signal's energy in one frame
            return energy.clamp_(min=self.floor).log_(), self.frames(speech_lengths)

    def _power(self, frames: Tensor) -> Tensor:
        """Frames (..., win_length) -> power spectra (..., bins)."""
        spectrum = torch.fft.rfft(frames * self.window, n=self.n_fft)[..., : self.bins]
        return torch.view_as_real(spectrum).square_().sum(-1)

    def _offsets(self, speech: Tensor) -> Tensor:
        """What turns frames of the emphasised signal into frames emphasised by themselves: (B, T', win_length).

        With a frame's mean m and the coefficient a, the difference is (1 - a) m; and its first sample's predecessor is itself.
        """
        frames = speech.unfold(1, self.win_length, self.hop_length)
        offsets = (1 - self.preemphasis) * frames.mean(-1, keepdim=True).expand(-1, -1, self.win_length)
        if self.preemphasis:
            before = speech[:, self.hop_length - 1 :: self.hop_length]
            before = torch.cat([speech[:, :1], before[:, : frames.size(1) - 1]], dim=1)
            offsets = offsets.clone()
            offsets[..., 0] += self.preemphasis * (frames[..., 0] - before)
        return offsets
