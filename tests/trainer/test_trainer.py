"""The trainer as the design overview shows it, what it learns, logs and refuses."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from tiny import RATE, TOKENIZER, config, make_trainer, model_node, utterances

from espnet3.data.dataset import ESPnet3Dataset
from espnet3.errors import UserError
from espnet3.trainer.lease import Lease, LeaseLost
from espnet3.trainer.schedulers import WarmupCosine, WarmupInverseSqrt, WarmupLinear
from espnet3.trainer.state import epochs_to_train


def test_the_snippet_of_the_design_overview(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="espnet3")
    task = model_node()
    expdir = tmp_path / "exp"
    config_ = config(2, log_seconds=0.0) | {
        "dataset": {
            "train": ESPnet3Dataset(utterances(48, 1), tokenizer=TOKENIZER),
            "valid": ESPnet3Dataset(utterances(8, 2), tokenizer=TOKENIZER),
        }
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_snippet(task, config_, str(expdir))
    assert (expdir / "last.ckpt").exists()
    index = json.loads((expdir / "checkpoints.json").read_text())
    losses = [r["metrics"]["valid/loss"] for r in index["history"]]
    assert losses[1] < losses[0]
    lines = [r.message for r in caplog.records if "s of audio/s" in r.message]
    assert lines and all(
        word in lines[-1] for word in ("epoch 2/2", "loss", "ctc", "lr", "padding", "data wait", "left")
    )
    assert list(expdir.glob("state-*/tensorboard/events.out.*"))


def run_snippet(task, config, expdir):
    from espnet3.trainer.model import LitESPnetModel
    from espnet3.trainer.trainer import ESPnet3LightningTrainer

    model = LitESPnetModel(task)
    trainer = ESPnet3LightningTrainer(model=model, config=config, expdir=expdir)
    trainer.fit()


def test_it_learns_and_validates(tmp_path):
    trainer = make_trainer(tmp_path, 12)
    before = trainer.validate()
    trainer.fit()
    after = trainer.validate()
    assert after["valid/loss"] < 0.6 * before["valid/loss"]
    assert {"valid/loss", "valid/loss_ctc", "valid/loss_att", "valid/acc"} <= after.keys()


def test_collect_stats_equals_the_features(tmp_path):
    trainer = make_trainer(tmp_path, 1)
    found = trainer.collect_stats()
    rows = []
    for _, data in trainer.dataset("train"):
        speech = torch.as_tensor(data["speech"])[None]
        rows.append(
            trainer.model.collect_feats(speech=speech, speech_lengths=torch.tensor([speech.size(1)]))["feats"][0]
        )
    rows = torch.cat(rows).double()
    assert found["count"] == len(rows)
    torch.testing.assert_close(found["mean"], rows.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["std"], rows.std(0, correction=0), atol=1e-5, rtol=0)


def test_lightning_is_configured_from_the_config(tmp_path):
    trainer = make_trainer(
        tmp_path,
        1,
        accumulate_grad_batches=2,
        precision="bf16-mixed",
        callbacks=[{"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}],
        logger={"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "csv")},
        profiler={
            "_target_": "lightning.pytorch.profilers.SimpleProfiler",
            "dirpath": str(tmp_path),
            "filename": "profile",
        },
    )
    index = trainer.fit()
    assert 0 < index["last"]["step"] <= 6
    assert list((tmp_path / "csv").rglob("metrics.csv")) and list(tmp_path.glob("*profile*"))


class Poisoned(torch.nn.Module):
    """A model whose loss is not a number for one utterance."""

    def __init__(self, always: bool = False):
        super().__init__()
        self.always = always
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, speech, speech_lengths, text, text_lengths, **_):
        bad = (speech_lengths == speech_lengths.max()).any() & (speech_lengths.max() > 0.95 * RATE)
        loss = self.weight.sum() * (torch.nan if self.always or (self.training and bad) else 1.0)
        return loss, {"loss": loss.detach()}, torch.tensor(len(speech))


def test_losses_that_are_no_numbers_are_skipped_and_named(tmp_path, caplog):
    trainer = make_trainer(tmp_path, 2, model=Poisoned(), max_nonfinite=100)
    index = trainer.fit()
    skipped = [r.message for r in caplog.records if "not finite" in r.message]
    assert skipped and "utterances: u0" in skipped[0]
    assert index["history"][-1]["skipped"] == len(skipped)
    assert all(r["metrics"]["train/loss"] is not None for r in index["history"])
    assert torch.isfinite(trainer.model.model.weight).all()


def test_training_stops_after_many_of_them_in_a_row(tmp_path):
    with pytest.raises(UserError, match=r"3 steps in a row had no finite loss.*u0\d\d"):
        make_trainer(tmp_path, 2, model=Poisoned(always=True), max_nonfinite=3).fit()


def test_one_writer_at_a_time(tmp_path):
    code = (
        "import sys, time; from espnet3.trainer.lease import Lease\n"
        "with Lease(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {other.pid} on .* is training here"):
            Lease(tmp_path).__enter__()
    finally:
        other.kill()
        other.wait()
    with Lease(tmp_path) as lease:
        lease.check()
        content = json.loads((tmp_path / "lease.json").read_text())
        assert content["pid"] == os.getpid() and content["host"] == socket.gethostname()
        (tmp_path / "lease.json").write_text(json.dumps(content | {"id": "another"}))
        with pytest.raises(LeaseLost):
            lease.check()


def test_a_loaders_process_does_not_keep_the_lock_that_it_was_forked_under(tmp_path):
    lease = Lease(tmp_path)
    with lease._lock():
        child = subprocess.Popen(["sleep", "60"], pass_fds=_open_files(tmp_path))
    try:
        # another process finds it free
        subprocess.run(["flock", "--nonblock", str(tmp_path / "lease.lock"), "true"], check=True)
    finally:
        child.kill()
        child.wait()


def _open_files(folder: Path) -> list[int]:
    found = [
        int(entry.name) for entry in Path("/proc/self/fd").iterdir() if str(entry.resolve()).startswith(str(folder))
    ]
    assert found
    return found


def test_a_silent_holder_on_another_host_is_taken_over_and_a_living_one_is_not(tmp_path):
    import threading
    import time

    held = {"host": "elsewhere", "pid": 1, "start": "1", "id": "x", "beats": 5}
    (tmp_path / "lease.json").write_text(json.dumps(held))
    with Lease(tmp_path, stale=0.5) as lease:
        lease.check()
    (tmp_path / "lease.json").write_text(json.dumps(held))

    def beat():
        time.sleep(0.3)
        (tmp_path / "lease.json").write_text(json.dumps(held | {"beats": 6}))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="elsewhere"):
        Lease(tmp_path, stale=2.0).__enter__()
    thread.join()


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupLinear])
def test_schedules_rise_fall_and_stay(schedule):
    rates = _rates(schedule, 200, warmup_steps=10, steps=100, floor=0.1)
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:100]))
    assert rates[100:] == pytest.approx([0.1] * 100)


def test_inverse_square_root_is_espnets():
    rates = _rates(WarmupInverseSqrt, 100, warmup_steps=25)
    assert rates[24] == pytest.approx(1.0) and rates[99] == pytest.approx(0.5) and rates[4] == pytest.approx(0.2)


def test_a_schedule_shorter_than_its_warmup_is_refused():
    with pytest.raises(UserError, match="steps: 10 must be more than warmup_steps, 20"):
        _rates(WarmupCosine, 1, warmup_steps=20, steps=10)


def _rates(schedule, number: int, **kwargs) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, **kwargs)
    rates = []
    for _ in range(number):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_patience_counts_from_the_first_best_epoch():
    history = [{"epoch": i + 1, "metrics": {"valid/loss": v}} for i, v in enumerate([3.0, 2.0, 2.5, 2.1, 1.0])]
    criteria = [["valid/loss", 1, "min"]]
    assert epochs_to_train(history, 10, None, criteria) == 10
    assert epochs_to_train(history, 10, 2, criteria) == 4
    assert epochs_to_train(history, 10, 3, criteria) == 10
    assert epochs_to_train(history, 3, 2, criteria) == 3
    with pytest.raises(UserError, match="valid/wer"):
        epochs_to_train(history, 10, 2, [["valid/wer", 1, "min"]])


class Seen(pl.Callback):
    """The utterances of each batch, by epoch."""

    def __init__(self):
        self.epochs: dict[int, list] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.epochs.setdefault(trainer.current_epoch, []).append(tuple(batch[0]))


@pytest.mark.parametrize(
    "loader",
    [
        {"sampler": {"_target_": "lhotse.dataset.DynamicBucketingSampler", "max_duration": 4.0, "num_buckets": 3}},
        {"sampler": {"_target_": "espnet3.trainer.batches.SortedPools", "max_duration": 4.0, "pool": 3}},
        {"batch_size": 6},
        {
            "sampler": {"type": "numel", "batch_bins": 4 * RATE},
            "augment": [{"_target_": "espnet3.data.augment.SpeedPerturb"}],
            "num_workers": 1,
        },
    ],
    ids=["lhotse", "pools", "batch_size", "numel"],
)
def test_each_epoch_has_its_own_order_also_after_an_interruption(tmp_path, loader):
    def trained(folder, epochs: int) -> dict[int, list]:
        trainer = make_trainer(folder, epochs)
        trainer.config["dataloader"]["train"] = loader
        trainer.extra_callbacks.append(seen := Seen())
        trainer.fit()
        return seen.epochs

    whole = trained(tmp_path / "whole", 3)
    assert len({tuple(batches) for batches in whole.values()}) == 3
    assert all(len({uid for batch in batches for uid in batch}) == 48 for batches in whole.values())
    first, rest = trained(tmp_path / "parts", 1), trained(tmp_path / "parts", 3)
    assert first | rest == whole


def test_sorted_pools_hold_everything_once_with_little_padding():
    from types import SimpleNamespace

    from espnet3.trainer.batches import SortedPools

    rng = torch.Generator().manual_seed(0)
    durations = [*(torch.rand(2000, generator=rng) * 4 + 1).tolist(), 30.0]
    dataset = SimpleNamespace(cuts=[SimpleNamespace(duration=d) for d in durations])
    sampler = SortedPools(dataset, max_duration=25.0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again != list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(2001))
    padded = [len(b) * max(durations[i] for i in b) for b in first]
    assert [b for b, size in zip(first, padded, strict=True) if size > 25.0] == [[2000]]
    assert sum(durations) / sum(padded) > 0.98
    assert sum(size < 15.0 for size in padded) < 0.05 * len(padded)
