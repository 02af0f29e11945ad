"""Lets every single write of an operation fail in turn: ``write_faults.py checkpoint|shard|manifest FOLDER SHIM``.

Runs with the shim preloaded. For each kind of fault the first, second, ... change of a file fails, until the operation
passes; after each, no file may be torn, and the same operation, run again, must end with the very files that it makes
undisturbed. Prints how many faults there were of each kind.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from warm import ended, fork

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("trainer", "parallel")]

ERROR, FULL, SHORT, KILL = 1, 2, 3, 4
KINDS = {
    "EIO": (ERROR, errno.EIO),
    "ENOSPC": (FULL, errno.ENOSPC),
    "short write": (SHORT, errno.ENOSPC),
    "kill": (KILL, 0),
}
REASONS = ("no space left", "input/output error", "disk is full", "disk i/o error", "readonly database")
Files = dict[str, bytes]


def snapshot(folder: Path) -> Files:
    """A folder's files, but for what is remembered there of the input."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "cache")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def every_fault(
    shim: ctypes.CDLL,
    base: Path,
    folder: Path,
    operation: Callable[[], object],
    whole: Callable[[Files, Files, Files], None],
) -> dict[str, int]:
    """Run *operation* on copies of *base* in *folder*, with each of its writes failing, and look at what is left.

    *whole* gets the files before, the files that an undisturbed operation makes, and those that a fault has left.
    """

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)

    def run(kind: tuple[int, int], number: int) -> int:
        def child() -> None:
            shim.fault_arm(f"{folder}/".encode(), number, *kind)
            try:
                operation()
            finally:
                left = shim.fault_seen() < number
                shim.fault_arm(b"", 0, 0, 0)
                if left and number:
                    sys.exit(77)

        return ended(fork(child, str(folder.parent / "errors")))

    before = snapshot(base)
    fresh()
    assert run(KINDS["EIO"], 0) == 0, (folder.parent / "errors").read_text()
    after = snapshot(folder)
    assert after != before
    counts = {}
    for name, kind in KINDS.items():
        for number in range(1, 1000):
            fresh()
            status = run(kind, number)
            if status == 77:
                break
            where = f"{name} at write {number}"
            said = (folder.parent / "errors").read_text()
            if name == "kill":
                assert status == -signal.SIGKILL, (where, status, said)
            elif status:
                # one that is no reason to stop (a folder that cannot be synced) may pass; what stops it says the reason
                assert any(word in said.lower() for word in REASONS), (where, said)
            left = snapshot(folder)
            try:
                if status:
                    whole(before, after, left)
                else:
                    assert left == after, "it passed, with other files"
                operation()
                again = snapshot(folder)
                assert again == after, sorted(set(again) ^ set(after)) or [n for n in after if again[n] != after[n]]
            except Exception as error:
                raise AssertionError(
                    f"{where}: {type(error).__name__}: {error}; left: {sorted(left)}; {said}"
                ) from error
            counts[name] = number
    return counts


def old_or_new(*names: str) -> Callable[[Files, Files, Files], None]:
    def whole(before: Files, after: Files, left: Files) -> None:
        for name in names:
            assert left.get(name) in (before.get(name), after[name]), f"{name} is torn"

    return whole


def checkpoint(shim: ctypes.CDLL, folder: Path) -> dict[str, int]:
    """All that is written from one checkpoint to the next at an epoch's end, and the publication."""
    from espnet3.io import sha256_file
    from espnet3.trainer.lease import Lease
    from espnet3.trainer.state import AtomicCheckpointIO, TrainingState

    old = {"weight": torch.arange(3000.0), "optimizer": [torch.ones(10)]}
    new = {"weight": torch.arange(3000.0) + 1, "optimizer": [torch.zeros(10)]}
    criteria = [["valid/loss", 1, "min"]]
    work = folder / "work"

    def write(state: TrainingState, content: dict, epoch: int) -> None:
        record = {"epoch": epoch, "step": epoch * 10, "metrics": {"valid/loss": 1.0 / epoch}, "seconds": 1.0}
        state.add_epoch(record, {"weight": content["weight"]}, criteria)
        path = state.folder / f"step-{epoch * 10:08d}-{epoch:04d}-000000.ckpt"
        AtomicCheckpointIO().save_checkpoint(content, path)
        state.add(path, epoch * 10, epoch, 0)
        state.publish(epoch, criteria)

    write(TrainingState(folder / "base", {"model": 1}), old, 1)

    def operation() -> None:
        state = TrainingState(work, {"model": 1})
        with Lease(state.folder):
            state.remove_leftovers()
            state.rewind(1)
            write(state, new, 2)

    def whole(before: Files, after: Files, left: Files) -> None:
        state = TrainingState(work, {"model": 1})
        path, record = state.verified()
        content = AtomicCheckpointIO().load_checkpoint(path)
        assert torch.equal(content["weight"], (old if record["epoch"] == 1 else new)["weight"])
        for r in state.history():
            assert sha256_file(state.folder / r["file"]) == r["sha256"]
        old_or_new(
            "last.ckpt", "checkpoints.json", f"{state.folder.name}/resume.json", f"{state.folder.name}/history.jsonl"
        )(before, after, left)

    return every_fault(shim, folder / "base", work, operation, whole)


def shard(shim: ctypes.CDLL, folder: Path) -> dict[str, int]:
    """A shard of a runner, made anew over an old one, with a record that is quarantined."""
    from parallel_toys import Squares, Table

    runner = Squares(Table({"size": 12, "poison": [5]}), max_failures=1)
    (folder / "base").mkdir()
    (folder / "base/shard.jsonl").write_text('{"id": "old"}\n')

    def operation() -> None:
        runner.run_shard(list(range(12)), folder / "work/shard.jsonl")

    def whole(before: Files, after: Files, left: Files) -> None:
        old_or_new("shard.jsonl")(before, after, left)
        if left["shard.jsonl"] == after["shard.jsonl"]:
            assert [json.loads(line)["id"] for line in left["shard.jsonl"].splitlines()][4:6] == [
                "utt00004",
                "utt00006",
            ]

    return every_fault(shim, folder / "base", folder / "work", operation, whole)


def manifest(shim: ctypes.CDLL, folder: Path) -> dict[str, int]:
    """A split's manifest and its list of rejected recordings."""
    import numpy as np
    import soundfile

    from espnet3.io import write_jsonl
    from espnet3.stages import manifest as stage

    (folder / "audio").mkdir()
    for number in range(5):
        soundfile.write(folder / f"audio/{number}.wav", np.full(4000, 0.1 * number), 8000)
        os.utime(folder / f"audio/{number}.wav", (0, 0))  # what is old is remembered, in a file more
    records = [
        {
            "id": f"u{number}",
            "split": "train",
            "audio": str(folder / f"audio/{number}.wav"),
            "text": "a b",
            "speaker": "x",
        }
        for number in range(5)
    ]
    records[3]["text"] = " "
    write_jsonl(folder / "corpus.jsonl", records)
    data = {"corpus": "x", "sampling_rate": 8000, "min_duration": 0.1, "max_duration": 5.0, "max_rejected": 0.5}
    (folder / "base").mkdir()
    (folder / "base/train.jsonl.gz").write_bytes(gzip.compress(b'{"id": "old"}\n'))

    def operation() -> None:
        work, local = folder / "work", {"env": "local", "n_workers": 1}
        stage.run(
            {"data": data}, folder / "corpus.jsonl", "train", work / "train.jsonl.gz", work / "rejected.jsonl", local
        )

    shutil.copytree(folder / "base", folder / "work")
    operation()  # what the first call imports is not to be paid for in every child
    return every_fault(
        shim, folder / "base", folder / "work", operation, old_or_new("train.jsonl.gz", "rejected.jsonl")
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, where, library = sys.argv[1:]
    print(
        json.dumps(
            {"checkpoint": checkpoint, "shard": shard, "manifest": manifest}[name](ctypes.CDLL(library), Path(where))
        )
    )
