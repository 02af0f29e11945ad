"""The stages stats and train on a corpus of files, as the workflow calls them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile
import torch
from tiny import RATE, config, model_node, utterances

from espnet3.errors import UserError
from espnet3.io import read_json, write_jsonl
from espnet3.stages import average, manifest, stats, tokenizer, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Manifests of 40 and 8 utterances of tones, their tokens and statistics."""
    return prepare(tmp_path_factory.mktemp("corpus"))


def prepare(folder):
    records = []
    for split, number, seed in (("train", 40, 1), ("valid", 8, 2)):
        for item in utterances(number, seed):
            uid = f"{split}-{item['id']}"
            path = folder / f"{uid}.wav"
            soundfile.write(path, item["audio"]["array"], RATE)
            records.append({"id": uid, "split": split, "audio": str(path), "text": item["text"], "speaker": "x"})
    write_jsonl(folder / "corpus.jsonl", records)
    data = {"corpus": "tones", "sampling_rate": RATE, "min_duration": 0.1, "max_duration": 5.0, "max_rejected": 0.0}
    for split in ("train", "valid"):
        output, rejected = folder / f"{split}.jsonl.gz", folder / f"{split}.rejected.jsonl"
        manifest.run({"data": data}, folder / "corpus.jsonl", split, output, rejected, {"env": "local", "n_workers": 1})
    tokenizer.run({"tokenizer": {"type": "char", "vocab_size": None}}, folder / "train.jsonl.gz", folder / "tokens")
    merged(folder, 2, folder / "cmvn.npz")
    return folder


def merged(folder, shards: int, output):
    conf = {"data": {"sampling_rate": RATE}, "model": {"frontend": model_node()["frontend"]}}
    paths = [folder / f"shard-{i}-of-{shards}.npz" for i in range(1, shards + 1)]
    for i, path in enumerate(paths, 1):
        stats.run_shard(conf, folder / "train.jsonl.gz", i, shards, path)
    stats.merge(paths[::-1], output)
    return paths


def test_any_number_of_shards_merges_to_the_same_bytes(corpus, tmp_path):
    whole = (corpus / "cmvn.npz").read_bytes()
    for shards in (1, 3, 7):
        merged(corpus, shards, tmp_path / "cmvn.npz")
        assert (tmp_path / "cmvn.npz").read_bytes() == whole


def test_statistics_are_those_of_the_features(corpus):
    from espnet3.config.instantiate import instantiate

    frontend = instantiate(model_node()["frontend"])
    rows, ids = [], []
    for path in sorted(corpus.glob("train-*.wav")):
        speech = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        rows.append(frontend(speech, torch.tensor([speech.size(1)]))[0][0].double().numpy())
        ids.append(path.stem)
    with np.load(corpus / "cmvn.npz") as found:
        assert found["ids"].tolist() == ids and found["lengths"].tolist() == [len(r) for r in rows]
        rows = np.concatenate(rows)
        assert found["count"] == len(rows)
        np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(found["std"], rows.std(0), atol=1e-4)


def test_a_missing_or_repeated_shard_is_refused(corpus, tmp_path):
    paths = merged(corpus, 3, tmp_path / "cmvn.npz")
    for wrong in (paths[:2], [*paths, paths[0]]):
        with pytest.raises(UserError, match="each of the 3 shards once"):
            stats.merge(wrong, tmp_path / "cmvn.npz")
    (tmp_path / "torn.npz").write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(UserError, match="torn"):
        stats.merge([tmp_path / "torn.npz"], tmp_path / "cmvn.npz")


def settings(epochs: int, **encoder) -> dict:
    node = model_node(**encoder)
    del node["vocab_size"]
    return config(epochs) | {"model": node, "tokenizer": {"type": "char"}}


def run(corpus, output, conf):
    files = (corpus / "train.jsonl.gz", corpus / "valid.jsonl.gz", corpus / "tokens", corpus / "cmvn.npz")
    return train.run(conf, *files, output, {"num_workers": 0, "accelerator": "cpu"})


def test_train_and_average(corpus, tmp_path):
    index = run(corpus, tmp_path / "checkpoints", settings(2))
    assert read_json(tmp_path / "checkpoints/checkpoints.json") == index
    assert (tmp_path / "checkpoints/last.ckpt").exists() and len(index["history"]) == 2
    average.run(tmp_path / "checkpoints/checkpoints.json", "valid.loss", 2, tmp_path / "average.safetensors")
    from safetensors.torch import load_file

    from espnet3.config.instantiate import instantiate

    model = instantiate(settings(1)["model"], vocab_size=6)
    model.load_state_dict(load_file(tmp_path / "average.safetensors"))
    with np.load(corpus / "cmvn.npz") as found:
        np.testing.assert_allclose(model.cmvn.mean.numpy(), found["mean"], atol=1e-4)
    # the same again is a matter of looking, also where Snakemake has removed the outputs
    (tmp_path / "checkpoints/checkpoints.json").unlink()
    assert run(corpus, tmp_path / "checkpoints", settings(2)) == index


def test_transcripts_that_do_not_fit_are_listed_and_too_many_refused(corpus, tmp_path, caplog):
    conf = settings(1, subsampling=8)
    conf["model"]["frontend"]["frame_shift"] = 20.0
    for _ in range(2):  # a retry is refused as well
        with pytest.raises(UserError, match=r"of 40 utterances are too short for CTC \(such as train-u"):
            run(corpus, tmp_path, conf)
    listed = read_json(next(tmp_path.glob("state-*/preflight.json")))
    assert len(listed["too_short_for_ctc"]) > 4


def test_symbols_outside_the_token_list_are_reported(corpus, tmp_path, caplog):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/tokens.txt").write_text("<blank>\n<unk>\na\nb\n<sos/eos>\n")
    conf = settings(1)
    files = (corpus / "train.jsonl.gz", corpus / "valid.jsonl.gz", tmp_path / "tokens", corpus / "cmvn.npz")
    with caplog.at_level(logging.WARNING):
        train.run(conf, *files, tmp_path / "checkpoints", {"accelerator": "cpu"})
    assert "symbols that the token list lacks ('c')" in caplog.text
