"""Trainings whose memory really ends: ``memory.py FOLDER``. Each case is forked, and has a limit of address space.

Prints, for each case, the weights at the end, what the log said, and the error that ended it.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from warm import ended, fork

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from tiny import make_trainer

from espnet3.errors import UserError

HIDDEN = 64
MB = 1 << 20
# a batch of 8 utterances of 1 s makes two activations of 16 MB each, and its backward pass gradients of them
CASES = {
    "enough": (None, {}),
    "backward": (42 * MB, {}),
    "accumulated": (None, {"accumulate_grad_batches": 2}),
    "backward accumulated": (42 * MB, {"accumulate_grad_batches": 2}),
    "forward in two processes": (25 * MB, {"devices": 2}),
    "not even one": (1 * MB, {"max_nonfinite": 3}),
}


class Wide(torch.nn.Module):
    """A model whose memory grows with its batch, and whose loss is a plain mean over utterances."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, HIDDEN))

    def forward(self, speech, speech_lengths, text, text_lengths):
        inside = torch.arange(speech.size(1)) < speech_lengths[:, None]
        hidden = torch.tanh((speech.abs() * inside)[..., None] * self.weight)
        loss = (hidden.mean(2).sum(1) / speech_lengths - 0.1).square().mean()
        return loss, {"loss": loss.detach()}, torch.tensor(len(speech))


class Limit(pl.Callback):
    """From the second step on, so many bytes of address space beyond what there is."""

    def __init__(self, size: int):
        self.size = size

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 1 or batch_idx == 1:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + self.size, resource.RLIM_INFINITY))

    def on_train_epoch_end(self, trainer, module):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def train(folder: Path, limit: int | None, settings: dict) -> None:
    devices = settings.pop("devices", 1)
    number = {"limit_train_batches": 4 // devices, "limit_val_batches": 1, "checkpoint_steps": None}
    trainer = make_trainer(folder, 1, model=Wide(), **number, **settings)
    trainer.criteria = [["train/loss", 1, "min"]]
    if devices > 1:
        trainer.execution = {"accelerator": "cpu", "devices": devices, "strategy": "ddp_fork"}
    node = {"_target_": "torch.optim.SGD", "lr": 300.0}
    trainer.config |= {"optimizer": node, "scheduler": None}
    trainer.model.config |= {"optimizer": node, "scheduler": None}
    trainer.config["dataloader"] = {"train": {"batch_size": 8}, "valid": {"batch_size": 2}}
    if limit:
        trainer.extra_callbacks.append(Limit(limit))
    error = None
    try:
        trainer.fit()
    except UserError as raised:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        error = str(raised)
    lines = next(folder.glob("state-*/train.log")).read_text().splitlines()
    found = {
        "error": error,
        "weights": trainer.model.model.weight.tolist(),
        "memory": [line.split(" ", 2)[2] for line in lines if " memory" in line],
        "skipped": trainer.model.skipped,
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    results = {}
    for name, (limit, settings) in CASES.items():
        folder = base / name.replace(" ", "-")
        folder.mkdir()
        errors = base / "errors"
        status = ended(fork(lambda a=(folder, limit, settings): train(*a), str(errors)))
        assert status == 0, f"{name}: {errors.read_text()}"
        results[name] = json.loads((folder / "found.json").read_text())
    print(json.dumps(results))
