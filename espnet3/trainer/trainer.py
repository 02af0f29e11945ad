"""``ESPnet3LightningTrainer``: Lightning's trainer with ESPnet's epochs, statistics and an uninterruptible state."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.io import digest, sha256_file, write_json
from espnet3.trainer import preflight
from espnet3.trainer.acceleration import compile_model, recompute
from espnet3.trainer.batches import epoch_sampler, make_loader, seed_all
from espnet3.trainer.callbacks import read_callbacks
from espnet3.trainer.distributed import deal, environment, processes, rank, strategy
from espnet3.trainer.dump import dump_batches
from espnet3.trainer.ema import EMA
from espnet3.trainer.finetune import freeze, init_digest, initialise
from espnet3.trainer.keeper import StateKeeper
from espnet3.trainer.lease import Lease
from espnet3.trainer.memory import MemoryProbe
from espnet3.trainer.model import LitESPnetModel, plain, split_batch
from espnet3.trainer.progress import TrainingLog
from espnet3.trainer.state import AtomicCheckpointIO, TrainingState, epochs_to_train
from espnet3.trainer.throughput import Meter

log = logging.getLogger(__name__)

_HOW = ("compile", "gradient_checkpointing", "memory_probe", "peak_tflops")
_OWN = ("patience", "checkpoint_seconds", "checkpoint_steps", "log_seconds", "max_nonfinite", *_HOW)
_WHAT = ("ema", "freeze")
BUDGET = ("max_epochs", *_OWN, "logger", "profiler", "log_every_n_steps", "enable_model_summary", "enable_progress_bar")
"""Keys of ``trainer:`` that say how long and how often, not what the training computes; in no identity."""
PATIENCE = 20.0
"""Seconds that a training waits for one on this host that has been told to stop, and is saving its state."""
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
            keys = ("optimizer", "scheduler", "optimizers", "schedulers", "allow")
            self.model.config = {k: self.config.get(k) for k in keys if k in self.config}
        self.settings = dict(self.config.get("trainer") or {})
        self.model.max_nonfinite = self.settings.get("max_nonfinite", self.model.max_nonfinite)
        self.max_epochs = self.settings.pop("max_epochs", 1)
        self.own = {key: self.settings.pop(key) for key in (*_OWN, *_WHAT) if key in self.settings}
        if self.own.get("freeze"):
            self.model.frozen = (
                [self.own["freeze"]] if isinstance(self.own["freeze"], str) else list(self.own["freeze"])
            )
            number = freeze(self.model.model, self.model.frozen)
            log.info("frozen: %s (%.2f M parameters)", ", ".join(self.model.frozen), number / 1e6)
        self.criteria = [list(c) for c in self.config.get("best_model_criterion") or _CRITERIA]
        self.seed = int(self.config.get("seed", 0))
        self.allow = tuple(self.config.get("allow") or ())
        self.execution = dict(self.config.get("execution") or {})
        self.expdir = Path(expdir)
        self._given = dict(datasets or {})
        self._datasets: dict[str, Any] = {}
        self._identity = identity
        self.callbacks, self.defaults = read_callbacks(self.settings.pop("callbacks", None), self.allow)
        self.extra_callbacks: list[pl.Callback] = []
        self.ema: EMA | None = None
        self.rank = 0

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
        if config.get("init"):
            config["init"] = init_digest(config["init"])
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
            UserError: another process trains here, the losses are not finite, or devices or disk do not suffice.
            SystemExit: a signal stopped it, state saved.
        """
        preflight.check_devices(self.execution)
        self.rank = rank(self.execution)
        if self.rank:
            return self._follow()
        state = TrainingState(self.expdir, self.identity())
        patience = self.own.get("patience")
        with quiet_lightning(), log_file(state.folder / "train.log"):
            with Lease(state.folder, patience=PATIENCE) as lease:
                state.lease = lease
                state.remove_leftovers()
                found = state.verified()
                start = (found[1]["epoch"], found[1]["batch"]) if found else (0, 0)
                state.rewind(start[0])
                budget = epochs_to_train(state.history(), self.max_epochs, patience, self.criteria)
                if start[0] >= budget:
                    log.info("%s: %d epochs are trained already", state.folder, start[0])
                else:
                    self._fit(state, found, start)
                if "state" not in self.defaults:
                    return {}
                budget = epochs_to_train(state.history(), self.max_epochs, patience, self.criteria)
                return state.publish(budget, self.criteria)

    def _follow(self) -> dict[str, Any]:
        """Train as one of several processes, the first of which decides, writes and publishes."""
        state = TrainingState(self.expdir, self.identity())
        with quiet_lightning(level=logging.WARNING):
            found = state.verified()
            start = (found[1]["epoch"], found[1]["batch"]) if found else (0, 0)
            if start[0] < epochs_to_train(state.history(), self.max_epochs, self.own.get("patience"), self.criteria):
                self._fit(state, found, start)
        return {}

    def _fit(self, state: TrainingState, found: tuple[Path, dict] | None, start: tuple[int, int]) -> None:
        seed_all(self.seed)
        train, valid = self.loader("train"), self.loader("valid")
        number = processes(self.execution)
        if number > 1:
            valid = deal(valid)
        if not found and self.config.get("init"):
            write_json(state.folder / "init.json", initialise(self.model.model, self.config["init"]))
        parameters = sum(p.numel() for p in self.model.parameters())
        threads = torch.get_num_threads()
        log.info("%s: %.2f M parameters, %d threads", state.folder, parameters / 1e6, threads)
        if number > 1:
            log.info("%d processes", number)
        if found:
            log.info("going on from epoch %d, batch %d (%s)", start[0] + 1, start[1], found[0].name)
        if not self.rank:
            node = self.model.config.get("optimizer")
            preflight.check_disk(state.folder, self.model, node, self.max_epochs, self.criteria, self.allow)
        self.model.on_skip = partial(self._keep_batches, state)
        self.model.train()
        self._accelerate()
        trainer = self._lightning(state.folder, self._callbacks(state, train, start))
        trainer.fit(
            self.model, train, valid, ckpt_path=found[0] if found else None, weights_only=True if found else None
        )
        if self.ema is not None:
            self.ema.copy_to(self.model.model)

    def _callbacks(self, state: TrainingState, train: Any, start: tuple[int, int]) -> list[pl.Callback]:
        self.ema = EMA(**_arguments(self.own["ema"], "decay")) if self.own.get("ema") else None
        if self.ema is not None:
            self.model.published_state = lambda: self.ema.average
        rate = (self.config.get("data") or {}).get("sampling_rate")
        budget = (self.max_epochs, self.own.get("patience"))
        seconds = self.own.get("log_seconds", 10.0) if "log" in self.defaults else math.inf
        callbacks: list[pl.Callback] = [*self.extra_callbacks, *([self.ema] if self.ema else [])]
        if self.own.get("memory_probe"):
            callbacks.append(MemoryProbe(self.dataset("train"), rate or 16000))
        if "state" in self.defaults:
            # The keeper comes last, so that what it saves holds what the others did
            meter = Meter(self.dataset("train"), self.own.get("peak_tflops"))
            callbacks += [
                TrainingLog(state, budget, self.criteria, rate, seconds, meter),
                StateKeeper(
                    state,
                    epoch_sampler(train),
                    self.seed,
                    start,
                    seconds=self.own.get("checkpoint_seconds", 120.0),
                    steps=self.own.get("checkpoint_steps"),
                ),
            ]
        return callbacks

    def _accelerate(self) -> None:
        """The keys ``gradient_checkpointing`` and ``compile``."""
        model = self.model.model
        if self.own.get("gradient_checkpointing"):
            log.info("gradient checkpointing: %d blocks", recompute(model, self.own["gradient_checkpointing"]))
        if self.own.get("compile"):
            device = "cuda" if torch.cuda.is_available() and self.execution.get("accelerator") != "cpu" else "cpu"
            names = compile_model(model, self.own["compile"], device)
            log.info("torch.compile: %s; the first steps wait for the compiler", ", ".join(n or "model" for n in names))

    def _keep_batches(self, state: TrainingState, batches: list) -> None:
        trainer = self.model.trainer
        place = (trainer.global_step, trainer.current_epoch)
        path = dump_batches(
            state.folder / "skipped", *place, batches, next(iter(state.records()), None), trainer.global_rank
        )
        if path:
            log.info("the batch is in %s", path)

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
        nodes = {key: _built(self.settings[key], self.allow) for key in ("logger", "profiler") if key in self.settings}
        settings = {k: v for k, v in self.settings.items() if k not in nodes}
        if logger is None:
            logger = nodes.get("logger", TensorBoardLogger(str(folder), name="tensorboard", version=""))
        plugins: list = [AtomicCheckpointIO()]
        execution = {
            k: v for k, v in self.execution.items() if k in ("accelerator", "devices", "num_nodes", "strategy")
        }
        if (cluster := environment(execution)) is not None:
            plugins.append(cluster)
        if isinstance(execution.get("strategy"), Mapping):
            execution["strategy"] = instantiate(plain(execution["strategy"]), allow=self.allow)
        execution["strategy"] = strategy(execution)
        user = self.callbacks
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


def _arguments(value: Any, name: str) -> dict[str, Any]:
    """A key's mapping; ``true`` is its defaults, a number its argument *name*."""
    return dict(value) if isinstance(value, Mapping) else {} if value is True else {name: value}


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
    # a stream has neither a length nor a list of its ids
    length = len(dataset) if hasattr(dataset, "__len__") else None
    return digest([type(dataset).__name__, length, list(getattr(dataset, "ids", []))])


@contextlib.contextmanager
def quiet_lightning(level: int | None = None) -> Iterator[None]:
    """Silence Lightning's notes on devices, workers and its other products; real errors are raised anyway.

    Args:
        level: of this package's messages; None leaves it as it is.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    own = logging.getLogger("espnet3")
    before = own.level
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
        if level is not None:
            own.setLevel(level)
        try:
            yield
        finally:
            own.setLevel(before if level is not None else own.level)
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
