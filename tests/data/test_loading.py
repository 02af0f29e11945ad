"""make_dataloader over everything that a data set can be made of: batches, continuation, ranks."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from datasets import Dataset
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler

from espnet3.data.combined import CombinedDataset
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.data.loader import make_dataloader
from espnet3.data.manifest import read_cuts
from espnet3.errors import UserError
from espnet3.trainer.batches import epoch_sampler, make_loader

NUMEL = {"type": "numel", "batch_bins": 16000 * 12}
POOLS = {"_target_": "espnet3.data.batching.pools.SortedPools", "max_duration": 12.0, "pool": 3}
LHOTSE = {
    "_target_": "lhotse.dataset.DynamicBucketingSampler",
    "max_duration": 15.0,
    "num_buckets": 2,
    "quadratic_duration": 20.0,
}
CHUNK = {"type": "chunk", "batch_size": 4, "chunk_length": 16000, "num_cache_chunks": 16}


class Tones(torch.utils.data.Dataset):
    """A torch data set of somebody else's."""

    rates = 100

    def __init__(self, number: int = 10):
        self.durations = [0.1 * (1 + i % 4) for i in range(number)]

    def __len__(self):
        return len(self.durations)

    def __getitem__(self, index):
        return f"tone-{index}", {"speech": np.full(round(self.durations[index] * 100), index, np.float32)}


class Stream(torch.utils.data.IterableDataset):
    """One that only streams."""

    def __init__(self, number: int):
        self.number = number

    def __iter__(self):
        return (Tones(self.number)[i] for i in range(self.number))


def uids(loader) -> list[tuple[str, ...]]:
    return [tuple(ids) for ids, _ in loader]


@pytest.mark.parametrize(
    "sampler", [NUMEL, POOLS, LHOTSE, CHUNK, None], ids=["numel", "pools", "lhotse", "chunk", "none"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_continued_where_its_state_was_taken(spoken_manifest, sampler, workers):
    dataset = ESPnet3Dataset(spoken_manifest)

    def loader(workers=0):
        size = {"batch_size": 3} if sampler is None else {}
        return make_dataloader(dataset, sampler, shuffle=True, seed=4, num_workers=workers, **size)

    whole = loader()
    first, second = uids(whole), uids(whole)
    assert first != second and len(second) > 3
    if sampler is not CHUNK:
        assert all(len({uid for batch in epoch for uid in batch}) == 24 for epoch in (first, second))
    interrupted = loader(workers)
    assert uids(interrupted) == first
    seen = []
    for number, (ids, _) in enumerate(interrupted):
        seen.append(tuple(ids))
        if number == 1:
            state = interrupted.state_dict()
            break
    assert state == {"epoch": 1, "batch": 2}
    del interrupted
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert seen + uids(resumed) == second
    assert resumed.state_dict() == {"epoch": 2, "batch": 0}


def test_batches_are_made_from_the_manifest_before_any_audio_is_read(spoken_manifest, spoken, tmp_path):
    cuts = read_cuts(spoken_manifest)
    folder = str(spoken[0]["audio"]).rpartition("/")[0]
    text = gzip.decompress(spoken_manifest.read_bytes()).decode().replace(folder, "/nowhere")
    (tmp_path / "moved.jsonl").write_text(text)
    dataset = ESPnet3Dataset(tmp_path / "moved.jsonl")
    assert dataset.num_samples.tolist() == [cut.num_samples for cut in cuts]
    loader = make_dataloader(dataset, NUMEL)
    assert len(loader) == len(list(loader.sampler)) > 3
    with pytest.raises(UserError, match="its audio cannot be read"):
        next(iter(loader))


def test_chunks_are_stretches_of_the_audio(spoken_manifest):
    dataset = ESPnet3Dataset(spoken_manifest)
    ids, batch = next(iter(make_dataloader(dataset, CHUNK)))
    assert batch["speech"].shape == (4, 16000) and batch["speech_lengths"].tolist() == [16000] * 4
    whole = dataset[ids[0]][1]["speech"]
    np.testing.assert_array_equal(batch["speech"][0], whole[:16000])
    np.testing.assert_array_equal(batch["speech"][1], dataset[ids[1]][1]["speech"][8000:24000])
    longer = ESPnet3Dataset(spoken_manifest, transform=lambda data: {**data, "labels": np.arange(7)})
    with pytest.raises(UserError, match=r"'labels' has 7 and not \d+; .* sampler.excluded_key_prefixes"):
        next(iter(make_dataloader(longer, CHUNK)))
    kept = next(iter(make_dataloader(longer, {**CHUNK, "excluded_key_prefixes": ["labels"]})))[1]
    assert kept["labels"].shape == (4, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_the_same_batches_for_any_number_of_processes(spoken, spoken_manifest, workers):
    rows = Dataset.from_dict({key: [record[key] for record in spoken] for key in ("id", "audio", "text")})
    stream = ESPnet3Dataset(rows.to_iterable_dataset(num_shards=2), sampling_rate=16000)
    expected = ESPnet3Dataset(spoken_manifest)
    for uid, data in stream:
        np.testing.assert_array_equal(data["speech"], expected[uid][1]["speech"])
        assert data["text"] == expected[uid][1]["text"]
    loader = make_dataloader(stream, batch_size=5, num_workers=workers)
    assert uids(loader) == [tuple(expected.ids[i : i + 5]) for i in range(0, 24, 5)]
    assert uids(make_dataloader(rows.to_iterable_dataset(), batch_size=24)) == [tuple(expected.ids)]
    with pytest.raises(UserError, match="no items by position"):
        stream[0]
    with pytest.raises(UserError, match="takes no sampler"):
        make_dataloader(stream, sampler=NUMEL)


def test_a_stream_is_shuffled_and_continued(workers=2):
    def loader(workers=0):
        return make_dataloader(
            ESPnet3Dataset(Stream(23)), batch_size=4, shuffle=True, shuffle_buffer=8, num_workers=workers
        )

    whole = loader()
    first, second = uids(whole), uids(whole)
    assert first != second and sorted(sum(first, ())) == sorted(sum(second, ())) == sorted(
        f"tone-{i}" for i in range(23)
    )
    resumed = loader(workers)
    resumed.load_state_dict({"epoch": 1, "batch": 2})
    assert uids(resumed) == second[2:]


def test_a_torch_data_set_of_ones_own():
    dataset = ESPnet3Dataset(Tones())
    assert dataset[3][0] == "tone-3" and dataset.num_samples.tolist() == [10, 20, 30, 40] * 2 + [10, 20]
    sampler = DynamicBucketingSampler(dataset.cuts, max_duration=0.8, num_buckets=2)
    found = {}
    for ids, batch in make_dataloader(dataset, sampler):
        found |= dict(zip(ids, batch["speech"][:, 0].tolist(), strict=True))
    assert found == {f"tone-{i}": float(i) for i in range(10)}
    torch_loader = make_dataloader(Tones(), batch_size=1, collate_fn=lambda items: items[0][0])
    assert list(torch_loader) == [f"tone-{i}" for i in range(10)]


def test_a_lazy_cutset_is_streamed_by_lhotses_samplers(spoken_manifest):
    passes = []

    def seen(cut):
        passes.append(cut.id)
        return cut

    cuts = CutSet.from_jsonl_lazy(spoken_manifest).map(seen)
    dataset = ESPnet3Dataset(cuts)
    assert dataset.cuts is cuts and not passes
    loader = make_dataloader(dataset, DynamicBucketingSampler(dataset.cuts, max_duration=15.0, num_buckets=2))
    assert sorted(sum(uids(loader), ())) == sorted(ESPnet3Dataset(spoken_manifest).ids)
    assert len(dataset) == 24


def test_data_sets_are_combined_under_their_own_ids(spoken_manifest, spoken):
    cuts = read_cuts(spoken_manifest)
    loud = ESPnet3Dataset(list(cuts)[:10], transform=lambda data: {**data, "speech": 2 * data["speech"]})
    rows = [{"id": f"row-{r['id']}", "audio": r["audio"], "text": r["text"]} for r in spoken[10:]]
    both = CombinedDataset({"loud": loud, "rows": ESPnet3Dataset(rows, sampling_rate=16000)})
    assert len(both) == 24 and both.ids[9:11] == [cuts[9].id, f"row-{cuts[10].id}"]
    np.testing.assert_array_equal(both[0][1]["speech"], 2 * ESPnet3Dataset(cuts)[0][1]["speech"])
    np.testing.assert_array_equal(both[f"row-{cuts[12].id}"][1]["speech"], ESPnet3Dataset(cuts)[12][1]["speech"])
    assert both.num_samples.tolist() == [cut.num_samples for cut in cuts]
    for sampler in (NUMEL, LHOTSE):
        batches = list(make_dataloader(both, sampler, shuffle=True))
        assert sorted(uid for ids, _ in batches for uid in ids) == sorted(both.ids)
        for ids, batch in batches:
            for uid, speech, length in zip(ids, batch["speech"], batch["speech_lengths"], strict=True):
                np.testing.assert_array_equal(speech[:length], both[uid][1]["speech"])
    with pytest.raises(UserError, match=f"utterance {cuts[3].id} is in data set loud and in again; rename it"):
        CombinedDataset({"loud": loud, "again": [cuts[3]]})


def test_a_configured_loader_of_the_trainer_is_the_same(spoken_manifest):
    dataset = ESPnet3Dataset(spoken_manifest)
    for node in ({"sampler": NUMEL}, {"sampler": POOLS}, {"sampler": LHOTSE}, {"batch_size": 5}):
        loader = make_loader(dataset, node, seed=4, shuffle=True)
        epoch_sampler(loader).start(1, 2)
        same = make_dataloader(dataset, node.get("sampler"), seed=4, shuffle=True, batch_size=node.get("batch_size"))
        same.load_state_dict({"epoch": 1, "batch": 2})
        assert uids(loader) == uids(same)


def test_collate_copies_each_utterance_once():
    from espnet3.data.collate import Collate

    items = [("a", {"speech": np.ones(1_000_000, np.float32)}), ("b", {"speech": np.ones(600_000, np.float32)})]
    import tracemalloc

    tracemalloc.start()
    _, batch = Collate()(items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the batch itself is torch's memory: what Python allocates besides it is small
    assert peak < 100_000 and batch["speech"].sum() == 1_600_000


def _rank(rank: int, port: int, manifest: str, results) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    dataset = ESPnet3Dataset(manifest)
    found = {}
    for name, sampler, size in (("numel", NUMEL, None), ("lhotse", LHOTSE, None), ("none", None, 5)):
        found[name] = []
        for ids, batch in make_dataloader(dataset, sampler, shuffle=True, batch_size=size):
            # a rank with one batch more would wait here for ever
            torch.distributed.all_reduce(batch["speech_lengths"].sum())
            found[name].append(tuple(ids))
    stream = make_dataloader(ESPnet3Dataset(Stream(23)), batch_size=4)
    found["stream"] = []
    for ids, batch in stream:
        torch.distributed.all_reduce(batch["speech_lengths"].sum())
        found["stream"].append(tuple(ids))
    results.put((rank, found))
    torch.distributed.destroy_process_group()


def test_two_processes_stay_in_step_on_uneven_data(spoken_manifest):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, str(spoken_manifest), results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    ids = set(ESPnet3Dataset(spoken_manifest).ids)
    for name in found[0]:
        one, two = (set(sum(found[rank][name], ())) for rank in range(2))
        assert len(found[0][name]) == len(found[1][name]) > 1, name
        assert not one & two, name
        if name in ("numel", "lhotse"):
            assert one | two == ids
