"""Features computed where data is loaded: ``dataloader.train.features: {_target_: ...}``.

A batch's ``speech`` then is (B, T', F) and its ``speech_lengths`` are frames; the in-model frontend lets such batches pass. With
the same features on both sides, statistics and decoding go on reading waveforms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from espnet3.errors import UserError


class LhotseFeatures:
    """A Lhotse feature extractor, or its ``OnTheFlyFeatures``, on single waveforms.

    Args:
        extractor: a ``lhotse.FeatureExtractor``, or a ``lhotse.dataset.OnTheFlyFeatures``, whose extractor and wave transforms
            are taken.
        sampling_rate: Hz.

    Raises:
        UserError: *extractor* is neither.
    """

    def __init__(self, extractor: Any, sampling_rate: int) -> None:
        self.transforms = list(getattr(extractor, "wave_transforms", ()))
        self.extractor = extractor if hasattr(extractor, "extract") else getattr(extractor, "extractor", None)
        self.sampling_rate = sampling_rate
        if not hasattr(self.extractor, "extract"):
            raise UserError(f"features: {type(extractor).__name__} is no feature extractor of Lhotse")

    def __call__(self, speech: np.ndarray) -> np.ndarray:
        """(T,) to (T', F), float32."""
        for transform in self.transforms:
            speech = np.asarray(transform(torch.from_numpy(speech)[None]))[0]
        return np.asarray(self.extractor.extract(speech, self.sampling_rate), dtype=np.float32)


class LhotseFbank(LhotseFeatures):
    """Lhotse's ``Fbank`` with the settings that the in-model frontend shares.

    It gives what ``espnet3.models.frontend.Fbank(sampling_rate, n_mels, ..., framewise=True, floor=1.1920929e-07)`` gives (to 1e-3
    in the logarithm): whole frames only (``snip_edges``), filters up to half the sampling rate, no dither.

    Args:
        sampling_rate: Hz. n_mels: number of filters. frame_length, frame_shift: milliseconds. fmin, fmax: Hz; fmax None is half
            the sampling rate. window: ``povey``, ``hann`` or ``hamming``.
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        n_mels: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        fmin: float = 20.0,
        fmax: float | None = None,
        preemphasis: float = 0.97,
        window: str = "povey",
    ) -> None:
        import warnings

        from lhotse import Fbank, FbankConfig

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`snip_edges` is set to True")
            config = FbankConfig(
                sampling_rate=sampling_rate,
                num_filters=n_mels,
                frame_length=frame_length / 1000,
                frame_shift=frame_shift / 1000,
                low_freq=fmin,
                high_freq=fmax or 0.0,
                preemph_coeff=preemphasis,
                window_type={"hann": "hanning"}.get(window, window),
                snip_edges=True,
                dither=0.0,
            )
        super().__init__(Fbank(config), sampling_rate)


class FrontendFeatures:
    """The model's own frontend, in the loader's processes: CPU cores compute features while a GPU trains.

    Args:
        frontend: ``(speech (B, T), lengths) -> (features (B, T', F), lengths)``, the node of ``model.frontend``.
    """

    def __init__(self, frontend: torch.nn.Module) -> None:
        self.frontend = frontend.eval()

    def __call__(self, speech: np.ndarray) -> np.ndarray:
        """(T,) to (T', F), float32."""
        with torch.inference_mode():
            feats, lengths = self.frontend(torch.from_numpy(speech)[None], torch.tensor([len(speech)]))
        return feats[0, : int(lengths[0])].numpy()
