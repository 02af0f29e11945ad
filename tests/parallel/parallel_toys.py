"""A provider and runners whose records can be slow, broken, deadly or large, by configuration."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from espnet3.parallel import BaseRunner, EnvironmentProvider


class Table(EnvironmentProvider):
    """``config``: size, and the faults of :func:`compute`."""

    def build_env_local(self):
        return {"table": [index * index for index in range(self.config["size"])], "faults": self.config}


def compute(index: int, table: list[int], faults: dict) -> dict:
    """One record; leaves a line in ``faults["calls"]`` for each call, so that work done twice is seen."""
    if faults.get("calls"):
        with open(faults["calls"], "a") as calls:
            calls.write(f"{index}\n")
    time.sleep(faults.get("sleep", 0))
    # the second half of the table waits at the gate, for tests that must catch a shard in the middle
    while faults.get("gate") and index >= len(table) // 2 and not Path(faults["gate"]).exists():
        time.sleep(0.02)
    if index in faults.get("poison", []):
        raise ValueError(f"record {index} is poison")
    marker = faults.get("kill_once", {}).get(str(index))
    if marker == "always" or (marker and not Path(marker).exists()):
        if marker != "always":
            Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"id": f"utt{index:05d}", "square": table[index], "text": "größe 語"}


class Squares(BaseRunner):
    @staticmethod
    def forward(idx, table, faults):
        return compute(idx, table, faults)


class BatchedSquares(BaseRunner):
    @staticmethod
    def forward(idx, table, faults, **env):
        if len(idx) > faults.get("fits", 1000):
            raise MemoryError("batch too large")
        return [compute(index, table, faults) for index in idx]


class TwoFiles(BaseRunner):
    """Its own writers: a text file and a list, and a sum over the shard kept in the state."""

    @staticmethod
    def forward(idx, table, faults):
        return compute(idx, table, faults)

    def open_writers(self, shard_dir, **env):
        return {name: open(shard_dir / name, "a", encoding="utf-8") for name in ("text", "squares")}

    def write_record(self, writers, result, state, **env):
        writers["text"].write(f"{result['id']} {result['text']}\n")
        writers["squares"].write(f"{result['id']} {result['square']}\n")
        state["sum"] = state.get("sum", 0) + result["square"]

    def close_writers(self, writers, state, **env):
        if "sum" in state:
            writers["squares"].write(f"# sum {state['sum']}\n")
        for writer in writers.values():
            writer.close()

    def merge(self, shard_dirs):
        lines = [line for shard in shard_dirs for line in (shard / "text").read_text().splitlines()]
        return sorted(lines)


def add_comment(script: str, command: list[str], comment: str) -> tuple[str, list[str]]:
    """A submission hook."""
    return script.replace("\nexport ", "\n# changed by the hook\nexport ", 1), [*command, f"--comment={comment}"]
