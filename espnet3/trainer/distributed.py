"""Training in several processes: which one this is, how they find each other, and what each of them validates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from espnet3.trainer.batches import epoch_sampler


def processes(execution: Mapping[str, Any]) -> int:
    """How many processes ``execution: {devices, num_nodes, accelerator}`` asks for."""
    devices = execution.get("devices", "auto")
    if isinstance(devices, str):
        devices = [d for d in devices.split(",") if d.strip()] if "," in devices else devices
        devices = int(devices) if isinstance(devices, str) and devices.lstrip("-").isdigit() else devices
    if devices in ("auto", -1):
        gpu = execution.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        devices = max(1, torch.cuda.device_count()) if gpu else 1
    local = len(devices) if isinstance(devices, Sequence) else int(devices)
    return max(1, local) * int(execution.get("num_nodes", 1))


def rank(execution: Mapping[str, Any]) -> int:
    """This process's number, from what launched it; 0 where it is the only one, or the one that launches the others."""
    if processes(execution) == 1:
        return 0
    names = ("RANK", "LOCAL_RANK") if not _by_slurm(execution) else ("SLURM_PROCID",)
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def environment(execution: Mapping[str, Any]) -> Any:
    """Lightning's cluster environment; None leaves it to Lightning (torchrun)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and processes(execution) > 1:
        return None
    # our own callback handles signals, and Snakemake what comes after them
    return SLURMEnvironment(auto_requeue=False) if _by_slurm(execution) else LightningEnvironment()


def _by_slurm(execution: Mapping[str, Any]) -> bool:
    """Whether srun started one task for each process; an allocation with tasks of its own is none of our business."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    return "SLURM_PROCID" in os.environ and tasks == str(processes(execution)) and processes(execution) > 1


def strategy(execution: Mapping[str, Any]) -> Any:
    """What ``strategy: auto`` or ``ddp`` is for several processes: DDP that talks in backward passes only.

    DDP's own exchange of buffers at each forward pass would also happen in validation, where processes have unlike numbers
    of batches, and wait for ever; :func:`share_buffers` does it before each validation.
    """
    wanted = execution.get("strategy", "auto")
    if processes(execution) == 1 or wanted not in ("auto", "ddp"):
        return wanted
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers (batch norm's statistics), which are those that checkpoints hold."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def world() -> int:
    """Number of processes; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(sums: Mapping[str, float]) -> dict[str, float]:
    """The sum, over all processes, of numbers by name; a process may lack some of them, or all."""
    if world() == 1:
        return dict(sums)
    gathered: list[dict[str, float]] = [{} for _ in range(world())]
    dist.all_gather_object(gathered, dict(sums))
    names = sorted({name for part in gathered for name in part})
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in names}


class Dealt:
    """Batches dealt out to the processes: each of them once, whatever their number."""

    def __init__(self, batches: Sequence[Any]):
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches[self._mine()])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches[self._mine()])

    def _mine(self) -> slice:
        return slice(dist.get_rank() if world() > 1 else 0, None, world())


def deal(loader: DataLoader) -> DataLoader:
    """Let *loader* go through its batches once over all processes, in the same order in each epoch.

    To be called before the processes know of each other: a sampler that shares batches out itself leaves some out.
    """
    sampler = epoch_sampler(loader)
    if sampler is not None:
        dealt = Dealt(list(sampler.sampler))
        sampler.sampler = dealt
        for name, value in (("inner", dealt), ("share", False)):
            if hasattr(sampler, name):
                setattr(sampler, name, value)
    return loader
