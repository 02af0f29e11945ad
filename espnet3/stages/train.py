"""Training: from manifests, tokens and statistics to ``last.ckpt`` and ``checkpoints.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def run(
    conf: dict[str, Any],
    train: str | os.PathLike,
    valid: str | os.PathLike,
    tokens: str | os.PathLike,
    cmvn: str | os.PathLike,
    output_dir: str | os.PathLike,
    execution: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, or go on training, to the budget of ``conf["trainer"]``.

    Args:
        conf: ``seed, data.sampling_rate, tokenizer, model, optimizer, scheduler, dataloader, trainer, best_model_criterion``.
        train, valid: manifests. tokens: the tokenizer's folder. cmvn: the stats stage's ``cmvn.npz``.
        output_dir: gets ``last.ckpt`` and ``checkpoints.json``; ``state-<hash8>`` in it keeps what a later run goes on from.
        execution: ``num_workers, accelerator, devices, num_nodes, strategy``.

    Returns:
        The index of the kept checkpoints.

    Raises:
        UserError: the data does not fit the model, or another process trains here. SystemExit: stopped by a signal.
    """
    from espnet3.config.instantiate import instantiate
    from espnet3.data.dataset import ESPnet3Dataset
    from espnet3.io import sha256_file
    from espnet3.models.espnet2 import check_tokens
    from espnet3.text.tokenizer import Tokenizer
    from espnet3.trainer.batches import seed_all
    from espnet3.trainer.distributed import rank
    from espnet3.trainer.finetune import init_digest
    from espnet3.trainer.model import LitESPnetModel
    from espnet3.trainer.preflight import check
    from espnet3.trainer.state import TrainingState
    from espnet3.trainer.trainer import BUDGET, ESPnet3LightningTrainer

    conf = dict(conf)
    tokenizer = Tokenizer.load(tokens, conf["tokenizer"]["type"])
    datasets = {part: ESPnet3Dataset(path, tokenizer=tokenizer) for part, path in (("train", train), ("valid", valid))}
    settings = {k: v for k, v in conf["trainer"].items() if k not in BUDGET}
    token_files = sorted(p for p in Path(tokens).iterdir() if p.name in ("tokens.txt", "bpe.model"))
    what = {k: conf.get(k) for k in ("seed", "tokenizer", "model", "optimizer", "scheduler", "dataloader")}
    what |= {k: conf[k] for k in ("optimizers", "schedulers") if conf.get(k)}
    if conf.get("init"):
        what["init"] = init_digest(conf["init"])
    folder = Path(str(conf["model"].get("model") or ""))
    if conf["model"].get("model") and folder.is_dir():
        what["pretrained"] = {
            p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin")
        }
    identity = {
        "config": what,
        "trainer": settings,
        "files": {p.name: sha256_file(p) for p in [*token_files, Path(cmvn)]},
        "data": {"train": sha256_file(train), "valid": sha256_file(valid)},
    }
    seed = int(conf.get("seed", 0))
    seed_all(seed, 2)
    allow = tuple(conf.get("allow") or ())
    model = instantiate(conf["model"], allow=allow, vocab_size=len(tokenizer), cmvn=str(cmvn))
    check_tokens(model, tokenizer.tokens)
    if hasattr(model, "load_pretrained"):
        model.load_pretrained()
    if rank(execution or {}) == 0:
        report = TrainingState(output_dir, identity).folder / "preflight.json"
        check(datasets["train"], tokenizer, model, conf["data"]["sampling_rate"], report, str(train))
    lit = LitESPnetModel(model, conf)
    config = {**conf, "execution": execution or {}}
    return ESPnet3LightningTrainer(lit, config, output_dir, datasets=datasets, identity=identity).fit()
