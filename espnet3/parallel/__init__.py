"""Providers, runners and engines: the same records, the same bytes, wherever they run. Knows nothing of speech.

class Provider(EnvironmentProvider):
    def build_env_local(self): return {"table": load(self.config["table"])}

class Runner(BaseRunner):
    @staticmethod
    def forward(idx, table, **env): return {"id": idx, "value": table[idx]}

Runner(Provider({"table": "t.json"}), parallel={"env": "multiprocessing", "n_workers": 4})(range(1000))
"""

from __future__ import annotations

from espnet3.parallel.config import ParallelConfig, set_parallel
from espnet3.parallel.functions import get_client, parallel_for, parallel_map, wrap_func_with_worker_env
from espnet3.parallel.plan import parse_shard_name, plan_batches, plan_shards, shard_name
from espnet3.parallel.provider import EnvironmentProvider, InferenceProvider
from espnet3.parallel.runner import BaseRunner, ShardReport, TooManyFailures
from espnet3.parallel.shardfile import failed_path, read_failures

__all__ = [
    "BaseRunner",
    "EnvironmentProvider",
    "InferenceProvider",
    "ParallelConfig",
    "ShardReport",
    "TooManyFailures",
    "failed_path",
    "get_client",
    "parallel_for",
    "parallel_map",
    "parse_shard_name",
    "plan_batches",
    "plan_shards",
    "read_failures",
    "set_parallel",
    "shard_name",
    "wrap_func_with_worker_env",
]
