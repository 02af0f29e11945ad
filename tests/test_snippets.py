"""The design overview's snippets run as they are written, on a local data set where it says "some_dataset"."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest

RATE = 8000
LETTERS = {"a": 400.0, "b": 900.0, "c": 1800.0}

DATASET = """
from datasets import load_dataset
from espnet3.data.dataset import ESPnet3Dataset

dataset = ESPnet3Dataset(load_dataset("some_dataset", split="train"))
"""

DATALOADER = """
from lhotse.dataset import DynamicBucketingSampler
from espnet3.data.loader import make_dataloader

dataloader = make_dataloader(dataset, sampler=DynamicBucketingSampler(...))
"""

TRAINER = """
from espnet3.trainer.trainer import ESPnet3LightningTrainer
from espnet3.trainer.model import LitESPnetModel

model = LitESPnetModel(task)
trainer = ESPnet3LightningTrainer(model=model, config=config, expdir="exp")
trainer.fit()
"""

# the overview describes Provider/Runner in words: a provider builds, a static forward uses, `parallel` says where
RUNNER = """
from espnet3.parallel import BaseRunner, InferenceProvider

class Durations(InferenceProvider):
    @staticmethod
    def build_dataset(config):
        return config["durations"]
    @staticmethod
    def build_model(config):
        return round

class Rounded(BaseRunner):
    @staticmethod
    def forward(idx, dataset, model, **env):
        return model(dataset[idx])

result = Rounded(Durations({"durations": [1.2, 2.7, 3.1]}))(range(3))
"""


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """A folder with a data set of spoken tones, as ``load_dataset`` reads it; the snippets share their names."""
    folder = tmp_path_factory.mktemp("overview")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        letters = rng.choice(list(LETTERS), rng.integers(2, 6))
        seconds = np.arange(RATE // 5) / RATE
        tones = np.concatenate([np.sin(2 * math.pi * LETTERS[x] * seconds) for x in letters])
        audio = {"array": (0.3 * tones).astype("float32"), "sampling_rate": RATE}
        rows.append({"id": f"u{number:02d}", "audio": audio, "text": "".join(letters)})
    (folder / "some_dataset").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "some_dataset/train.parquet"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        names: dict = {}
        exec(DATASET, names)
        yield names


def test_a_hugging_face_data_set(namespace):
    uid, item = namespace["dataset"][0]
    assert uid == "u00" and item["speech"].dtype == np.float32 and set(item["text"]) <= set(LETTERS)


def test_a_lhotse_sampler(namespace):
    exec(DATALOADER.replace("...", "dataset.cuts, max_duration=5.0, num_buckets=2"), namespace)
    seen = [uid for uids, batch in namespace["dataloader"] for uid in uids]
    assert sorted(seen) == [f"u{number:02d}" for number in range(24)]


def test_the_trainer(namespace):
    from espnet3.data.dataset import ESPnet3Dataset
    from espnet3.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(["<blank>", "<unk>", *LETTERS, "<sos/eos>"], "char")
    exec(DATASET.replace('"train"))', '"train"), tokenizer=tokenizer)'), names := {"tokenizer": tokenizer})
    assert isinstance(names["dataset"], ESPnet3Dataset)
    sizes = {"output_size": 16, "heads": 2, "hidden": 32, "blocks": 1}
    namespace["task"] = {
        "_target_": "espnet3.models.asr.ASRModel",
        "vocab_size": len(tokenizer),
        "frontend": {"_target_": "espnet3.models.frontend.Fbank", "sampling_rate": RATE, "n_mels": 20},
        "encoder": {"_target_": "espnet3.models.conformer.ConformerEncoder", "input_size": 20, **sizes},
        "decoder": {
            "_target_": "espnet3.models.decoder.TransformerDecoder",
            **{"size": 16, "heads": 2, "hidden": 32, "blocks": 1},
        },
    }
    namespace["config"] = {
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        "dataloader": {"train": {"batch_size": 8}, "valid": {"batch_size": 8}},
        "trainer": {"max_epochs": 1},
        "dataset": {"train": names["dataset"], "valid": names["dataset"]},
        "execution": {"accelerator": "cpu"},
    }
    exec(TRAINER, namespace)
    from pathlib import Path

    assert Path("exp/checkpoints.json").exists() and Path("exp/last.ckpt").exists()


def test_a_provider_and_a_runner(namespace):
    exec(RUNNER, namespace)
    assert namespace["result"] == [1, 3, 3]
