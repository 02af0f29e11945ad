"""An experiment's files: every path that the workflow, the report and ``why`` speak of is made here."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from espnet3.config.decoding import resolve_variants
from espnet3.config.slices import config_slice, slice_text, stage_code
from espnet3.errors import UserError

log = logging.getLogger(__name__)

# the targets `exp/<experiment>/<stage>`, in the order in which their files are made
TARGETS = ("manifests", "tokenizer", "stats", "train", "average", "lm", "decode", "score", "report", "pack")
LM_FILES = ("last.ckpt", "checkpoints.json", "lm.safetensors")
SCORE_FILES = ("metrics.json", "hyp.trn", "ref.trn", "alignment.txt")
PACK_FILES = ("model.safetensors", "config.json", "tokens.txt", "metrics.json", "README.md")


class Experiment:
    """Paths and slices of one experiment; relative to the folder that Snakemake runs in."""

    def __init__(self, name: str, config: dict[str, Any], retrain: bool = False):
        self.name = name
        self.config = config
        self.retrain = retrain
        self.root = f"exp/{name}"
        self.corpus = config["data"]["corpus"]
        self.train_manifest = self.manifest(config["data"]["train"])
        self.valid_manifest = self.manifest(config["data"]["valid"])
        self.test_sets: list[str] = config["data"]["test"]

    def manifest(self, split: str) -> str:
        return f"data/{self.corpus}/{split}.jsonl.gz"

    def recordings(self, split: str) -> str:
        """The file that says which recordings the split has: what its manifest depends on."""
        return f"data/{self.corpus}/conf/recordings.{split}.json"

    @property
    def splits(self) -> list[str]:
        """The splits that the experiment uses."""
        data = self.config["data"]
        return list(dict.fromkeys([data["train"], data["valid"], *self.test_sets]))

    @cached_property
    def decodings(self) -> dict[str, dict[str, Any]]:
        """``{name: settings}`` of each decoding."""
        return resolve_variants(self.config["decode"])

    @property
    def bpe(self) -> bool:
        return self.config["tokenizer"]["type"] == "bpe"

    @property
    def tokenizer_files(self) -> list[str]:
        return [f"{self.root}/tokenizer/{name}" for name in ["tokens.txt"] + ["bpe.model"] * self.bpe]

    @property
    def stats_shards(self) -> list[str]:
        n = self.config["stats"]["shards"]
        return [f"{self.root}/stats/shard-{i}-of-{n}.npz" for i in range(1, n + 1)]

    @property
    def initial_weights(self) -> list[str]:
        """The checkpoint that training begins from (``init``), which may be another experiment's."""
        init = self.config.get("init")
        path = init.get("path") if isinstance(init, dict) else init
        return [path] if path else []

    def weights(self, decoding: str) -> str:
        return f"{self.root}/average/{self.decodings[decoding]['average']}.safetensors"

    @property
    def targets(self) -> list[str]:
        """The stages that the experiment has."""
        return [target for target in TARGETS if target != "lm" or "lm" in self.config]

    @property
    def lm_files(self) -> list[str]:
        """What the training of the language model leaves; nothing where there is none."""
        return [f"{self.root}/lm/{name}" for name in LM_FILES] if "lm" in self.config else []

    def language_models(self, decoding: str) -> dict[str, str]:
        """``{"lm": weights, "ngram": ARPA file}``, those of them that a decoding reads."""
        settings = self.decodings[decoding]
        found = {"lm": f"{self.root}/lm/lm.safetensors"} if settings.get("lm_weight") else {}
        return found | ({"ngram": settings["ngram"]} if settings.get("ngram") else {})

    def shards(self, decoding: str, test_set: str) -> list[str]:
        n = self.decodings[decoding]["shards"]
        return [f"{self.root}/decode/{decoding}/{test_set}/shard-{i}-of-{n}.jsonl" for i in range(1, n + 1)]

    def hypotheses(self, decoding: str, test_set: str) -> str:
        return f"{self.root}/decode/{decoding}/{test_set}/hyp.jsonl"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every decoding of every test set."""
        return [(name, test_set) for name in self.decodings for test_set in self.test_sets]

    @property
    def metrics(self) -> list[str]:
        return [f"{self.root}/score/{name}/{test_set}/metrics.json" for name, test_set in self.pairs]

    def files(self, target: str) -> list[str]:
        """The files of stage *target* and every intermediate before them.

        A target that named its last files alone would forget a failed edit: the next run finds the old result, sees
        nothing missing, and does nothing.
        """
        conf = [f"{self.root}/conf/{stage}.json" for stage in ("tokenizer", "stats", "train", "average", "score")]
        own: dict[str, list[str]] = {
            "manifests": [f"data/{self.corpus}/conf/{s}.json" for s in ("corpus", "manifest")]
            + [f"data/{self.corpus}/corpus.jsonl"]
            + [path for split in self.splits for path in (self.recordings(split), self.manifest(split))],
            "tokenizer": [conf[0], *self.tokenizer_files],
            "stats": [conf[1], *self.stats_shards, f"{self.root}/stats/cmvn.npz"],
            "train": [conf[2], *(f"{self.root}/checkpoints/{name}" for name in ("last.ckpt", "checkpoints.json"))],
            "average": [conf[3], *dict.fromkeys(self.weights(name) for name in self.decodings)],
            "lm": [f"{self.root}/conf/lm.json"] * bool(self.lm_files) + self.lm_files,
            "decode": [f"{self.root}/conf/decode.{name}.json" for name in self.decodings]
            + [path for pair in self.pairs for path in [*self.shards(*pair), self.hypotheses(*pair)]],
            "score": [conf[4]] + [f"{self.root}/score/{d}/{t}/{f}" for d, t in self.pairs for f in SCORE_FILES],
            "report": [f"{self.root}/conf/report.json", f"{self.root}/report/index.html"],
            "pack": [f"{self.root}/conf/pack.json", *(f"{self.root}/pack/{name}" for name in PACK_FILES)],
        }
        # the report and the model package are leaves: neither needs the other
        upto = [t for t in TARGETS[: TARGETS.index(target) + 1] if t == target or t != "report"]
        return [path for t in upto for path in own[t]]

    def slice_files(self) -> list[tuple[str, str]]:
        """``(stage, path)`` of every slice file of this experiment, its corpus's among them."""
        decodings = [f"decode.{name}" for name in self.decodings]
        stages = ["tokenizer", "stats", "train", "average", *(["lm"] if self.lm_files else []), *decodings, "score"]
        own = [(stage, f"{self.root}/conf/{stage}.json") for stage in [*stages, "report", "pack"]]
        return [(stage, f"data/{self.corpus}/conf/{stage}.json") for stage in ("corpus", "manifest")] + own

    def slice_text(self, stage: str) -> str:
        """Content of ``conf/<stage>.json``.

        Training is expensive, so a change of its *code* alone is reported, not acted upon: while the configuration is
        the one in the slice file, that file's code digests stay, unless ``retrain`` asks for today's.
        """
        if stage == "train" and not self.retrain:
            kept = self._trained_with()
            if kept is not None:
                return slice_text(self.config, stage, code=kept)
        return slice_text(self.config, stage)

    def _trained_with(self) -> dict[str, str] | None:
        path = Path(self.root, "conf/train.json")
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = old.get("config") == json.loads(json.dumps(config_slice(self.config, "train")))
        return old.get("code") if same else None

    def changed_training_code(self) -> list[str]:
        """Modules of the training code that differ from those that the present model was trained with."""
        old = self._trained_with()
        if old is None:
            return []
        new = stage_code(self.config, "train")
        return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))

    def data_key(self) -> dict[str, Any]:
        """What the files under ``data/<corpus>`` depend on."""
        return {stage: config_slice(self.config, stage) for stage in ("corpus", "manifest")}


def check_corpora(experiments: list[Experiment]) -> None:
    """Refuse two experiments that would write the same corpus folder with different content.

    Raises:
        UserError: naming both experiments.
    """
    owners: dict[str, Experiment] = {}
    for experiment in experiments:
        owner = owners.setdefault(experiment.corpus, experiment)
        if owner.data_key() != experiment.data_key():
            raise UserError(
                f"experiments '{owner.name}' and '{experiment.name}' both write data/{experiment.corpus}, but their 'data:' "
                "sections differ; give one of them another data.corpus name"
            )
