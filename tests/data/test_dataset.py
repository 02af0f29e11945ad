"""ESPnet3Dataset and make_dataloader: the design overview's snippets, on real speech."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, load_dataset
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler

from espnet3.data.collate import Collate
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.data.loader import make_dataloader
from espnet3.data.manifest import read_cuts
from espnet3.errors import UserError
from espnet3.text.tokenizer import Tokenizer, build_tokens


def columns(spoken, audio) -> dict[str, list]:
    return {
        "id": [record["id"] for record in spoken],
        "audio": [audio(record["audio"]) for record in spoken],
        "text": [record["text"] for record in spoken],
    }


def encoded(path) -> dict:
    with open(path, "rb") as handle:
        return {"bytes": handle.read(), "path": None}


AUDIO = {
    "path": str,
    "bytes": encoded,
    "file struct": lambda path: {"bytes": None, "path": path},
    "array": lambda path: {"array": soundfile.read(path, dtype="float32")[0], "sampling_rate": 16000},
    "samples": lambda path: soundfile.read(path, dtype="float32")[0],
}


def local(spoken, form: str = "path") -> Dataset:
    return Dataset.from_dict(columns(spoken, AUDIO[form]))


def same(one: tuple, other: tuple) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    np.testing.assert_array_equal(one[1]["speech"], other[1]["speech"])
    assert one[1]["text"] == other[1]["text"]


@pytest.mark.parametrize("form", AUDIO)
def test_a_hugging_face_data_set_gives_the_same_items_as_the_manifest(spoken, spoken_manifest, form):
    dataset = ESPnet3Dataset(local(spoken, form), sampling_rate=16000)
    expected = ESPnet3Dataset(spoken_manifest)
    assert len(dataset) == len(expected) == len(spoken)
    for i in (0, 5, len(spoken) - 1):
        same(dataset[i], expected[i])
        assert dataset[i][1]["speech"].dtype == np.float32
    assert dataset.cuts[3].duration == pytest.approx(expected.cuts[3].duration)


def test_an_audio_column_needs_no_torchcodec(spoken, spoken_manifest, tmp_path):
    undecoded = local(spoken, "bytes").cast_column("audio", Audio(decode=False))
    same(ESPnet3Dataset(undecoded)[2], ESPnet3Dataset(spoken_manifest)[2])
    # what the hub holds: an Audio feature that would be decoded, in a parquet file
    undecoded.to_parquet(str(tmp_path / "train.parquet"))
    stored = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    decoding = stored.cast_column("audio", Audio())
    same(ESPnet3Dataset(decoding)[2], ESPnet3Dataset(spoken_manifest)[2])


def test_the_snippets_of_the_design_overview(spoken, tmp_path):
    local(spoken).save_to_disk(str(tmp_path / "some_dataset"))
    local(spoken).to_json(str(tmp_path / "train.jsonl"))
    dataset = ESPnet3Dataset(
        load_dataset(
            "json", data_files={"train": str(tmp_path / "train.jsonl")}, split="train", cache_dir=str(tmp_path)
        )
    )
    sampler = DynamicBucketingSampler(dataset.cuts, max_duration=12.0, num_buckets=2, shuffle=True)
    dataloader = make_dataloader(dataset, sampler=sampler)
    seen = []
    for uids, batch in dataloader:
        assert batch["speech"].shape == (len(uids), int(batch["speech_lengths"].max()))
        assert float(batch["speech_lengths"].sum()) / 16000 <= 12.0
        seen += uids
    assert sorted(seen) == sorted(record["id"] for record in spoken)
    same(ESPnet3Dataset(datasets.load_from_disk(str(tmp_path / "some_dataset")))[1], dataset[1])


def test_a_lhotse_sampler_gives_batches_in_espnets_form(spoken_manifest, spoken):
    tokens, _ = build_tokens([record["text"] for record in spoken], "char")
    tokenizer = Tokenizer(tokens, "char")
    dataset = ESPnet3Dataset(spoken_manifest, tokenizer=tokenizer)
    sampler = DynamicBucketingSampler(dataset.cuts, max_duration=15.0, num_buckets=2, seed=1)
    texts = {record["id"]: record["text"] for record in spoken}
    count = 0
    for uids, batch in make_dataloader(dataset, sampler=sampler):
        assert batch["speech"].dtype == torch.float32 and batch["text"].dtype == torch.int64
        assert batch["speech_lengths"].dtype == batch["text_lengths"].dtype == torch.int64
        for i, uid in enumerate(uids):
            length = int(batch["text_lengths"][i])
            assert tokenizer.decode(batch["text"][i, :length].tolist()) == texts[uid]
            assert (batch["text"][i, length:] == -1).all()
            assert (batch["speech"][i, int(batch["speech_lengths"][i]) :] == 0).all()
            np.testing.assert_array_equal(
                batch["speech"][i, : int(batch["speech_lengths"][i])], dataset[uid][1]["speech"]
            )
            count += 1
    assert count == len(spoken)


def test_workers_give_the_same_batches(spoken, spoken_manifest):
    for dataset in (ESPnet3Dataset(spoken_manifest), ESPnet3Dataset(local(spoken, "bytes"))):
        batches = []
        for workers in (0, 2):
            sampler = DynamicBucketingSampler(dataset.cuts, max_duration=15.0, num_buckets=2, seed=1)
            batches.append(list(make_dataloader(dataset, sampler=sampler, num_workers=workers)))
        assert [uids for uids, _ in batches[0]] == [uids for uids, _ in batches[1]]
        for (_, one), (_, two) in zip(*batches, strict=True):
            assert torch.equal(one["speech"], two["speech"])


def test_torch_samplers_and_batch_sizes(spoken_manifest):
    dataset = ESPnet3Dataset(spoken_manifest)
    backwards = list(range(len(dataset)))[::-1]
    batches = list(make_dataloader(dataset, sampler=backwards, batch_size=5))
    assert [uid for uids, _ in batches for uid in uids] == dataset.ids[::-1]
    assert [len(uids) for uids, _ in batches] == [5, 5, 5, 5, 4]
    assert [uids for uids, _ in make_dataloader(dataset, batch_sampler=[[3, 1], [0]])] == [
        [dataset.ids[3], dataset.ids[1]],
        [dataset.ids[0]],
    ]
    # text without a tokenizer stays text
    assert isinstance(batches[0][1]["text"][0], str)


def test_arguments_that_exclude_each_other_are_refused(spoken_manifest):
    dataset = ESPnet3Dataset(spoken_manifest)
    sampler = DynamicBucketingSampler(dataset.cuts, max_duration=15.0, num_buckets=2)
    with pytest.raises(UserError, match="max_duration"):
        make_dataloader(dataset, sampler=sampler, batch_size=4)
    with pytest.raises(UserError, match="either sampler or batch_sampler"):
        make_dataloader(dataset, sampler=[0, 1], batch_sampler=[[0, 1]])


def test_cuts_that_lhotse_has_changed_are_read_by_lhotse(spoken_manifest):
    cuts = read_cuts(spoken_manifest)
    faster = cuts.perturb_speed(1.1)
    first = ESPnet3Dataset(faster)[0][1]["speech"]
    assert len(first) == pytest.approx(len(ESPnet3Dataset(cuts)[0][1]["speech"]) / 1.1, abs=2)
    joined = CutSet.from_cuts([cuts[0].append(cuts[1])])
    both = ESPnet3Dataset(joined)[0][1]
    assert both["text"] == f"{cuts[0].supervisions[0].text} {cuts[1].supervisions[0].text}"
    assert len(both["speech"]) == joined[0].num_samples


def test_a_part_of_a_file_is_what_lhotse_reads(spoken_manifest):
    cut = read_cuts(spoken_manifest)[0].truncate(offset=0.3, duration=0.5)
    ours = ESPnet3Dataset([cut])[0][1]["speech"]
    np.testing.assert_array_equal(ours, cut.load_audio()[0])


def test_resampling_gives_the_rate_that_is_asked_for(spoken):
    rows = [{"id": "a", "audio": spoken[0]["audio"], "text": "x"}]
    high, low = (ESPnet3Dataset(rows, sampling_rate=rate)[0][1]["speech"] for rate in (16000, 8000))
    assert len(low) == pytest.approx(len(high) / 2, abs=1)
    # decimating what has no energy above 4 kHz loses nothing: the powers agree
    assert np.mean(low**2) == pytest.approx(np.mean(high**2), rel=0.4)


def test_columns_of_other_names(spoken):
    rows = [{"clip": r["audio"], "words": r["text"], "who": r["speaker"]} for r in spoken]
    dataset = ESPnet3Dataset(rows, audio_column="clip", text_column="words", extra_columns=("who",))
    uid, data = dataset[1]
    assert (uid, data["text"], data["who"]) == ("1", spoken[1]["text"], spoken[1]["speaker"])
    with pytest.raises(UserError, match=r"has no audio column .* say audio_column="):
        ESPnet3Dataset(rows)
    with pytest.raises(UserError, match="no column 'wordz' for text; it has clip, words, who"):
        ESPnet3Dataset(rows, audio_column="clip", text_column="wordz")


def test_transforms_with_and_without_the_id(spoken_manifest):
    upper = ESPnet3Dataset(spoken_manifest, transform=lambda data: {**data, "text": data["text"].upper()})
    assert upper[0][1]["text"].isupper()
    named = ESPnet3Dataset(spoken_manifest, transform=lambda uid, data: {**data, "text": uid})
    assert named[0][1]["text"] == named[0][0]


def test_positions_ids_and_their_errors(spoken_manifest, spoken):
    dataset = ESPnet3Dataset(spoken_manifest)
    assert dataset[-1][0] == dataset.ids[-1] == dataset[dataset.ids[-1]][0]
    with pytest.raises(IndexError):
        dataset[len(spoken)]
    with pytest.raises(KeyError, match="nobody"):
        dataset["nobody"]


def test_an_unreadable_file_is_named_with_its_utterance(spoken):
    rows = [{"id": "lost", "audio": "absent.wav", "text": "x"}]
    with pytest.raises(UserError, match=r"utterance lost: its audio cannot be read \(.*absent.wav"):
        ESPnet3Dataset(rows)[0]


@pytest.mark.parametrize("source", [3, {"train": 1}, None])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(UserError, match="no data set can be made of"):
        ESPnet3Dataset(source)


def test_a_dictionary_of_splits_is_refused_with_their_names(spoken):
    with pytest.raises(UserError, match="has the splits train: pick one"):
        ESPnet3Dataset(datasets.DatasetDict({"train": local(spoken)}))


def test_collate_pads_like_espnet():
    items = [
        ("a", {"speech": np.ones(3, np.float32), "text": np.array([1, 2]), "feats": np.ones((2, 4)), "weight": 0.5}),
        ("b", {"speech": np.ones(5, np.float32), "text": np.array([3]), "feats": np.ones((1, 4)), "weight": 1.5}),
    ]
    uids, batch = Collate(int_pad=-1)(items)
    assert uids == ["a", "b"]
    assert batch["speech"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["text"].tolist() == [[1, 2], [3, -1]]
    assert batch["feats"].shape == (2, 2, 4) and batch["feats"].dtype == torch.float32
    assert batch["feats"][1, 1].tolist() == [0, 0, 0, 0]
    assert {k: v.tolist() for k, v in batch.items() if k.endswith("_lengths")} == {
        "speech_lengths": [3, 5],
        "text_lengths": [2, 1],
        "feats_lengths": [2, 1],
    }
    assert batch["weight"].tolist() == [0.5, 1.5] and "weight_lengths" not in batch
    with pytest.raises(ValueError, match="utterance b has"):
        Collate()([items[0], ("b", {"speech": np.ones(2)})])
