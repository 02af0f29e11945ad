"""A training small enough for a test: letters are tones, so that there is something to learn.

``python tiny.py EXPDIR EPOCHS [--kill-at STEP]`` trains in a process of its own, which can be killed.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from espnet3.config.instantiate import instantiate
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.text.tokenizer import Tokenizer
from espnet3.trainer.batches import seed_all
from espnet3.trainer.model import LitESPnetModel
from espnet3.trainer.trainer import ESPnet3LightningTrainer

RATE = 8000
TONES = {"a": 400.0, "b": 900.0, "c": 1800.0}
TOKENIZER = Tokenizer(["<blank>", "<unk>", *TONES, "<sos/eos>"], "char")


def utterances(number: int, seed: int) -> list[dict[str, Any]]:
    """*number* utterances of 2 to 5 tones of 0.15 s."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(number):
        letters = rng.choice(list(TONES), rng.integers(2, 6))
        time = np.arange(int(0.15 * RATE)) / RATE
        gap = np.zeros(RATE // 20)
        parts = [np.append(np.sin(2 * np.pi * TONES[x] * time) * 0.3, gap) for x in letters]
        audio = np.concatenate(parts) + rng.standard_normal(sum(map(len, parts))) * 0.01
        items.append(
            {
                "id": f"u{i:03d}",
                "audio": {"array": audio.astype("float32"), "sampling_rate": RATE},
                "text": "".join(letters),
            }
        )
    return items


def model_node(**encoder: Any) -> dict[str, Any]:
    sizes = {"input_size": 20, "output_size": 16, "heads": 2, "hidden": 32, "blocks": 1, "kernel": 5}
    return {
        "_target_": "espnet3.models.asr.ASRModel",
        "vocab_size": len(TOKENIZER),
        "frontend": {"_target_": "espnet3.models.frontend.Fbank", "sampling_rate": RATE, "n_mels": 20},
        "encoder": {
            "_target_": "espnet3.models.conformer.ConformerEncoder",
            "subsampling_channels": 4,
            **sizes,
            **encoder,
        },
        "decoder": {
            "_target_": "espnet3.models.decoder.TransformerDecoder",
            **{"size": 16, "heads": 2, "hidden": 32, "blocks": 1},
        },
        "specaug": {"_target_": "espnet3.models.specaug.SpecAugment", "freq_width": 3},
    }


def config(epochs: int, **trainer: Any) -> dict[str, Any]:
    sampler = {"_target_": "lhotse.dataset.DynamicBucketingSampler", "max_duration": 4.0, "num_buckets": 3}
    return {
        "seed": 0,
        "data": {"sampling_rate": RATE},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3, "weight_decay": 0.01},
        "scheduler": {"_target_": "espnet3.trainer.schedulers.WarmupCosine", "warmup_steps": 5, "steps": 60},
        "dataloader": {"train": {"sampler": sampler}, "valid": {"batch_size": 8}},
        "trainer": {"max_epochs": epochs, "gradient_clip_val": 5.0, "checkpoint_steps": 3, **trainer},
        "best_model_criterion": [["valid/loss", 2, "min"]],
        "execution": {"accelerator": "cpu"},
    }


def make_trainer(expdir: str | os.PathLike, epochs: int, model: Any = None, **trainer: Any) -> ESPnet3LightningTrainer:
    torch.set_num_threads(1)
    seed_all(0)
    datasets = {
        "train": ESPnet3Dataset(utterances(48, 1), tokenizer=TOKENIZER),
        "valid": ESPnet3Dataset(utterances(8, 2), tokenizer=TOKENIZER),
    }
    settings = config(epochs, **trainer)
    model = LitESPnetModel(instantiate(model_node()) if model is None else model, settings)
    return ESPnet3LightningTrainer(model, settings, expdir, datasets)


class SignalAt(pl.Callback):
    """Sends this process a signal once *step* is done."""

    def __init__(self, step: int, signum: int):
        self.step, self.signum = step, signum

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


def weights(expdir: str | os.PathLike) -> dict[int, str]:
    """Digest of each epoch's weights."""
    from espnet3.io import read_json

    return {c["epoch"]: c["sha256"] for c in read_json(Path(expdir) / "checkpoints.json")["checkpoints"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("expdir")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--kill-at", type=int)
    given = parser.parse_args()
    chosen = make_trainer(given.expdir, given.epochs)
    if given.kill_at:
        chosen.extra_callbacks.append(SignalAt(given.kill_at, signal.SIGKILL))
    chosen.fit()
