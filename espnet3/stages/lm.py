"""The language model: a Transformer over the recogniser's labels, trained on transcripts and text."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CRITERION = "valid.loss"


def run(
    conf: dict[str, Any],
    train: str | os.PathLike,
    valid: str | os.PathLike,
    tokens: str | os.PathLike,
    output_dir: str | os.PathLike,
    execution: dict[str, Any] | None = None,
) -> None:
    """Train, or go on training, to ``lm.trainer``'s budget, and average the best epochs.

    Args:
        conf: ``seed``, ``tokenizer`` and ``lm``.
        train, valid: manifests, whose transcripts are the text, with the lines of ``lm.text`` beside the former.
        tokens: the tokenizer's folder.
        output_dir: gets what a training leaves (see :mod:`espnet3.stages.train`) and ``lm.safetensors``.
        execution: ``num_workers, accelerator, devices, num_nodes, strategy``.

    Raises:
        UserError: there is no text, or another process trains here. SystemExit: stopped by a signal.
    """
    from espnet3.config.instantiate import instantiate
    from espnet3.io import sha256_file
    from espnet3.stages import average
    from espnet3.text.sentences import SentenceDataset, lines, transcripts
    from espnet3.text.tokenizer import Tokenizer
    from espnet3.trainer.batches import seed_all
    from espnet3.trainer.model import LitESPnetModel
    from espnet3.trainer.trainer import BUDGET, ESPnet3LightningTrainer

    section = conf["lm"]
    tokenizer = Tokenizer.load(tokens, conf["tokenizer"]["type"])
    texts = transcripts(train) if section["transcripts"] else []
    if section.get("text"):
        texts += lines(section["text"])
    datasets = {
        "train": SentenceDataset(texts, tokenizer, "train"),
        "valid": SentenceDataset(transcripts(valid), tokenizer, "valid"),
    }
    log.info("language model: %d sentences, %d to validate", len(datasets["train"]), len(datasets["valid"]))
    files = [
        *sorted(p for p in Path(tokens).iterdir() if p.name in ("tokens.txt", "bpe.model")),
        Path(train),
        Path(valid),
    ]
    files += [Path(section["text"])] if section.get("text") else []
    seed, allow = int(conf.get("seed", 0)), tuple(conf.get("allow") or ())
    settings = {k: v for k, v in section["trainer"].items() if k not in BUDGET}
    what = {k: section.get(k) for k in ("model", "optimizer", "scheduler", "batch_size", "transcripts")}
    identity = {
        "config": {"seed": seed, "tokenizer": conf["tokenizer"], **what},
        "trainer": settings,
        "files": {path.name: sha256_file(path) for path in files},
    }
    seed_all(seed, 2)
    model = instantiate(section["model"], allow=allow, vocab_size=len(tokenizer))
    loader = {"batch_size": section["batch_size"]}
    config = {
        "seed": seed,
        "allow": list(allow),
        "optimizer": section["optimizer"],
        "scheduler": section.get("scheduler"),
        "trainer": section["trainer"],
        "dataloader": {"train": loader, "valid": loader},
        "best_model_criterion": [["valid/loss", section["average"], "min"]],
        "execution": execution or {},
    }
    lit = LitESPnetModel(model, config)
    index = ESPnet3LightningTrainer(lit, config, output_dir, datasets=datasets, identity=identity).fit()
    if index:
        average.run(
            Path(output_dir) / "checkpoints.json", CRITERION, section["average"], Path(output_dir) / "lm.safetensors"
        )
