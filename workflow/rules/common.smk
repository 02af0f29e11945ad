# What the rules share: the experiments, their slices, and input functions. No lambdas in rules, no paths made elsewhere.
import json
import logging
import os
import sys
from base64 import urlsafe_b64encode
from functools import lru_cache, partial
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import ExecMode

from espnet3.config.alive import enter_run
from espnet3.config.compose import experiment_names, load_configs
from espnet3.config.experiment import Experiment, check_corpora
from espnet3.data.corpora.recordings import Recordings
from espnet3.errors import UserError

enter_run(main=workflow.exec_mode == ExecMode.DEFAULT)

# jobs use this very Python, also where the environment is not activated; a prefix of one's own replaces Snakemake's strict mode,
# without which a job that fails before `| tee` counts as done
shell.prefix(
    f"set -euo pipefail; export PATH={os.path.dirname(sys.executable)}:$PATH; "
)

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


# The user's lists and audio are no inputs of a rule: of a list, all splits would depend, and of a replaced wav none. They are
# compared here, with what they were when the corpus was built; then only the splits whose recordings differ follow.
@lru_cache(maxsize=None)
def recordings(corpus):
    e = CORPORA[corpus]
    path = f"data/{corpus}/corpus.jsonl"
    written = Path(f"data/{corpus}/conf/corpus.json")
    found = Recordings(path, e.config["data"]["builder"], e.config["allow"])
    if workflow.exec_mode == ExecMode.DEFAULT and written.exists():
        text = written.read_text(encoding="utf-8")
        try:
            found.compare(configured=text == f"{slice_text(e.name, 'corpus')}\n")
        except UserError as error:
            raise WorkflowError(str(error)) from None
        for change in found.changes:
            print(f"espnet3: data/{corpus}: {change}", file=sys.stderr)
        if found.stale:
            workflow.dag.forcefiles.add(path)
    return found


# a corpus that is made again touches the splits whose recordings differ, or are not known before it has run
def corpus_listing(wildcards):
    corpus, split = wildcards.corpus, wildcards.split
    path = f"data/{corpus}/corpus.jsonl"
    written = Path(f"data/{corpus}/conf/recordings.{split}.json")
    if not recordings(corpus).known or not written.exists():
        return path
    same = written.read_text(encoding="utf-8") == f"{recordings_text(corpus, split)}\n"
    return ancient(path) if same else path


def split_recordings(wildcards):
    return recordings_text(wildcards.corpus, wildcards.split)


def recordings_text(corpus, split):
    return json.dumps(
        {
            "stage": f"recordings.{split}",
            "config": {"recordings": recordings(corpus).of(split)},
            "code": {},
        },
        sort_keys=True,
        indent=1,
    )


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


def initial_weights(wildcards):
    return experiment(wildcards).initial_weights


def decoding_weights(wildcards):
    return experiment(wildcards).weights(wildcards.decoding)


def decoding_language_models(wildcards):
    return list(experiment(wildcards).language_models(wildcards.decoding).values())


def packed_language_models(wildcards):
    e = experiment(wildcards)
    return list(
        dict.fromkeys(
            path for name in e.decodings for path in e.language_models(name).values()
        )
    )


# the experiment's language model, as an option: most decodings have none
def lm_option(wildcards, input):
    e = experiment(wildcards)
    decodings = [wildcards.decoding] if "decoding" in wildcards.keys() else e.decodings
    found = next(
        (
            e.language_models(name)["lm"]
            for name in decodings
            if "lm" in e.language_models(name)
        ),
        None,
    )
    return f"--lm {found}" if found else ""


def lm_text(wildcards):
    return experiment(wildcards).config["lm"]["text"] or []


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
    e = EXPERIMENTS[name]
    texts = {path: slice_text(name, stage) for stage, path in e.slice_files()}
    for split in e.splits:
        texts[e.recordings(split)] = recordings_text(e.corpus, split)
    stale = []
    for path, text in texts.items():
        record = urlsafe_b64encode(path.encode()).decode()
        if Path(".snakemake/metadata", record).exists() or not Path(path).exists():
            continue
        if Path(path).read_text(encoding="utf-8") != f"{text}\n":
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


@lru_cache(maxsize=None)
def await_jobs_of_killed_runs():
    if workflow.dryrun or not any(Path(".snakemake/slurm-runs").glob("*")):
        return
    from snakemake_executor_plugin_slurm_espnet3 import runs

    try:
        runs.await_jobs_of_killed_runs(partial(print, "espnet3:", file=sys.stderr))
    except RuntimeError as error:
        raise WorkflowError(str(error)) from None


def target_files(name, targets):
    def files(wildcards):
        if workflow.exec_mode == ExecMode.DEFAULT:
            await_jobs_of_killed_runs()
            force_stale_slices(name)
            report_changed_training_code(name)
        return list(
            dict.fromkeys(
                path for target in targets for path in EXPERIMENTS[name].files(target)
            )
        )

    return files
