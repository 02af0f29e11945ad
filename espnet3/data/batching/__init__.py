"""Which utterances go into which batch, and in what order; nothing here reads audio or needs torch."""

from espnet3.data.batching.chunks import Chunk, ChunkSampler
from espnet3.data.batching.epochs import EpochSampler, Request, seed_all
from espnet3.data.batching.lengths import Lengths, read_shape_file
from espnet3.data.batching.pools import SortedPools
from espnet3.data.batching.typed import Batches, TypedBatchSampler, make_batches

__all__ = [
    "Batches",
    "Chunk",
    "ChunkSampler",
    "EpochSampler",
    "Lengths",
    "Request",
    "SortedPools",
    "TypedBatchSampler",
    "make_batches",
    "read_shape_file",
    "seed_all",
]
