"""ESPnet2's batch types: the batches that its samplers make (recorded from espnet 202511, and held against it where installed)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from espnet3.config.batch_types import check_batch_type
from espnet3.config.compose import load_config
from espnet3.data.batching import ChunkSampler, Lengths, SortedPools, TypedBatchSampler, make_batches, read_shape_file
from espnet3.data.batching.chunks import parse_chunk_length
from espnet3.data.loader import build_sampler
from espnet3.errors import UserError

SPEECH = [56, 39, 42, 54, 36, 47, 50, 17, 8, 21, 20, 53, 55, 5]
TEXT = [10, 16, 3, 16, 3, 9, 16, 6, 7, 6, 14, 5, 19, 9]
FOLDS = [20, 8]
SWAP = ["~dataloader.train.sampler"]

# what espnet2.samplers.build_batch_sampler gives for these lengths
RECORDED = [
    ({"type": "unsorted", "batch_size": 4}, ["0 1 2 3", "4 5 6 7 8", "9 10 11 12 13"]),
    ({"type": "unsorted", "batch_size": 4, "drop_last": True}, ["0 1 2 3", "4 5 6 7", "8 9 10 11"]),
    ({"type": "sorted", "batch_size": 4}, ["9 10 7 8 13", "6 5 2 1 4", "0 12 3 11"]),
    (
        {"type": "sorted", "batch_size": 3, "sort_in_batch": "ascending"},
        ["13 8 7", "10 9 4 1", "2 5 6", "11 3 12 0"],
    ),
    (
        {"type": "folded", "batch_size": 6, "fold_lengths": FOLDS},
        ["7 8 13", "4 9 10", "2 1", "6 5", "3 11", "0 12"],
    ),
    (
        {"type": "folded", "batch_size": 5, "fold_lengths": FOLDS, "min_batch_size": 3, "sort_batch": "descending"},
        ["0 12 3", "11 6 5 2", "1 4 9 10", "7 8 13"],
    ),
    ({"type": "length", "batch_bins": 150}, ["4 9 10 7 8 13", "5 2 1", "3 11 6", "0 12"]),
    (
        {"type": "length", "batch_bins": 90, "min_batch_size": 3, "sort_in_batch": "ascending"},
        ["13 8 7 10", "9 4 1", "2 5 6", "11 3 12 0"],
    ),
    ({"type": "numel", "batch_bins": 600}, ["4 9 10 7 8 13", "6 5 2 1", "12 3 11", "0"]),
    (
        {"type": "numel", "batch_bins": 600, "drop_last": True, "sort_batch": "descending"},
        ["12 3 11", "6 5 2 1", "4 9 10 7 8 13"],
    ),
    ({"type": "numel", "batch_bins": 500, "padding": False}, ["1 4 9 10 7 8 13", "6 5 2", "12 3 11", "0"]),
]


def write(path, lengths, dimension: str = "") -> str:
    path.write_text("".join(f"u{i} {length}{dimension}\n" for i, length in enumerate(lengths)))
    return str(path)


@pytest.fixture
def files(tmp_path) -> list[str]:
    return [write(tmp_path / "speech_shape", SPEECH, ",4"), write(tmp_path / "text_shape", TEXT)]


@pytest.mark.parametrize(("keys", "expected"), RECORDED, ids=lambda value: str(value)[:40])
def test_the_batches_are_espnet2s(files, keys, expected):
    dataset = SimpleNamespace(ids=[f"u{i}" for i in range(14)])
    sampler = build_sampler(dataset, {**keys, "shape_files": files}, shuffle=False, seed=0)
    assert [" ".join(map(str, batch)) for batch in sampler] == expected


def test_the_order_of_the_data_set_is_not_that_of_the_shape_file(files):
    ids = [f"u{i}" for i in range(14)][::-1]
    keys, expected = RECORDED[8]
    sampler = build_sampler(SimpleNamespace(ids=ids), {**keys, "shape_files": files}, shuffle=False, seed=0)
    assert [" ".join(ids[i][1:] for i in batch) for batch in sampler] == expected
    with pytest.raises(UserError, match=r"14 utterances, and 13 in the data set: .* \('u0' is not in the data set\)"):
        Lengths.of(SimpleNamespace(ids=ids[:-1]), files)


@pytest.mark.parametrize("trial", range(4))
def test_random_batches_are_those_of_the_espnet2_that_is_installed(tmp_path, trial):
    build = pytest.importorskip("espnet2.samplers.build_batch_sampler").build_batch_sampler
    from espnet2.iterators.sequence_iter_factory import SequenceIterFactory

    rng = np.random.default_rng(trial)
    speech, text = rng.integers(1, 900, 800), rng.integers(1, 60, 800)
    files = [write(tmp_path / "s", speech, ",80"), write(tmp_path / "t", text)]
    dataset = SimpleNamespace(ids=[f"u{i}" for i in range(800)])
    for kind in ("unsorted", "sorted", "folded", "length", "numel"):
        keys = {
            "sort_in_batch": str(rng.choice(["descending", "ascending"])),
            "sort_batch": str(rng.choice(["descending", "ascending"])),
            "drop_last": bool(rng.integers(2)),
            "min_batch_size": int(rng.integers(1, 9)),
            "batch_size": int(rng.integers(1, 40)),
            "batch_bins": int(rng.integers(2_000, 900_000 if kind == "numel" else 9_000)),
            "fold_lengths": [200, 20],
        }
        theirs = build(type=kind, shape_files=files, **keys)
        known = {key: value for key, value in keys.items() if _takes(kind, key)}
        ours = build_sampler(dataset, {"type": kind, "shape_files": files, **known}, shuffle=True, seed=3)
        ours.shuffle = False
        assert [[f"u{i}" for i in batch] for batch in ours] == [list(batch) for batch in theirs], (kind, keys)
        ours.shuffle = True
        factory = SequenceIterFactory(None, list(theirs), seed=3, shuffle=True, collate_fn=lambda x: x)
        for epoch in (0, 4):
            ours.set_epoch(epoch)
            # ESPnet2's epochs count from 1
            expected = factory.build_iter(epoch + 1).batch_sampler
            assert [[f"u{i}" for i in batch] for batch in ours] == [list(batch) for batch in expected]


def _takes(kind: str, key: str) -> bool:
    from espnet3.config.batch_types import BATCH_TYPES

    size, others = BATCH_TYPES[kind]
    return key == size or key in others or key == "drop_last"


class _Samples:
    """What ESPnet2's chunks are cut from: each sample names its utterance and its place."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __getitem__(self, uid):
        number = int(uid[1:])
        return uid, {"speech": np.arange(self.lengths[number], dtype=np.int64) + 1_000_000 * number}


class _Draws(np.random.RandomState):
    """espnet 202511 says ``int(state.choice(lengths, 1))``, which NumPy 2.4 refuses for an array of one number."""

    def choice(self, values, size):
        return super().choice(values, size)[0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunk_length", [40, "30,55", "20-25"])
def test_chunks_are_those_of_the_espnet2_that_is_installed(monkeypatch, chunk_length, shuffle):
    factory = pytest.importorskip("espnet2.iterators.chunk_iter_factory").ChunkIterFactory
    from espnet2.train.collate_fn import CommonCollateFn

    lengths = np.random.default_rng(1).integers(10, 200, 60)
    keys = {"chunk_length": chunk_length, "chunk_shift_ratio": 0.4, "num_cache_chunks": 20}
    theirs = factory(
        _Samples(lengths),
        batch_size=4,
        batches=[[f"u{i}"] for i in range(60)],
        seed=5,
        shuffle=shuffle,
        collate_fn=CommonCollateFn(),
        **keys,
    )
    known = Lengths(np.arange(60), [lengths[:, None]])
    ours = ChunkSampler(known, batch_size=4, shuffle=shuffle, seed=5, **keys)
    for epoch in (0, 2):
        ours.set_epoch(epoch)
        found = [[(f"u{c.index}", c.start, c.length) for c in batch] for batch in ours]
        with monkeypatch.context() as patched:
            patched.setattr(np.random, "RandomState", _Draws)
            batches = list(theirs.build_iter(epoch + 1))
        assert found == [
            [(uid, int(x[0]) % 1_000_000, len(x)) for uid, x in zip(uids, batch["speech"], strict=True)]
            for uids, batch in batches
        ]
        assert found


def test_chunks_cover_utterances_at_the_shift_and_short_ones_are_left_out():
    known = Lengths(np.arange(3), [np.array([[100], [39], [41]])])
    batches = list(ChunkSampler(known, batch_size=2, chunk_length=40, chunk_shift_ratio=0.5))
    assert [tuple(c) for batch in batches for c in batch] == [(0, 0, 40), (0, 20, 40), (0, 40, 40), (0, 60, 40)]
    whole = ChunkSampler(known, batch_size=1, chunk_length=40, discard_short_samples=False)
    assert (1, 0, 0) in [tuple(c) for batch in whole for c in batch]
    with pytest.raises(UserError, match="no utterance is longer than 200 samples"):
        ChunkSampler(known, batch_size=2, chunk_length=200)
    assert parse_chunk_length("5,8-10") == [5, 8, 9, 10]
    with pytest.raises(UserError, match="not '5-x'"):
        parse_chunk_length("5-x")


@pytest.mark.parametrize("kind", ["unsorted", "sorted", "numel", "pools", "chunk"])
def test_ranks_have_the_same_number_of_batches_and_share_each_utterance_once(kind):
    lengths = np.random.default_rng(0).integers(50, 900, 317)
    known = Lengths(np.arange(317), [lengths[:, None]])
    dataset = SimpleNamespace(durations=lengths / 100)
    ranks = []
    for rank in range(3):
        where = {"rank": rank, "world_size": 3, "shuffle": True}
        sampler = {
            "pools": lambda where=where: SortedPools(dataset, 40.0, pool=4, **where),
            "chunk": lambda where=where: ChunkSampler(known, 6, chunk_length=100, **where),
            "numel": lambda where=where: TypedBatchSampler(known, "numel", batch_bins=4000, **where),
        }.get(kind, lambda where=where: TypedBatchSampler(known, kind, batch_size=8, **where))()
        ranks.append([list(map(tuple, batch) if kind == "chunk" else batch) for batch in sampler])
    assert len({len(batches) for batches in ranks}) == 1 and len(ranks[0]) > 15
    assert all(batch for batches in ranks for batch in batches)
    seen = [key for batches in ranks for batch in batches for key in batch]
    assert len(set(seen)) == len(seen)
    if kind in ("unsorted", "sorted", "numel"):
        assert len(seen) == 317


def test_a_batch_smaller_than_the_ranks_is_refused():
    known = Lengths(np.arange(6), [np.arange(6)[:, None]])
    with pytest.raises(UserError, match="a batch has 2 utterances, 4 ranks need one each; raise batch_size"):
        TypedBatchSampler(known, "sorted", batch_size=2, rank=0, world_size=4)


def test_the_first_epochs_go_from_short_to_long():
    dataset = SimpleNamespace(durations=np.random.default_rng(0).uniform(1, 9, 300))
    batches = {}
    for ascending in (0, 2):
        sampler = SortedPools(dataset, 30.0, pool=4, ascending=ascending)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            batches[ascending, epoch] = list(sampler)
    for epoch in (0, 1):
        longest = [dataset.durations[batch].max() for batch in batches[2, epoch]]
        assert longest == sorted(longest)
        # the same batches, in another order
        assert sorted(map(tuple, batches[2, epoch])) == sorted(map(tuple, batches[0, epoch]))
    assert batches[2, 0] != batches[2, 1]
    assert batches[2, 2] == batches[0, 2]


def test_quadratic_durations_make_batches_of_long_utterances_smaller():
    dataset = SimpleNamespace(durations=np.full(40, 20.0))
    assert {len(batch) for batch in SortedPools(dataset, 120.0)} == {6, 4}
    assert {len(batch) for batch in SortedPools(dataset, 120.0, quadratic_duration=20.0)} == {3, 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("a 5\nb x,80\n", ":2: 'x,80' is no shape"),
        ("a 5,80\nb 5,80,3\n", ":2: 3 dimensions, the lines before have 2"),
        ("a 5\nb\n", ":2: '' is no shape"),
        ("a 5\nb 6\na 7\n", "utterance a is there twice"),
    ],
)
def test_a_wrong_shape_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "shape").write_text(text)
    with pytest.raises(UserError, match=message):
        read_shape_file(tmp_path / "shape")
    with pytest.raises(UserError, match="no such file"):
        read_shape_file(tmp_path / "absent")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "numle", "batch_bins": 5}, "unknown batch type 'numle'.*numel"),
        ({"type": "sorted", "batch_size": 5, "_target_": "espnet3.x.Y", "pool": 3}, "say {_target_: null, pool: null}"),
        ({"batch_size": 5}, "unknown batch type None"),
        ({"type": "numel", "batch_size": 5}, "type 'numel' has no key 'batch_size'"),
        ({"type": "numel"}, "type 'numel' needs the key 'batch_bins'"),
        ({"type": "folded", "batch_size": 5}, "needs the key 'fold_length'"),
        ({"type": "sorted", "batch_size": 0}, "batch_size: must be a whole number above 0, not 0"),
        ({"type": "sorted", "batch_size": 4, "sort_batch": "up"}, "sort_batch: must be ascending or descending"),
        ({"type": "chunk", "batch_size": 4}, "needs the key 'chunk_length'"),
        ({"type": "chunk", "batch_size": 4, "chunk_length": 9, "chunk_shift_ratio": 0}, "chunk_shift_ratio"),
    ],
)
def test_a_wrong_key_of_a_batch_type_is_named(node, message):
    with pytest.raises(UserError, match=message):
        check_batch_type(node, "dataloader.train.sampler")


def test_the_configuration_is_checked_before_any_job(repository):
    with pytest.raises(UserError, match=r"train\.sampler\.type: unknown batch type 'numle'; did you mean 'numel'"):
        load_config(
            "asr",
            ["dataloader.valid.sampler.max_duration=9", *SWAP, "+dataloader.train.sampler={type: numle}"],
            repository / "config",
        )
    found = load_config("asr", [*SWAP, "+dataloader.train.sampler={type: numel, batch_bins: 5}"], repository / "config")
    assert found["dataloader"]["train"]["sampler"] == {"type": "numel", "batch_bins": 5}


def test_null_keys_replace_an_inherited_sampler():
    node = {"type": "sorted", "batch_size": 2, "_target_": None, "max_duration": None}
    sampler = build_sampler(SimpleNamespace(num_samples=[3, 1, 2, 5]), node, shuffle=False, seed=0)
    assert list(sampler) == [[2, 1], [3, 0]]


def test_numel_wants_one_feature_size():
    shapes = [np.array([[5, 80], [6, 80], [7, 40]])]
    with pytest.raises(UserError, match=r"one feature size, found \[80\] and \[40\]; use 'length'"):
        make_batches("numel", shapes, batch_bins=100)
    assert len(make_batches("length", shapes, batch_bins=100)) == 1
