"""Kills one training again and again, and compares it with one that nobody touched: ``kills.py FOLDER KILLS SEED``.

Most trainings are forked from this process, which has imported everything; every sixth is a ``python -m espnet3 train``.
Prints the instants as JSON; ends with an AssertionError where the weights differ.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from warm import ended, fork

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

import lightning.pytorch
import lightning.pytorch.loggers  # noqa: F401
from test_stages import prepare, settings

import espnet3.stages.train
import espnet3.trainer.trainer  # noqa: F401
from espnet3.__main__ import main
from espnet3.io import read_json, write_json

PATIENCE = 120


def arguments(folder: Path, output: Path, epochs: int) -> list[str]:
    conf = settings(epochs)
    conf["trainer"]["checkpoint_steps"] = 1
    conf["best_model_criterion"] = [["valid/loss", 99, "min"]]
    write_json(folder / "train.json", {"config": conf})
    files = {
        "conf": "train.json",
        "train": "train.jsonl.gz",
        "valid": "valid.jsonl.gz",
        "tokens": "tokens",
        "cmvn": "cmvn.npz",
    }
    given = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    execution = {"execution": {"accelerator": "cpu", "num_workers": 0}}
    return ["train", *given, "--output-dir", str(output), "--execution", json.dumps(execution)]


def written(output: Path) -> list[int]:
    """When the list of checkpoints was last written."""
    return [path.stat().st_mtime_ns for path in output.glob("state-*/resume.json")]


def progresses(output: Path, pid: int, before: list[int]) -> bool:
    """Wait until process *pid* has saved a checkpoint in *output*; False where it has ended before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if written(output) != before:
            return True
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.005)
    raise AssertionError(f"process {pid} does not train")


def killed(folder: Path, kills: int, seed: int) -> tuple[int, list[dict]]:
    """Kill a training *kills* times; the epochs that it is to have, and how far it was at each kill."""
    rng, epochs, instants = random.Random(seed), 4, []
    output = folder / "killed"
    while len(instants) < kills:
        argv = arguments(folder, output, epochs)
        real, early, before = len(instants) % 6 == 5, len(instants) % 4 == 0, written(output)
        if real:
            pid = subprocess.Popen([sys.executable, "-m", "espnet3", *argv], stderr=subprocess.DEVNULL).pid
        else:
            pid = fork(lambda argv=argv: sys.exit(main(argv)), str(folder / "errors"))
        # one in four falls into the start, the others into steps, checkpoints, validation, the end of an epoch
        wait = rng.uniform(0, 0.6 if early else 0.15)
        if not early and not progresses(output, pid, before):
            wait = 0.0
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        if status == 0:
            epochs += 2  # it was done: let there be more to do
            continue
        assert status == -signal.SIGKILL, (folder / "errors").read_text()[-3000:]
        records = [read_json(path)["checkpoints"] for path in output.glob("state-*/resume.json")]
        step = records[0][0]["step"] if records else 0
        instants.append({"seconds": round(wait, 3), "step": step, "command": real, "early": early})
    return epochs, instants


def trained(folder: Path, name: str, epochs: int) -> dict:
    status = ended(fork(lambda: sys.exit(main(arguments(folder, folder / name, epochs))), str(folder / "errors")))
    assert status == 0, (folder / "errors").read_text()[-3000:]
    return read_json(folder / name / "checkpoints.json")


def run(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    assert ended(fork(lambda: prepare(folder), str(folder / "errors"))) == 0, (folder / "errors").read_text()[-3000:]
    epochs, instants = killed(folder, kills, seed)
    ours, theirs = trained(folder, "killed", epochs), trained(folder, "untouched", epochs)
    print(json.dumps({"seed": seed, "epochs": epochs, "steps": ours["last"]["step"], "kills": instants}))
    for index in (ours, theirs):
        for record in index["history"]:
            del record["seconds"]
    assert ours["state"] == theirs["state"] and len(ours["checkpoints"]) == epochs
    assert ours["checkpoints"] == theirs["checkpoints"], "the weights differ"
    assert ours["history"] == theirs["history"], "the history differs"
    left = {path.name for path in folder.glob("killed/**/*") if path.is_file() and "tensorboard" not in path.parts}
    assert left == {
        path.name for path in folder.glob("untouched/**/*") if path.is_file() and "tensorboard" not in path.parts
    }


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
