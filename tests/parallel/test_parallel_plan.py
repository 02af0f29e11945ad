"""Shard and batch plans."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet3.errors import UserError
from espnet3.parallel import parse_shard_name, plan_batches, plan_shards, shard_name

WEIGHTS = st.lists(st.floats(0, 100), max_size=60)


@given(WEIGHTS, st.integers(1, 9))
def test_each_record_once_and_balanced(weights, n):
    shards = plan_shards([f"k{i:03d}" for i in range(len(weights))], weights, n)
    assert sorted(index for shard in shards for index in shard) == list(range(len(weights)))
    totals = [sum(weights[index] for index in shard) for shard in shards]
    # greedy scheduling never leaves a gap larger than the last record that was placed
    assert max(totals) - min(totals) <= max(weights, default=0) + 1e-6
    for shard in shards:
        assert [weights[i] for i in shard] == sorted((weights[i] for i in shard), reverse=True)


@given(WEIGHTS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_the_input(weights, n, chance: random.Random):
    keys = [f"k{i:03d}" for i in range(len(weights))]
    order = list(range(len(keys)))
    chance.shuffle(order)
    shuffled = plan_shards([keys[i] for i in order], [weights[i] for i in order], n)
    plan = plan_shards(keys, weights, n)
    assert [[keys[i] for i in shard] for shard in plan] == [[keys[order[i]] for i in shard] for shard in shuffled]


def test_a_known_plan():
    # 7, 6, 5, 4, 3 on two shards, longest first: 7+4+3 and 6+5
    assert plan_shards(list("abcde"), [3, 7, 5, 4, 6], 2) == [[1, 3, 0], [4, 2]]
    assert plan_shards(["a"], [1.0], 3) == [[0], [], []]


@pytest.mark.parametrize("weights, n", [([1.0, -1.0], 2), ([1.0, float("nan")], 2), ([1.0], 2), ([1.0, 1.0], 0)])
def test_impossible_plans_are_refused(weights, n):
    with pytest.raises(UserError):
        plan_shards(["a", "b"], weights, n)


@given(st.lists(st.floats(0.1, 40), max_size=40), st.integers(1, 6), st.floats(5, 80))
def test_batches_keep_order_and_both_limits(weights, size, budget):
    batches = plan_batches(range(len(weights)), size, budget, weights)
    assert [index for batch in batches for index in batch] == list(range(len(weights)))
    for batch in batches:
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(weights[index] for index in batch) <= budget
    for left, right in itertools.pairwise(batches):
        longer = [*left, right[0]]
        assert len(longer) > size or len(longer) * max(weights[index] for index in longer) > budget


def test_shard_names():
    assert shard_name(3, 16) == "shard-3-of-16.jsonl"
    assert parse_shard_name("exp/a/shard-3-of-16.npz") == (3, 16)
    with pytest.raises(UserError):
        shard_name(17, 16)
    with pytest.raises(UserError):
        parse_shard_name("shard-x.jsonl")
