"""The training state's folder: resumable checkpoints, the weights and the history of its epochs."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors.torch import save as to_safetensors

from espnet3.errors import UserError
from espnet3.io import atomic_write, digest, read_json, read_jsonl, sha256_file, write_json, write_jsonl
from espnet3.trainer.lease import Lease

log = logging.getLogger(__name__)

KEEP_ALL_BYTES = 2 << 30
"""While the weights of all epochs take less, all are kept: a smaller budget then finds them again."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints under a temporary name, fsynced, renamed; read with ``weights_only``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        with atomic_write(path, "wb") as handle:
            torch.save(checkpoint, handle)

    def load_checkpoint(self, path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink(missing_ok=True)


class TrainingState:
    """``<root>/state-<hash8>/``, named after what determines the result (the *identity*), not how long it trains.

    Files: ``identity.json``; ``step-*.ckpt``, the two newest full checkpoints, and ``resume.json`` with their digests;
    ``epoch-*.safetensors``, the model alone after an epoch; ``history.jsonl``, one line an epoch; logs.
    """

    def __init__(self, root: str | os.PathLike, identity: dict[str, Any]):
        self.root = Path(root)
        self.hash = digest(identity, 8)
        self.folder = self.root / f"state-{self.hash}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity.json").exists():
            write_json(self.folder / "identity.json", identity)
        self.lease: Lease | None = None

    # Full checkpoints

    def records(self) -> list[dict[str, Any]]:
        """The full checkpoints, newest first: file, sha256, step, completed epochs, batches into the next epoch."""
        path = self.folder / "resume.json"
        if not path.exists():
            return []
        try:
            return [{key: r[key] for key in _RECORD} for r in read_json(path)["checkpoints"]]
        except (UserError, KeyError, TypeError):
            log.warning("%s is damaged; taking the checkpoints whose own sums are right", path)
            return [
                _own_record(found) for found in sorted(self.folder.glob("step-*.ckpt"), reverse=True) if _whole(found)
            ]

    def verified(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest full checkpoint whose bytes are what was written; an older one, with a word, where it is torn."""
        for record in self.records():
            path = self.folder / record["file"]
            if path.exists() and sha256_file(path) == record["sha256"]:
                return path, record
            log.warning("%s is damaged or missing; going back to the checkpoint before it", path)
        return None

    def add(self, path: Path, step: int, epoch: int, batch: int) -> None:
        """Make *path*, just written, the newest checkpoint; keep the one before it, remove older ones."""
        self.check_lease()
        record = {"file": path.name, "sha256": sha256_file(path), "step": step, "epoch": epoch, "batch": batch}
        older = [r for r in self.records() if r["file"] != path.name and (self.folder / r["file"]).exists()]
        kept = [record, *[r for r in older if r["step"] <= step][:1]]
        write_json(self.folder / "resume.json", {"checkpoints": kept})
        for old in self.folder.glob("step-*.ckpt"):
            if old.name not in {r["file"] for r in kept}:
                old.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of writers that died; for the lease's holder only."""
        for path in self.folder.glob(".*.tmp"):
            if not path.name.startswith(".lease."):
                path.unlink(missing_ok=True)
        for path in self.root.glob(".*.tmp"):
            # beside this folder another training may just be publishing its own
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 60:
                    path.unlink()

    def check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    # Epochs

    def history(self) -> list[dict[str, Any]]:
        """One record an epoch: epoch (from 1), step, metrics, seconds, file, sha256."""
        path = self.folder / "history.jsonl"
        if not path.exists():
            return []
        return list(read_jsonl(path))

    def rewind(self, epoch: int) -> None:
        """Forget what was written after *epoch* by a run that died before its next checkpoint."""
        history = self.history()
        if any(r["epoch"] > epoch for r in history):
            write_jsonl(self.folder / "history.jsonl", [r for r in history if r["epoch"] <= epoch])

    def add_epoch(self, record: dict[str, Any], weights: dict[str, torch.Tensor], criteria: list) -> None:
        """Write an epoch's weights and its line of history; remove weights that no criterion keeps."""
        name = f"epoch-{record['epoch']:04d}.safetensors"
        data = to_safetensors({k: v.detach().cpu().contiguous() for k, v in weights.items()})
        with atomic_write(self.folder / name, "wb") as handle:
            handle.write(data)
        record = {**record, "file": name, "sha256": sha256_file(self.folder / name)}
        history = [r for r in self.history() if r["epoch"] < record["epoch"]] + [record]
        write_jsonl(self.folder / "history.jsonl", history)
        if len(data) * len(history) > KEEP_ALL_BYTES:
            kept = {r["file"] for r in best(history, criteria)} | {name}
            for old in self.folder.glob("epoch-*.safetensors"):
                if old.name not in kept:
                    old.unlink(missing_ok=True)

    def publish(self, epochs: int, criteria: list) -> dict[str, Any]:
        """Write ``last.ckpt`` and ``checkpoints.json`` beside the folder, for a training of *epochs* epochs.

        Raises:
            UserError: no weights of those epochs are left.
        """
        found = self.verified()
        history = [r for r in self.history() if r["epoch"] <= epochs]
        kept = [r for r in best(history, criteria) if (self.folder / r["file"]).exists()]
        if found is None or not kept:
            raise UserError(
                f"{self.folder}: no weights of the first {epochs} epochs are left; raise trainer.max_epochs"
            )
        last = self.root / "last.ckpt"
        temporary = self.root / f".last.ckpt.{self.hash}.tmp"
        temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(found[0], temporary)
        if not temporary.exists():
            with open(found[0], "rb") as source, atomic_write(temporary, "wb") as handle:
                while block := source.read(1 << 20):
                    handle.write(block)
        os.replace(temporary, last)
        index = {
            "state": self.folder.name,
            "criteria": [list(c) for c in criteria],
            "last": {"file": "last.ckpt", **{k: found[1][k] for k in ("sha256", "step", "epoch")}},
            "checkpoints": [
                {
                    "epoch": r["epoch"],
                    "step": r["step"],
                    "metrics": r["metrics"],
                    "file": f"{self.folder.name}/{r['file']}",
                    "sha256": r["sha256"],
                }
                for r in kept
            ],
            "history": [{k: v for k, v in r.items() if k not in ("file", "sha256")} for r in history],
        }
        write_json(self.root / "checkpoints.json", index)
        return index


_RECORD = ("file", "sha256", "step", "epoch", "batch")


def _whole(path: Path) -> bool:
    """Whether the sums that torch's archive holds of its parts are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def _own_record(path: Path) -> dict[str, Any]:
    step, epoch, batch = map(int, path.stem.split("-")[1:])
    return {"file": path.name, "sha256": sha256_file(path), "step": step, "epoch": epoch, "batch": batch}


def best(history: list[dict[str, Any]], criteria: list) -> list[dict[str, Any]]:
    """Epochs, in their order, that are among the K best of any criterion ``[monitor, K, min|max]``, or the last K."""
    kept = {r["epoch"] for r in history[-max((k for _, k, _ in criteria), default=1) :]}
    for monitor, k, mode in criteria:
        kept |= {r["epoch"] for r in rank(history, monitor, mode)[:k]}
    return [r for r in history if r["epoch"] in kept]


def rank(history: list[dict[str, Any]], monitor: str, mode: str) -> list[dict[str, Any]]:
    """Best first; of equals the later epoch first.

    Raises:
        UserError: no epoch has the metric.
    """
    known = [r for r in history if r["metrics"].get(monitor) is not None]
    if history and not known:
        names = ", ".join(sorted(history[-1]["metrics"]))
        raise UserError(f"best_model_criterion: no epoch has the metric '{monitor}'; there are: {names}")
    sign = 1 if mode == "min" else -1
    return sorted(known, key=lambda r: (sign * r["metrics"][monitor], -r["epoch"]))


def epochs_to_train(history: list[dict[str, Any]], max_epochs: int, patience: int | None, criteria: list) -> int:
    """The epoch after which this budget stops: `max_epochs`, or `patience` epochs after the best one of the first criterion."""
    if patience:
        monitor, _, mode = criteria[0]
        for end in range(patience + 1, min(len(history), max_epochs) + 1):
            leaders = rank(history[:end], monitor, mode)
            equal = [r["epoch"] for r in leaders if r["metrics"][monitor] == leaders[0]["metrics"][monitor]]
            if equal and end - min(equal) >= patience:
                return end
    return max_epochs
