"""``python -m espnet3 <command>``: one thin function a stage; argument parsing and nothing else.

Heavy imports (torch, Lightning, Lhotse) happen inside the stages, so that ``--help`` and small jobs take milliseconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet3.config.alive import end_with_run
from espnet3.errors import UserError
from espnet3.io import FULL_DISK, read_json

# commands that parse their own arguments: `module:function`
FORWARDED = {
    "shards": ("espnet3.parallel.cli", "detached shard jobs: status, collect, resubmit, cancel"),
    "transcribe": ("espnet3.inference.transcribe", "transcribe audio files with a packed model"),
    "new": ("espnet3.data.new", "look at a corpus and write an experiment for it"),
    "convert": ("espnet3.data.convert", "write a corpus in another format"),
    "why": ("espnet3.config.why", "what a target would make again, and why"),
    "table": ("espnet3.report.table", "print the WER table of metrics.json files"),
    "compare": ("espnet3.report.compare", "whether two decodings differ: intervals and matched pairs"),
    "import-espnet2": ("espnet3.stages.espnet2", "make a packed model of one that ESPnet2 trained"),
}


def _conf(path: str) -> dict[str, Any]:
    """The configuration slice in a slice file."""
    content = read_json(path)
    if not isinstance(content, dict) or "config" not in content:
        raise UserError(f"{path}: not a slice file (a JSON object with the key 'config')")
    return content["config"]


def corpus(a: argparse.Namespace) -> None:
    from espnet3.stages import corpus as stage

    conf = _conf(a.conf)
    if a.execution.get("source"):
        conf["data"]["builder"]["source"] = a.execution["source"]
    stage.run(conf, a.output, a.execution.get("parallel", {}))


def manifest(a: argparse.Namespace) -> None:
    from espnet3.stages import manifest as stage

    stage.run(_conf(a.conf), a.corpus, a.split, a.output, a.rejected, a.execution.get("parallel", {}))


def tokenizer(a: argparse.Namespace) -> None:
    from espnet3.stages import tokenizer as stage

    stage.run(_conf(a.conf), a.manifest, a.output_dir)


def stats(a: argparse.Namespace) -> None:
    from espnet3.stages import stats as stage

    stage.run_shard(_conf(a.conf), a.manifest, a.shard, a.of, a.output, a.execution.get("execution", {}))


def stats_merge(a: argparse.Namespace) -> None:
    from espnet3.stages import stats as stage

    stage.merge(a.shards, a.output)


def train(a: argparse.Namespace) -> None:
    from espnet3.stages import train as stage
    from espnet3.trainer.launch import on_all_nodes, this_command

    execution = a.execution.get("execution", {})
    status = on_all_nodes(execution, this_command())
    if status is not None:
        sys.exit(status)
    stage.run(_conf(a.conf), a.train, a.valid, a.tokens, a.cmvn, a.output_dir, execution)


def average(a: argparse.Namespace) -> None:
    from espnet3.stages import average as stage

    stage.run(a.index, a.monitor, a.k, a.output, a.epochs)


def lm(a: argparse.Namespace) -> None:
    from espnet3.stages import lm as stage

    stage.run(_conf(a.conf), a.train, a.valid, a.tokens, a.output_dir, a.execution.get("execution", {}))


def decode(a: argparse.Namespace) -> None:
    from espnet3.stages import decode as stage

    execution = a.execution.get("execution", {})
    stage.run_shard(_conf(a.conf), a.manifest, a.weights, a.tokens, a.shard, a.of, a.output, execution, a.encoded, a.lm)


def decode_merge(a: argparse.Namespace) -> None:
    from espnet3.stages import decode as stage

    stage.merge(a.manifest, a.shards, a.output)


def score(a: argparse.Namespace) -> None:
    from espnet3.stages import score as stage

    stage.run(_conf(a.conf), a.manifest, a.hypotheses, a.output_dir, a.tokens)


def report(a: argparse.Namespace) -> None:
    from espnet3.stages import report as stage

    stage.run(a.experiment, a.metrics, a.index, a.output, conf=_conf(a.conf), benchmarks=a.benchmarks)


def pack(a: argparse.Namespace) -> None:
    from espnet3.stages import pack as stage

    stage.run(_conf(a.conf), a.weights, a.tokens, a.metrics, a.output_dir, a.experiment, a.train, a.lm)


def check(a: argparse.Namespace) -> None:
    from espnet3.config.compose import experiment_names, load_configs

    names = a.experiments or experiment_names()
    for name, config in load_configs(names, a.overrides).items():
        if a.show:
            print(json.dumps(config, indent=1, sort_keys=True))
        else:
            print(
                f"{name}: ok ({len(config['data']['test'])} test sets, {len(config['decode']['variants'])} decodings)"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet3", description="espnet3's stages. Snakemake calls them; each also runs by hand."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(function: Callable, help: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__.replace("_", "-"), help=help, description=help)
        sub.set_defaults(function=function)
        for name in options:
            sub.add_argument(f"--{name}", required=True, **OPTIONS[name])
        return sub

    def execution(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--execution",
            type=json.loads,
            default={},
            metavar="JSON",
            help='how to run: {"parallel": {"env": …, "n_workers": …}, "execution": {"accelerator": …}}',
        )

    execution(command(corpus, "fetch or render a corpus: corpus.jsonl and its audio", "conf", "output"))
    sub = command(manifest, "validate one split: a Lhotse CutSet and the rejected", "conf", "corpus", "split", "output")
    sub.add_argument("--rejected", required=True, help="where to list what the manifest leaves out")
    execution(sub)
    command(tokenizer, "make the token list (and the BPE model)", "conf", "manifest", "output-dir")
    execution(command(stats, "feature statistics of one shard", "conf", "manifest", "shard", "of", "output"))
    command(stats_merge, "merge shard statistics into CMVN", "output").add_argument("shards", nargs="+")
    sub = command(train, "train, or go on training", "conf", "train", "valid", "tokens", "cmvn", "output-dir")
    execution(sub)
    sub = command(average, "average the K best checkpoints, or a range of epochs", "index", "output")
    sub.add_argument("--monitor", default=None, help="such as valid.loss, or last")
    sub.add_argument("--k", type=int, default=None, help="how many checkpoints")
    sub.add_argument("--epochs", default=None, metavar="FIRST-LAST", help="in place of both, such as 3-8")
    execution(command(lm, "train the language model", "conf", "train", "valid", "tokens", "output-dir"))
    sub = command(decode, "decode one shard", "conf", "manifest", "weights", "tokens", "shard", "of", "output")
    sub.add_argument("--encoded", default=None, help="folder where decodings of one model share its encoder output")
    sub.add_argument("--lm", default=None, help="the language model's weights, for decode.lm_weight (.safetensors)")
    execution(sub)
    command(decode_merge, "merge shards in the manifest's order", "manifest", "output").add_argument(
        "shards", nargs="+"
    )
    sub = command(score, "WER, CER, alignments", "conf", "manifest", "hypotheses", "output-dir")
    sub.add_argument("--tokens", default=None, help="the tokenizer's folder, for the token error rate")
    sub = command(report, "one self-contained HTML page", "conf", "experiment", "index", "output")
    sub.add_argument("--benchmarks", default=None, help="folder of Snakemake's benchmark tables")
    sub.add_argument("metrics", nargs="+")
    sub = command(pack, "a model folder for from_pretrained", "conf", "experiment", "weights", "tokens", "output-dir")
    sub.add_argument("--train", default=None, help="training manifest: how long the model's utterances were")
    sub.add_argument("--lm", default=None, help="the language model's weights, where a decoding has an lm_weight")
    sub.add_argument("metrics", nargs="+")
    sub = command(check, "check experiments' configuration")
    sub.add_argument("experiments", nargs="*", help="default: all")
    sub.add_argument("--overrides", default="", help='such as "decode.beam=4"')
    sub.add_argument("--show", action="store_true", help="print the resolved configuration")
    for name, (_, help) in FORWARDED.items():
        commands.add_parser(name, help=help, add_help=False)
    return parser


OPTIONS: dict[str, dict[str, Any]] = {
    "conf": {"help": "the stage's slice file (exp/<experiment>/conf/<stage>.json)"},
    "output": {"help": "file to write"},
    "output-dir": {"help": "folder to write"},
    "corpus": {"help": "corpus.jsonl"},
    "split": {"help": "name of the split"},
    "manifest": {"help": "a split's manifest (.jsonl.gz)"},
    "shard": {"type": int, "help": "number of the shard, from 1"},
    "of": {"type": int, "help": "number of shards"},
    "train": {"help": "training manifest"},
    "valid": {"help": "validation manifest"},
    "tokens": {"help": "the tokenizer's folder"},
    "cmvn": {"help": "cmvn.npz"},
    "index": {"help": "checkpoints.json"},
    "weights": {"help": "averaged model (.safetensors)"},
    "hypotheses": {"help": "hyp.jsonl"},
    "experiment": {"help": "the experiment's name"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status: 0, 2 for an error that the user can mend, 1 for any other."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # OpenMP threads that wait for one another by spinning take the core that the other one needs: beside one busy process
    # a training step on two cores took nine times as long; after this short spin they sleep (0.2 s -> 1.9 s, 0.5 s with it)
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(
        level=os.environ.get("ESPNET3_LOG", "INFO").upper(),
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    end_with_run()
    try:
        if argv and argv[0] in FORWARDED:
            return int(importlib.import_module(FORWARDED[argv[0]][0]).main(argv[1:]) or 0)
        arguments = _parser().parse_args(argv)
        arguments.function(arguments)
    except UserError as error:
        print(f"espnet3: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("espnet3"):
            raise
        print(f"espnet3: there is no package '{error.name}' here; activate .venv, or run make install", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        print(f"espnet3: {error.filename}: {error.strerror}; free some space, then run again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # jobs run from the repository root, where a user's own packages may lie
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main())
