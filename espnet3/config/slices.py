"""Which keys of an experiment's configuration each stage reads: its slice.

A job reads its slice file and nothing else of the configuration, so an edit of any other key cannot touch it. Sections
``parallel`` and ``execution`` say how a job runs, not what it computes: they are in no slice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from espnet3.config.decoding import resolve_variants
from espnet3.config.fingerprint import code_digests
from espnet3.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Stage:
    """The dotted keys that a stage reads, and the module whose import closure is its code.

    ``runs_targets`` says whether what the ``_target_`` of those keys name is run, too, or only written down.
    """

    keys: tuple[str, ...]
    module: str
    runs_targets: bool = True


STAGES = {
    "corpus": Stage(("allow", "data.corpus", "data.builder", "data.sampling_rate"), "espnet3.stages.corpus"),
    "manifest": Stage(
        ("data.corpus", "data.sampling_rate", "data.min_duration", "data.max_duration", "data.max_rejected"),
        "espnet3.stages.manifest",
    ),
    "tokenizer": Stage(("tokenizer",), "espnet3.stages.tokenizer"),
    "stats": Stage(("data.sampling_rate", "model.frontend"), "espnet3.stages.stats"),
    "train": Stage(
        (
            "seed",
            "allow",
            "data.sampling_rate",
            "tokenizer",
            "model",
            "init",
            "optimizer",
            "scheduler",
            "optimizers",
            "schedulers",
            "dataloader",
            "trainer",
            "best_model_criterion",
        ),
        "espnet3.stages.train",
    ),
    "average": Stage((), "espnet3.stages.average"),
    "lm": Stage(("seed", "allow", "tokenizer", "lm"), "espnet3.stages.lm"),
    "decode": Stage(("allow", "data.sampling_rate", "tokenizer", "model"), "espnet3.stages.decode"),
    "score": Stage(("score", "tokenizer"), "espnet3.stages.score"),
    "report": Stage(
        ("data", "tokenizer", "model", "optimizer", "scheduler", "dataloader", "trainer", "decode", "seed"),
        "espnet3.stages.report",
        runs_targets=False,
    ),
    "pack": Stage(("data.sampling_rate", "tokenizer", "model", "decode"), "espnet3.stages.pack", runs_targets=False),
}


def config_slice(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """The part of *config* that *stage* reads; ``decode.<name>`` is the decoding of that name.

    Raises:
        UserError: no such stage, or no such decoding.
    """
    base, _, variant = stage.partition(".")
    if base not in STAGES or bool(variant) != (base == "decode"):
        raise UserError(f"no stage '{stage}'{did_you_mean(base, STAGES)}")
    chosen: dict[str, Any] = {}
    for key in STAGES[base].keys:
        source, target = config, chosen
        *parents, last = key.split(".")
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        # a model of another kind (an ESPnet2 task, say) may have no such part
        if last in source:
            target[last] = source[last]
    if base == "corpus":
        # where a checksummed archive is taken from does not change what is in it: a job gets `source` on its command line
        builder = chosen["data"]["builder"]
        chosen["data"]["builder"] = {k: v for k, v in builder.items() if k != "source"}
    if variant:
        variants = resolve_variants(config["decode"])
        if variant not in variants:
            raise UserError(f"no decoding '{variant}'{did_you_mean(variant, variants)}")
        # the number of shards stands in their names; the decoding's weights are an input
        chosen["decode"] = {k: v for k, v in variants[variant].items() if k != "shards"}
        if variants[variant].get("lm_weight"):
            chosen["lm"] = {"model": config["lm"]["model"]}
    if base == "pack" and any(v.get("lm_weight") for v in resolve_variants(config["decode"]).values()):
        chosen["lm"] = {"model": config["lm"]["model"]}
    return chosen


def slice_text(config: dict[str, Any], stage: str, code: dict[str, str] | None = None) -> str:
    """The slice file's content: sorted JSON of the slice and of the digests of the code that the stage runs.

    Args:
        code: digests to write in place of today's (a training keeps those it began with).
    """
    chosen = config_slice(config, stage)
    if code is None:
        code = stage_code(config, stage)
    return json.dumps(
        {"stage": stage, "config": chosen, "code": code}, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False
    )


def stage_code(config: dict[str, Any], stage: str) -> dict[str, str]:
    """``{module: digest}`` of the code that *stage* runs under this configuration."""
    known = STAGES[stage.partition(".")[0]]
    return code_digests([known.module], config_slice(config, stage) if known.runs_targets else None)
