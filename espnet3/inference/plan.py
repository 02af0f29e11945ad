"""Which utterances of a manifest are decoded together, and in which shard."""

from __future__ import annotations

from collections.abc import Sequence

from espnet3.parallel import plan_batches, plan_shards


def plan_decoding(ids: Sequence[str], durations: Sequence[float], shards: int, batch_seconds: float) -> list[list[int]]:
    """Split a test set into shards of whole batches.

    The batches are made of the whole set, longest utterances first, before they are dealt to the shards: another number
    of shards moves batches about but changes none, hence no bit of a result. Cutting a shard into batches of at most
    *batch_seconds* of padded audio (:func:`espnet3.parallel.plan_batches`) gives the same batches again, for within a
    descending order a batch is full when one more times its first utterance would be too long, whatever comes next.

    Returns:
        for each shard the indices of its utterances, batch after batch; with fewer batches than shards some are empty.
    """
    order = sorted(range(len(ids)), key=lambda i: (-durations[i], ids[i]))
    batches = plan_batches(order, batch_weight=batch_seconds, weights=durations)
    totals = [sum(durations[i] for i in batch) for batch in batches]
    dealt = plan_shards([ids[batch[0]] for batch in batches], totals, shards)
    return [[i for number in sorted(shard) for i in batches[number]] for shard in dealt]
