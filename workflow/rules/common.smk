# What the rules share: the experiments, their slices, and input functions. No lambdas in rules, no paths made elsewhere.
import json
import logging
import os
import sys
from base64 import urlsafe_b64encode
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import ExecMode

from espnet3.config.compose import experiment_names, load_configs
from espnet3.config.experiment import Experiment, check_corpora
from espnet3.errors import UserError

# jobs use this very Python, also where the environment is not activated
shell.prefix(f"export PATH={os.path.dirname(sys.executable)}:$PATH; ")

try:
    EXPERIMENTS = {
        name: Experiment(
            name, cfg, retrain=str(config.get("retrain", "")).lower() == "true"
        )
        for name, cfg in load_configs(
            experiment_names(), str(config.get("overrides", ""))
        ).items()
    }
    check_corpora(list(EXPERIMENTS.values()))
except UserError as error:
    raise WorkflowError(str(error)) from None

CORPORA = {experiment.corpus: experiment for experiment in EXPERIMENTS.values()}
BPE = "|".join(name for name, e in EXPERIMENTS.items() if e.bpe) or "(?!)"
NOT_BPE = "|".join(name for name, e in EXPERIMENTS.items() if not e.bpe) or "(?!)"


wildcard_constraints:
    exp="|".join(EXPERIMENTS),
    corpus="|".join(CORPORA),
    split=r"[^/]+",
    stage=r"[\w.-]+",
    decoding=r"[^/]+",
    monitor=r"[\w.]+",
    k=r"\d+",
    i=r"\d+",
    n=r"\d+",


def experiment(wildcards):
    return EXPERIMENTS[wildcards.exp]


@lru_cache(maxsize=None)
def slice_text(name, stage):
    try:
        return EXPERIMENTS[name].slice_text(stage)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def experiment_slice(wildcards):
    return slice_text(wildcards.exp, wildcards.stage)


def corpus_slice(wildcards):
    return slice_text(CORPORA[wildcards.corpus].name, wildcards.stage)


# Snakemake does not compare a parameter whose function takes `input`: how a job runs may change without a rerun
def execution(wildcards, input):
    if hasattr(wildcards, "exp"):
        settings = EXPERIMENTS[wildcards.exp].config
    else:
        settings = CORPORA[wildcards.corpus].config
    source = settings["data"]["builder"].get("source")
    return json.dumps(
        {**{k: settings[k] for k in ("parallel", "execution")}, "source": source}
    )


def corpus_files(wildcards):
    return CORPORA[wildcards.corpus].corpus_files()


def train_manifest(wildcards):
    return experiment(wildcards).train_manifest


def valid_manifest(wildcards):
    return experiment(wildcards).valid_manifest


def test_manifest(wildcards):
    return experiment(wildcards).manifest(wildcards.split)


def tokenizer_files(wildcards):
    return experiment(wildcards).tokenizer_files


def stats_shards(wildcards):
    return experiment(wildcards).stats_shards


def decoding_weights(wildcards):
    return experiment(wildcards).weights(wildcards.decoding)


def decoding_shards(wildcards):
    return experiment(wildcards).shards(wildcards.decoding, wildcards.split)


def all_metrics(wildcards):
    return experiment(wildcards).metrics


def packed_weights(wildcards):
    return experiment(wildcards).weights(next(iter(experiment(wildcards).decodings)))


# Where Snakemake's records are lost (a copied or cleaned tree), it no longer compares parameters: a slice that differs from
# today's would pass for fresh. Then the slices are compared here, and the stale ones are made again.
@lru_cache(maxsize=None)
def force_stale_slices(name):
    stale = []
    for stage, path in EXPERIMENTS[name].slice_files():
        record = urlsafe_b64encode(path.encode()).decode()
        if Path(".snakemake/metadata", record).exists() or not Path(path).exists():
            continue
        if Path(path).read_text(encoding="utf-8") != slice_text(name, stage) + "\n":
            stale.append(path)
    if stale:
        print(
            f"espnet3: Snakemake's records are lost, and differ from the configuration: {', '.join(stale)}",
            file=sys.stderr,
        )
        workflow.dag.forcefiles.update(stale)


@lru_cache(maxsize=None)
def report_changed_training_code(name):
    e = EXPERIMENTS[name]
    changed = e.changed_training_code()
    if changed and Path(e.root, "checkpoints/checkpoints.json").exists():
        print(
            f"espnet3: the training code of exp/{name} has changed since its model was trained ({', '.join(changed)}); "
            "the model is kept; to train again: --config retrain=true",
            file=sys.stderr,
        )


def target_files(name, targets):
    def files(wildcards):
        if workflow.exec_mode == ExecMode.DEFAULT:
            force_stale_slices(name)
            report_changed_training_code(name)
        return list(
            dict.fromkeys(
                path for target in targets for path in EXPERIMENTS[name].files(target)
            )
        )

    return files
