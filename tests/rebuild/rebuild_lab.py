"""A tiny experiment on a corpus of the user's own, and how the tests run it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from product import DEFAULTS, Project

from espnet3.io import read_jsonl, sha256_file

CONFIG = (
    DEFAULTS.replace("data: commands", "data: own")
    + """\
seed: 0
data:
  test: [test, other]
model:
  frontend: {n_mels: 20}
  encoder: {blocks: 1, output_size: 16, hidden: 32, heads: 2, kernel: 5, subsampling_channels: 4}
  decoder: {blocks: 1, size: 16, hidden: 32, heads: 2}
optimizer: {lr: 0.002}
dataloader: {train: {sampler: {max_duration: 25.0}}}
trainer: {max_epochs: 2}
stats: {shards: 1}
decode: {beam: 2, shards: 1, average: valid.loss.ave_2best, ctc_weight: 0.3, batch_seconds: 60.0}
score: {normalize: none}
execution: {accelerator: cpu, num_workers: 0}
"""
)
DATA = """\
corpus: own
builder:
  _target_: espnet3.data.corpora.jsonl.JsonlCorpus
  path: own/corpus.jsonl
train: train
valid: valid
test: [test, other]
sampling_rate: 8000
min_duration: 0.1
max_duration: 30.0
max_rejected: 0.0
"""
SPLITS = {"train": 10, "valid": 2, "test": 2, "other": 2, "third": 2}


@dataclass
class Lab(Project):
    """A copy of the product with experiment ``own``; its commands start from the fork server."""

    python: Path

    def command(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
        return subprocess.run(
            [str(self.python), "-m", *arguments],
            cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def started(self) -> dict[str, tuple[int, int]]:
        """Each job's log, by the job's name: Snakemake removes a log when its job starts, so a job that ran has another."""
        found = {}
        for folder in ("data/own/log", "exp/own/log"):
            for path in (self.root / folder).glob("*.log"):
                with contextlib.suppress(FileNotFoundError):
                    found[path.stem] = ((stat := path.stat()).st_ino, stat.st_mtime_ns)
        return found

    def recorded(self) -> dict[Path, int]:
        """Snakemake's record of each output, and when it was written."""
        return {
            path: path.stat().st_mtime_ns for path in (self.root / ".snakemake/metadata").rglob("*") if path.is_file()
        }

    def run(self, *arguments: str, fails: bool = False) -> set[str]:
        """Run Snakemake for ``exp/own`` (or *arguments*); the names of the jobs that ran, after their logs."""
        before, records = self.started(), self.recorded()
        done = self.command("snakemake", *(arguments or ("exp/own",)), "--cores", "1")
        assert (done.returncode != 0) == fails, done.stdout[-6000:]
        ran = {name for name, stamp in self.started().items() if before.get(name) != stamp}
        new = [json.loads(path.read_text()) for path, time in self.recorded().items() if records.get(path) != time]
        assert fails or ran == {Path(record["log"][0]).stem for record in new}
        return ran

    def why(self, *arguments: str) -> str:
        done = self.command("espnet3", "why", *(arguments or ("exp/own",)))
        assert done.returncode == 0, done.stdout
        return done.stdout

    def replace(self, path: str, old: str, new: str, count: int = -1) -> None:
        text = (self.root / path).read_text()
        assert old in text, (path, old)
        (self.root / path).write_text(text.replace(old, new, count))

    def results(self) -> dict[str, bytes]:
        """What the experiment says in the end: manifests, hypotheses, scores."""
        kinds = ("data/own/*.jsonl.gz", "exp/own/decode/*/*/hyp.jsonl", "exp/own/score/*/*/*")
        return {str(p.relative_to(self.root)): p.read_bytes() for kind in kinds for p in self.root.glob(kind)}

    def stale_audio(self) -> list[str]:
        """Utterances of the manifests whose audio is no longer what the manifest was made from."""
        stale = []
        for path in (self.root / "data/own").glob("*.jsonl.gz"):
            for cut in read_jsonl(path):
                audio = self.root / cut["recording"]["sources"][0]["source"]
                if cut["custom"]["sha256"] != sha256_file(audio):
                    stale.append(cut["id"])
        return stale


def write_corpus(root: Path) -> None:
    """Spoken commands at 8 kHz, as a user has them: files, and a list of them."""
    from espnet3.data.corpora.commands import CommandsCorpus

    builder = CommandsCorpus(sampling_rate=8000, hours=0.02, minutes_valid=0.5, test_utterances=6)
    items = iter(builder.plan(root))
    spare = [item for item in items if item["split"] in ("train", "test")]
    lines = []
    for split, number in SPLITS.items():
        for i in range(number):
            item = {**spare.pop(0), "id": f"{split}-{i}", "split": split}
            record = builder.make(item, root / "own")
            lines.append(
                {"id": item["id"], "split": split, "audio": f"{split}/{split}-{i}.wav", "text": record["text"]}
            )
            assert (root / "own" / lines[-1]["audio"]).exists()
    (root / "own/corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
