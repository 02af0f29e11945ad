"""What training refuses before its first step, and what it keeps of a step that it skips."""

from __future__ import annotations

import pytest
import torch
from tiny import RATE, make_trainer

from espnet3.errors import UserError
from espnet3.io import read_json, sha256_file
from espnet3.trainer.dump import MAX_DUMPS
from espnet3.trainer.preflight import check_devices, check_disk, least_devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the devices that are to be missing")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_one_line_before_anything_is_written(tmp_path, accelerator):
    trainer = make_trainer(tmp_path / "exp", 1)
    trainer.execution["accelerator"] = accelerator
    with pytest.raises(UserError, match=rf"execution.accelerator: {accelerator}, but torch sees no cuda device here"):
        trainer.fit()
    assert not (tmp_path / "exp").exists()


def test_the_number_of_devices_is_held_against_those_there():
    assert [least_devices(d) for d in ("auto", -1, "-1", 3, "3", [0, 5], "0,5", "2,")] == [1, 1, 1, 3, 3, 6, 6, 3]
    with pytest.raises(UserError, match=r"execution.devices: 'two' is no number"):
        least_devices("two")
    check_devices({"accelerator": "cpu", "devices": 64})
    check_devices({"accelerator": "auto", "devices": "auto"})


def test_the_estimate_of_the_disk_is_what_a_training_takes(tmp_path):
    trainer = make_trainer(tmp_path, 3)
    trainer.fit()
    state = next(tmp_path.glob("state-*"))
    (tmp_path / "empty").mkdir()
    criteria = trainer.criteria
    need = check_disk(tmp_path / "empty", trainer.model, trainer.config["optimizer"], 3, criteria)
    full = max(path.stat().st_size for path in state.glob("*.ckpt"))
    took = sum(path.stat().st_size for path in state.glob("*.safetensors"))
    # names and shapes come on top of the numbers; a model this small is half made of them
    assert need < 1.5 * (3 * full + took * 4 / 3) and 3 * full + took < 3 * need
    sgd = check_disk(tmp_path / "empty", trainer.model, {"_target_": "torch.optim.SGD", "lr": 0.1}, 3, criteria)
    assert sgd < need
    huge = torch.nn.Linear(1, 1)
    huge.register_buffer("table", torch.empty(1 << 44, device="meta"))
    with pytest.raises(UserError, match=r"may write \d+\.\d MB, .* MB are free there; free some"):
        check_disk(tmp_path / "empty", huge, None, 3, criteria)


class Poisoned(torch.nn.Module):
    """A model whose loss is not a number for the longest utterances."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, speech, speech_lengths, text, text_lengths):
        bad = self.training and bool((speech_lengths > 0.95 * RATE).any())
        loss = (self.weight * speech.mean()).sum() * (torch.nan if bad else 1.0)
        return loss, {"loss": loss.detach()}, torch.tensor(len(speech))


def test_a_batch_without_a_finite_loss_is_kept_for_a_person(tmp_path, caplog):
    caplog.set_level("INFO", logger="espnet3")
    trainer = make_trainer(tmp_path, 2, model=Poisoned(), max_nonfinite=100)
    trainer.config["dataloader"]["train"] = {"batch_size": 2}
    trainer.fit()
    state = next(tmp_path.glob("state-*"))
    files = sorted((state / "skipped").glob("*"))
    assert trainer.model.skipped > len(files) == MAX_DUMPS, "their number is bounded"
    dump = torch.load(files[-1], weights_only=True)
    (batch,) = dump["batches"]
    assert batch["speech"].shape[0] == len(batch["utt_id"]) == 2
    assert f"utterances: {' '.join(batch['utt_id'])}" in caplog.text and f"the batch is in {files[-1]}" in caplog.text
    # the batch as it was: the model says again what it said
    model = Poisoned()
    inputs = {name: value for name, value in batch.items() if name != "utt_id"}
    assert torch.isnan(model(**inputs)[0]) and torch.isfinite(model.eval()(**inputs)[0])
    # and the state that reaches this step again
    newest = dump["checkpoint"]
    assert newest["step"] <= dump["step"] and {"file", "sha256", "epoch", "batch"} <= newest.keys()
    record = read_json(state / "resume.json")["checkpoints"][0]
    assert sha256_file(state / record["file"]) == record["sha256"]
