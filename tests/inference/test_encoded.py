"""Encoder output that decodings share: the same bytes with and without it, and never a stale one."""

import os
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from speech_task import JOINT, glide, make_task, slice_of

from espnet3.inference import DecodeRunner
from espnet3.stages import decode


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    torch.set_num_threads(1)
    return make_task(tmp_path_factory.mktemp("task"), utterances=11)


def run(task, output, encoded=None, settings=JOINT, **execution):
    execution = {"accelerator": "cpu", **execution}
    decode.run_shard(slice_of(settings), shard=1, of=1, output=output, execution=execution, encoded=encoded, **task)
    return output.read_bytes()


def only_file(folder):
    (found,) = [path for path in folder.rglob("*") if path.is_file()]
    return found


def test_decodings_give_the_same_bytes_with_and_without_it(task, tmp_path, caplog):
    store = tmp_path / "encoded"
    greedy = {"method": "ctc_greedy", "batch_seconds": 4.0, "timestamps": True}
    plain = run(task, tmp_path / "a.jsonl"), run(task, tmp_path / "b.jsonl", settings=greedy)
    with caplog.at_level("INFO"):
        first = run(task, tmp_path / "a.jsonl", store)
        assert "written for other decodings" in caplog.text
        second = run(task, tmp_path / "b.jsonl", store, greedy)
        assert "read, not encoded again" in caplog.text
    assert (first, second) == plain
    assert only_file(store).relative_to(store).as_posix() == "test/weights.4s.shard-1-of-1.safetensors"
    # what is read is what counts: another decoding of a spoilt file differs
    tensors = load_file(only_file(store))
    with safe_open(only_file(store), "pt") as file:
        metadata = file.metadata()
    save_file({k: v * 0 if v.is_floating_point() else v for k, v in tensors.items()}, only_file(store), metadata)
    assert run(task, tmp_path / "c.jsonl", store) != first
    assert run(task, tmp_path / "d.jsonl", store, share_encoder=False) == first


def test_other_weights_audio_or_batches_encode_again(task, tmp_path):
    store = tmp_path / "encoded"

    def facts():
        return {path.name: path.stat().st_ino for path in store.rglob("*.safetensors")}

    run(task, tmp_path / "a.jsonl", store)
    first = facts()
    run(task, tmp_path / "a.jsonl", store)
    assert facts() == first
    # decodings in other batches share nothing, and do not oust one another
    run(task, tmp_path / "b.jsonl", store, {**JOINT, "batch_seconds": 3.0})
    assert facts().items() > first.items() and len(facts()) == 2
    weights = load_file(task["weights"])
    weights["ctc.output.bias"] += 1.0
    save_file(weights, tmp_path / "weights.safetensors")
    other = {**task, "weights": str(tmp_path / "weights.safetensors")}
    before = facts()
    run(other, tmp_path / "c.jsonl", store)
    (name,) = first
    assert facts()[name] != before[name] and len(facts()) == 2
    # the same length, other samples
    path = next(p for p in Path(task["manifest"]).parent.glob("*.wav"))
    samples, _ = soundfile.read(path)
    soundfile.write(path, glide(samples.size / 16000, 99), 16000)
    before = facts()
    again = run(other, tmp_path / "c.jsonl", store)
    assert facts()[name] != before[name]
    assert again == run(other, tmp_path / "d.jsonl")


def test_a_resumed_shard_leaves_no_half_of_it(task, tmp_path):
    path, store = tmp_path / "a.jsonl", tmp_path / "encoded"
    forward, calls = DecodeRunner.forward, []

    def dies(idx, **env):
        calls.append(idx)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return forward(idx, **env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeRunner, "forward", staticmethod(dies))
        with pytest.raises(KeyboardInterrupt):
            run(task, path, store)
    assert not store.exists()
    resumed = run(task, path, store)
    assert not store.exists()
    assert run(task, tmp_path / "b.jsonl", store) == resumed
    assert only_file(store)


def test_a_damaged_file_is_replaced_and_a_read_only_folder_costs_nothing(task, tmp_path):
    store = tmp_path / "encoded"
    plain = run(task, tmp_path / "a.jsonl", store)
    path = only_file(store)
    path.write_bytes(path.read_bytes()[:100])
    assert run(task, tmp_path / "a.jsonl", store) == plain
    assert path.stat().st_size > 1000
    (tmp_path / "file").write_text("no folder")
    assert run(task, tmp_path / "a.jsonl", os.fspath(tmp_path / "file")) == plain
