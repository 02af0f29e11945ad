"""A disk that is really full, for ``full_disk.py FOLDER``: a tmpfs of 200 kB is mounted on FOLDER/small, in a namespace of
this process, and grows and fills up as the case wants it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from warm import ended, fork

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("trainer", "parallel")]

from parallel_toys import Squares, Table  # noqa: E402
from tiny import make_trainer, weights  # noqa: E402

from espnet3.__main__ import main  # noqa: E402
from espnet3.errors import UserError  # noqa: E402


def fill(folder: Path) -> Path:
    """Take all the space that there is."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(b"\0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


class FillAt(pl.Callback):
    def __init__(self, step: int, folder: Path):
        self.step, self.folder = step, folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            fill(self.folder)


def training(folder: Path, small: Path) -> None:
    refused = ""
    try:
        make_trainer(small / "exp", 3).fit()
    except UserError as error:
        refused = str(error)
    assert "may write" in refused and "are free there; free some" in refused, refused
    assert not list(small.glob("exp/state-*/step-*")), "before the first step"
    subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
    for step in (2, 7):  # while the first checkpoint is written, and a later one
        trainer = make_trainer(small / "exp", 3)
        trainer.extra_callbacks.append(FillAt(step, small))
        try:
            trainer.fit()
            raise AssertionError("a full disk was not noticed")
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        (small / "ballast").unlink()
    make_trainer(small / "exp", 3).fit()
    make_trainer(folder / "exp", 3).fit()
    assert weights(small / "exp") == weights(folder / "exp")


def shard(folder: Path, small: Path) -> None:
    runner = Squares(Table({"size": 2000}))
    ballast = fill(small)
    said = ""
    try:
        with open(ballast, "r+b") as handle:
            handle.truncate(ballast.stat().st_size - 8192)
        runner.run_shard(list(range(2000)), small / "shard.jsonl")
    except UserError as error:
        said = str(error)
    assert "no space left on device; free some space and run again, it resumes" in said, said
    assert not (small / "shard.jsonl").exists()
    ballast.unlink()
    runner.run_shard(list(range(2000)), small / "shard.jsonl")
    runner.run_shard(list(range(2000)), folder / "shard.jsonl")
    assert (small / "shard.jsonl").read_bytes() == (folder / "shard.jsonl").read_bytes()


def command(folder: Path, small: Path) -> None:
    """What a user sees: one line."""
    (folder / "corpus.jsonl").write_text(
        '{"id": "u", "split": "train", "audio": "no.wav", "text": "a", "speaker": "x"}\n'
    )
    conf = folder / "manifest.json"
    conf.write_text(
        '{"config": {"data": {"corpus": "x", "sampling_rate": 8000, "min_duration": 0.1, "max_duration": 5,'
        ' "max_rejected": 1}}}'
    )
    given = {"conf": conf, "corpus": folder / "corpus.jsonl", "split": "train", "output": small / "train.jsonl.gz"}
    argv = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    argv += ["--rejected", str(small / "rejected.jsonl")]
    ballast = fill(small)
    status = ended(fork(lambda: sys.exit(main(["manifest", *argv])), str(folder / "errors")))
    said = (folder / "errors").read_text()
    assert status == 2 and "Traceback" not in said, said
    assert ": No space left on device; free some space, then run again\n" in said and said.count("\n") == 1, said
    left = (path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert sorted(map(str, (path for path in left if path.parts[0] != "exp"))) == ["ballast", "shard.jsonl"]
    ballast.unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    (base / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(base / "small")], check=True)
    for case in (training, shard, command):
        case(base, base / "small")
    print("done")
