"""A small training in several processes; each writes what it saw to ``rank-<rank>.json``.

``python tiny_ddp.py EXPDIR EPOCHS [--devices 2] [--nodes 1] [--batch 6] [--signal-at STEP]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from tiny import TOKENIZER, SignalAt, config, model_node, utterances

from espnet3.config.instantiate import instantiate
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.trainer.batches import seed_all
from espnet3.trainer.launch import on_all_nodes
from espnet3.trainer.model import LitESPnetModel
from espnet3.trainer.trainer import ESPnet3LightningTrainer


class Seen(pl.Callback):
    """Utterances of each part, and the weights after each epoch, of this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record = {"train": [], "valid": [], "weights": [], "nodes": os.environ.get("SLURMD_NODENAME"), "world": 0}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.record["train"] += batch[0]

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.record["valid"] += batch[0]

    def on_validation_end(self, trainer, module):
        digest = hashlib.sha256()
        for value in module.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        self.record["weights"].append(digest.hexdigest())
        self.record["world"] = trainer.world_size
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(self.record))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("expdir")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--norm", default="layer")
    parser.add_argument("--signal-at", type=int)
    given = parser.parse_args()
    execution = {"accelerator": "cpu", "devices": given.devices, "num_nodes": given.nodes, "strategy": "auto"}
    status = on_all_nodes(execution, [sys.executable, *sys.argv])
    if status is not None:
        sys.exit(status)
    torch.set_num_threads(1)
    seed_all(0)
    settings = config(given.epochs, checkpoint_steps=None, log_seconds=0.0)
    settings["dataloader"] = {"train": {"batch_size": given.batch}, "valid": {"batch_size": 3}}
    settings["execution"] = execution
    node = model_node(norm=given.norm, dropout=0.0)
    node.pop("specaug")
    node["decoder"]["dropout"] = 0.0
    datasets = {
        # 45 and 8 do not divide by two processes, whatever the batches
        "train": ESPnet3Dataset(utterances(45, 1), tokenizer=TOKENIZER),
        "valid": ESPnet3Dataset(utterances(8, 2), tokenizer=TOKENIZER),
    }
    identity = {"batch": given.batch, "norm": given.norm}
    trainer = ESPnet3LightningTrainer(
        LitESPnetModel(instantiate(node), settings), settings, given.expdir, datasets, identity
    )
    trainer.extra_callbacks.append(Seen(Path(given.expdir)))
    if given.signal_at and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        trainer.extra_callbacks.append(SignalAt(given.signal_at, signal.SIGTERM))
    trainer.fit()


if __name__ == "__main__":
    main()
