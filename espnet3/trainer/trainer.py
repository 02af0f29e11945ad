"""``ESPnet3LightningTrainer``: Lightning's trainer with ESPnet's epochs, statistics and an uninterruptible state."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.io import digest, sha256_file
from espnet3.trainer.batches import epoch_sampler, make_loader, seed_all
from espnet3.trainer.keeper import StateKeeper
from espnet3.trainer.lease import Lease
from espnet3.trainer.model import LitESPnetModel, plain, split_batch
from espnet3.trainer.progress import TrainingLog
from espnet3.trainer.state import AtomicCheckpointIO, TrainingState, epochs_to_train

log = logging.getLogger(__name__)

_OWN = ("patience", "checkpoint_seconds", "checkpoint_steps", "log_seconds", "max_nonfinite")
BUDGET = ("max_epochs", *_OWN, "logger", "profiler", "log_every_n_steps", "enable_model_summary", "enable_progress_bar")
"""Keys of ``trainer:`` that say how long and how often, not what the training computes; in no identity."""
_CRITERIA = [["valid/loss", 5, "min"]]


class ESPnet3LightningTrainer:
    """Trains a :class:`LitESPnetModel`.

    Args:
        model: the module; a bare model with ESPnet's contract is wrapped.
        config: sections ``optimizer``, ``scheduler``, ``dataloader: {train, valid}``, ``best_model_criterion``, ``seed``,
            ``execution``; ``trainer``: ``max_epochs``, ``patience``, ``checkpoint_seconds``, ``checkpoint_steps``, ``log_seconds``,
            ``max_nonfinite``, every other key being Lightning's (``callbacks``, ``logger`` and ``profiler`` as ``_target_`` nodes);
            and ``dataset: {train, valid}`` (data sets, manifests, or ``_target_`` nodes) unless *datasets* gives them.
        expdir: where ``last.ckpt``, ``checkpoints.json`` and ``state-<hash8>/`` go.
        datasets: ``{"train": ..., "valid": ...}``.
        identity: what the result depends on; by default the config without its budget, the model and the data's ids.
    """

    def __init__(
        self,
        model: LitESPnetModel | torch.nn.Module,
        config: Mapping[str, Any],
        expdir: str | os.PathLike,
        datasets: Mapping[str, Any] | None = None,
        identity: dict[str, Any] | None = None,
    ):
        self.config = plain(config)
        self.model = model if isinstance(model, LitESPnetModel) else LitESPnetModel(model)
        if not self.model.config:
            self.model.config = {k: self.config.get(k) for k in ("optimizer", "scheduler") if k in self.config}
        self.settings = dict(self.config.get("trainer") or {})
        self.model.max_nonfinite = self.settings.get("max_nonfinite", self.model.max_nonfinite)
        self.max_epochs = self.settings.pop("max_epochs", 1)
        self.own = {key: self.settings.pop(key) for key in _OWN if key in self.settings}
        self.criteria = [list(c) for c in self.config.get("best_model_criterion") or _CRITERIA]
        self.seed = int(self.config.get("seed", 0))
        self.allow = tuple(self.config.get("allow") or ())
        self.execution = dict(self.config.get("execution") or {})
        self.expdir = Path(expdir)
        self._given = dict(datasets or {})
        self._datasets: dict[str, Any] = {}
        self._identity = identity
        self.extra_callbacks: list[pl.Callback] = []

    def dataset(self, part: str) -> Any:
        """The ``train`` or ``valid`` data set, built at its first use.

        Raises:
            UserError: neither *datasets* nor ``config.dataset`` names it.
        """
        if part not in self._datasets:
            node = self._given.get(part)
            if node is None:
                node = (self.config.get("dataset") or {}).get(part)
            if node is None:
                raise UserError(
                    f"config.dataset.{part}: no data set; give a data set, a manifest's path or a _target_ node"
                )
            if isinstance(node, Mapping):
                node = instantiate(plain(node), allow=self.allow)
            elif isinstance(node, (str, os.PathLike)):
                from espnet3.data.dataset import ESPnet3Dataset

                node = ESPnet3Dataset(node)
            self._datasets[part] = node
        return self._datasets[part]

    def loader(self, part: str) -> torch.utils.data.DataLoader:
        """The DataLoader of a part; shuffled if it is ``train``."""
        node = (self.config.get("dataloader") or {}).get(part)
        workers = int(self.execution.get("num_workers", 0))
        seed, train = self.seed, part == "train"
        return make_loader(self.dataset(part), node, seed=seed, shuffle=train, num_workers=workers, allow=self.allow)

    def identity(self) -> dict[str, Any]:
        """What a training's result depends on; its digest names the state's folder."""
        if self._identity is not None:
            return self._identity
        config = {k: v for k, v in self.config.items() if k not in ("execution", "dataset", "best_model_criterion")}
        config["trainer"] = {k: v for k, v in (config.get("trainer") or {}).items() if k not in BUDGET}
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        return {
            "config": digest(_jsonable(config)),
            "model": digest([repr(self.model.model), shapes]),
            "data": {part: _data_digest(self.dataset(part)) for part in ("train", "valid")},
        }

    def fit(self) -> dict[str, Any]:
        """Train to the budget, from the state where there is one, and write ``last.ckpt`` and ``checkpoints.json``.

        Returns:
            The index: what ``checkpoints.json`` holds.

        Raises:
            UserError: another process trains here, or the losses are not finite. SystemExit: a signal stopped it, state saved.
        """
        state = TrainingState(self.expdir, self.identity())
        patience = self.own.get("patience")
        with quiet_lightning(), log_file(state.folder / "train.log"):
            with Lease(state.folder) as lease:
                state.lease = lease
                found = state.verified()
                start = (found[1]["epoch"], found[1]["batch"]) if found else (0, 0)
                state.rewind(start[0])
                budget = epochs_to_train(state.history(), self.max_epochs, patience, self.criteria)
                if start[0] >= budget:
                    log.info("%s: %d epochs are trained already", state.folder, start[0])
                else:
                    self._fit(state, found, start)
                budget = epochs_to_train(state.history(), self.max_epochs, patience, self.criteria)
                return state.publish(budget, self.criteria)

    def _fit(self, state: TrainingState, found: tuple[Path, dict] | None, start: tuple[int, int]) -> None:
        seed_all(self.seed)
        train, valid = self.loader("train"), self.loader("valid")
        keeper = StateKeeper(
            state,
            epoch_sampler(train),
            self.seed,
            start,
            seconds=self.own.get("checkpoint_seconds", 120.0),
            steps=self.own.get("checkpoint_steps"),
        )
        rate = (self.config.get("data") or {}).get("sampling_rate")
        budget = (self.max_epochs, self.own.get("patience"))
        progress = TrainingLog(state, budget, self.criteria, rate, self.own.get("log_seconds", 10.0))
        parameters = sum(p.numel() for p in self.model.parameters())
        threads = torch.get_num_threads()
        log.info("%s: %.2f M parameters, %d threads", state.folder, parameters / 1e6, threads)
        if found:
            log.info("going on from epoch %d, batch %d (%s)", start[0] + 1, start[1], found[0].name)
        # The keeper comes last, so that what it saves holds what the others did
        trainer = self._lightning(state.folder, [*self.extra_callbacks, progress, keeper])
        trainer.fit(
            self.model, train, valid, ckpt_path=found[0] if found else None, weights_only=True if found else None
        )

    def validate(self) -> dict[str, float]:
        """Metrics of the model as it is on the validation set."""
        with quiet_lightning():
            trainer = self._lightning(self.expdir, [], logger=False)
            return trainer.validate(self.model, self.loader("valid"), verbose=False)[0]

    def collect_stats(self) -> dict[str, Any]:
        """Count, sum and sum of squares of the model's features over the training set, in float64, without augmentation."""
        self.model.eval()
        count, total, square = 0, 0.0, 0.0
        with torch.no_grad():
            for batch in self.loader("train"):
                batch = split_batch(batch)[1]
                found = self.model.collect_feats(**batch)
                feats, lengths = found["feats"].double(), found["feats_lengths"]
                inside = torch.arange(feats.size(1)) < lengths.unsqueeze(1)
                feats = feats[inside]
                count, total, square = count + len(feats), total + feats.sum(0), square + feats.square().sum(0)
        mean = total / count
        std = (square / count - mean.square()).clamp(min=0).sqrt()
        return {"count": count, "sum": total, "sum_square": square, "mean": mean, "std": std}

    def _lightning(self, folder: Path, callbacks: list, logger: Any = None) -> pl.Trainer:
        nodes = {
            key: _built(self.settings[key], self.allow)
            for key in ("callbacks", "logger", "profiler")
            if key in self.settings
        }
        settings = {k: v for k, v in self.settings.items() if k not in nodes}
        if logger is None:
            logger = nodes.get("logger", TensorBoardLogger(str(folder), name="tensorboard", version=""))
        plugins: list = [AtomicCheckpointIO()]
        execution = {
            k: v for k, v in self.execution.items() if k in ("accelerator", "devices", "num_nodes", "strategy")
        }
        if execution.get("num_nodes", 1) == 1 and execution.get("strategy", "auto") == "auto":
            # One process is one process, also inside a SLURM allocation with tasks of its own
            plugins.append(LightningEnvironment())
        if isinstance(execution.get("strategy"), Mapping):
            execution["strategy"] = instantiate(plain(execution["strategy"]), allow=self.allow)
        user = nodes.get("callbacks") or []
        defaults = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in user),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": str(folder),
        }
        settings = {**defaults, **execution, **settings}
        profiler = nodes.get("profiler")
        return pl.Trainer(
            max_epochs=self.max_epochs,
            callbacks=[*user, *callbacks],
            logger=logger,
            profiler=profiler,
            plugins=plugins,
            **settings,
        )


def _built(node: Any, allow: tuple[str, ...]) -> Any:
    """A ``_target_`` node, or a list of them, as objects; anything else as it is."""
    return instantiate(plain(node), allow=allow) if isinstance(node, (Mapping, list)) else node


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(type(value))


def _data_digest(dataset: Any) -> str:
    path = getattr(getattr(dataset, "source", None), "path", None)
    if path is not None and Path(path).is_file():
        return sha256_file(path)
    return digest([type(dataset).__name__, len(dataset), list(getattr(dataset, "ids", []))])


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on devices, workers and its other products; real errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    if not logging.getLogger().handlers and not logging.getLogger("espnet3").handlers:
        # In a notebook or a script nobody has set up logging, and a silent training helps nobody
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.getLogger("espnet3").addHandler(handler)
        logging.getLogger("espnet3").setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|lhotse)\..*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also write this package's messages to *path*."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("espnet3")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
