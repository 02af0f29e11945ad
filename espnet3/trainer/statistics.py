"""Feature statistics as a provider and a runner: in process, in processes or on a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from espnet3.config.instantiate import instantiate
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.errors import UserError
from espnet3.parallel import BaseRunner, InferenceProvider

# Sums are kept in fixed point: adding integers has no order, so any number of shards merges to the same bytes
SCALE = 2.0**16


class StatsProvider(InferenceProvider):
    """The data set and the frontend of ``{"manifest": path, "frontend": node}``."""

    @staticmethod
    def build_dataset(config: Any) -> ESPnet3Dataset:
        """The manifest's utterances."""
        return ESPnet3Dataset(config["manifest"])

    @staticmethod
    def build_model(config: Any) -> torch.nn.Module:
        """The frontend, on one thread: an utterance's sums must not depend on how many there are."""
        torch.set_num_threads(1)
        return instantiate(config["frontend"]).eval()


class StatsRunner(BaseRunner):
    """One utterance's number of frames, sum and sum of squares of its features (fixed point)."""

    @staticmethod
    def forward(idx: int, dataset: ESPnet3Dataset, model: torch.nn.Module, **env: Any) -> dict[str, Any]:
        """``{"id", "frames", "sum", "sum_square"}``.

        Raises:
            UserError: the features are not finite.
        """
        uid, data = dataset[idx]
        speech = torch.as_tensor(data["speech"]).unsqueeze(0)
        # one utterance at a time: its sums must not depend on what else is in a batch
        with torch.inference_mode():
            feats, frames = model(speech, torch.tensor([speech.size(1)]))
            number = int(frames)
            feats = feats[0, :number].double()
            # sums as products: a quarter of the time that reductions over the longer axis take
            ones = feats.new_ones(number)
            sums = [ones @ feats, ones @ feats.square_()]
        values = torch.stack(sums).numpy()
        if not np.isfinite(values).all():
            raise UserError(f"utterance {uid} has features that are not finite; look at its audio")
        fixed = np.rint(values * SCALE).astype(np.int64).tolist()
        return {"id": uid, "frames": number, "sum": fixed[0], "sum_square": fixed[1]}
