"""The ``parallel:`` section: where work runs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espnet3.errors import UserError, did_you_mean
from espnet3.parallel.provider import plain

ENGINES = (
    "local",
    "multiprocessing",
    "dask",
    "slurm",
    "pbs",
    "sge",
    "lsf",
    "htcondor",
    "oar",
    "moab",
    "ssh",
    "kube",
    "local_gpu",
)


@dataclass
class ParallelConfig:
    """The checked ``parallel:`` section.

    Attributes:
        env: the engine. ``local`` with one worker runs in this process, with more it is ``multiprocessing``.
        n_workers: how many workers; it never changes a result.
        options: for the engine; a cluster's go to its ``dask_jobqueue`` class.
        submit: a node with ``_target_``, the submission hook.
        allow: packages, besides the built-in list, that ``submit._target_`` may come from.
    """

    env: str = "local"
    n_workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    submit: dict[str, Any] | None = None
    allow: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any] | ParallelConfig | None) -> ParallelConfig:
        """Check a mapping, or what :func:`set_parallel` has set where *config* is None.

        Raises:
            UserError: an unknown key or engine, or a number of workers below 1.
        """
        if config is None:
            return _current
        if isinstance(config, ParallelConfig):
            return config
        config = dict(plain(config))
        for key in config:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"parallel.{key}: no such key{did_you_mean(key, cls.__dataclass_fields__)}")
        made = cls(**{key: value for key, value in config.items() if value is not None})
        if made.env not in ENGINES:
            raise UserError(f"parallel.env: {made.env} is no engine{did_you_mean(made.env, ENGINES)}")
        if not isinstance(made.n_workers, int) or isinstance(made.n_workers, bool) or made.n_workers < 1:
            raise UserError(f"parallel.n_workers: {made.n_workers} must be a whole number from 1")
        made.options, made.allow = dict(made.options), tuple(made.allow)
        return made

    @property
    def in_process(self) -> bool:
        """Whether the work runs in this very process."""
        return self.env == "local" and self.n_workers == 1

    @property
    def processes(self) -> bool:
        """Whether the work runs in processes of our own on this machine."""
        return self.env == "multiprocessing" or (self.env == "local" and self.n_workers > 1)


_current = ParallelConfig()


def set_parallel(config: Mapping[str, Any] | ParallelConfig | None) -> None:
    """Set what runners and :func:`parallel_map` use where they are given nothing; None sets the default again."""
    global _current
    _current = ParallelConfig() if config is None else ParallelConfig.of(config)
