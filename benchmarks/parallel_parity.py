"""Every engine, the same bytes: a decoding and a data preparation, on each engine with 1, 2 and 5 workers.

    python benchmarks/parallel_parity.py                    # in process, processes, Dask; background jobs
    python benchmarks/parallel_parity.py --slurm            # and on SLURM: Dask's jobs, and detached arrays
    python benchmarks/parallel_parity.py --also "Snakemake, slurm"=exp/asr/decode/joint/test/hyp.jsonl

It needs a trained experiment (`snakemake --profile local exp/asr/average`). With --slurm where there is no sbatch, a private
SLURM is started (tests/slurm/slurm-cluster.sh). --also compares a file that was made otherwise, such as by Snakemake's
jobs. The last rows decode with batches of 1 and of 8 utterances: other sums, the same hypotheses. A time is for the whole
call, the start of workers included; the overhead is what it takes beyond the same work in this process, divided by the
workers (at most as many as there are cores). Exits with status 1 where two outputs differ.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the last bits of a sum depend on the number of threads

import argparse
import contextlib
import gzip
import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espnet3.data.manifest import ManifestProvider, ManifestRunner, read_durations
from espnet3.inference.plan import plan_decoding
from espnet3.inference.provider import DecodeProvider
from espnet3.inference.runner import DecodeRunner
from espnet3.io import read_json, read_jsonl
from espnet3.parallel import BaseRunner
from espnet3.parallel.detached import load_run

REPOSITORY = Path(__file__).resolve().parents[1]


class PlannedDecodeRunner(DecodeRunner):
    """Cuts the test set as the workflow's decode stage does."""

    def make_plan(self, indices: list[int]) -> list[list[int]]:
        """Shards of whole batches."""
        self.indices = list(indices)
        self.plan = plan_decoding(self.keys, self.weights, self.shards, self.batch_weight)
        return self.plan


class Job:
    """A piece of work: a runner for an output folder and an engine, and what its output must equal."""

    def __init__(self, name: str, make: Callable[..., BaseRunner], count: int):
        self.name, self.make, self.count = name, make, count

    def run(self, folder: Path, parallel: dict, detached: bool) -> bytes:
        """The merged output."""
        settings = {"output_dir": folder / "out", "parallel": parallel}
        if not detached:
            return Path(self.make(**settings)(range(self.count))).read_bytes()
        self.make(**settings, async_mode=True, async_specs_dir=folder / "specs")(range(self.count))
        run = load_run(folder / "specs")
        run.wait(0.5)
        collected = run.collect()
        if not collected.complete:
            raise SystemExit(f"{self.name}: {collected.summary()}")
        return Path(collected.result).read_bytes()


def decoding(arguments: argparse.Namespace) -> tuple[Job, Callable[[int], list]]:
    """The decode job, and a function that decodes with a fixed batch size."""
    root = Path("exp") / arguments.experiment
    conf = read_json(root / f"conf/decode.{arguments.decoding}.json")["config"]
    if not (weights := sorted(root.glob(f"average/{conf['decode'].get('average', '*')}.safetensors"))):
        raise SystemExit(f"{root}/average: no weights; run: snakemake --profile local {root}/average")
    manifest = Path("data") / arguments.corpus / f"{arguments.split}.jsonl.gz"
    config = {
        "conf": conf,
        "manifest": str(manifest),
        "weights": str(weights[0]),
        "tokens": str(root / "tokenizer"),
        "execution": {"accelerator": "cpu"},
    }
    ids, durations = (values[: arguments.records] for values in read_durations(manifest))
    same = {"keys": ids, "weights": durations, "name": "hyp"}

    def make(**settings) -> BaseRunner:
        seconds = conf["decode"]["batch_seconds"]
        shards = conf["decode"].get("shards", 4)
        return PlannedDecodeRunner(DecodeProvider(config), batch_weight=seconds, shards=shards, **same, **settings)

    def batched(size: int) -> list:
        return DecodeRunner(DecodeProvider(config), batch_size=size, **same)(range(len(ids)))

    return Job("decoding", make, len(ids)), batched


def preparation(arguments: argparse.Namespace) -> Job:
    """The data preparation: a split's recordings validated and made into cuts."""
    folder = Path("data") / arguments.corpus
    data = read_json(folder / "conf/manifest.json")["config"]["data"]
    limits = {key: data[key] for key in ("sampling_rate", "min_duration", "max_duration")}
    config = {"corpus": str(folder / "corpus.jsonl"), "split": "train", "limits": limits}
    count = sum(record["split"] == "train" for record in read_jsonl(config["corpus"]))
    count = min(count, arguments.records or count)

    def make(**settings) -> BaseRunner:
        return ManifestRunner(ManifestProvider(config), batch_size=64, shards=8, name="cuts", **settings)

    return Job("data preparation", make, count)


def engines(slurm: bool, queue: str | None) -> list[tuple[str, dict, bool, tuple[int, ...]]]:
    """``(label, parallel section, detached, worker counts)``."""
    found = [
        ("in process", {"env": "local"}, False, (1,)),
        ("processes", {"env": "multiprocessing"}, False, (1, 2, 5)),
        ("Dask, local", {"env": "dask"}, False, (1, 2, 5)),
        ("detached, local", {"env": "local"}, True, (1, 2, 5)),
    ]
    if slurm:
        options = {"memory": "1500MB", **({"queue": queue} if queue else {})}
        dask = {**options, "log_directory": tempfile.mkdtemp(prefix="dask-logs-")}
        if "SLURM_MINI_ROOT" in os.environ:
            dask["scheduler_options"] = {"host": "127.0.0.1"}
        found += [
            ("Dask on SLURM", {"env": "slurm", "options": dask}, False, (1, 2, 5)),
            ("detached, SLURM array", {"env": "slurm", "options": options}, True, (1, 2, 5)),
        ]
    return found


@contextlib.contextmanager
def private_slurm(wanted: bool) -> Iterator[None]:
    """A SLURM of our own, where there is none."""
    if not wanted or shutil.which("sbatch"):
        yield
        return
    script = REPOSITORY / "tests/slurm/slurm-cluster.sh"
    root = f"/tmp/espnet3-parity-{os.getuid()}-{os.getpid()}"
    os.environ["SLURM_MINI_ROOT"] = root
    try:
        subprocess.run(["bash", str(script), "up", "--nodes", "3"], check=True)
        os.environ["PATH"] = f"{root}/bin:{os.environ['PATH']}"
        os.environ["SLURM_CONF"] = f"{root}/etc/slurm.conf"
        yield
    finally:
        subprocess.run(["bash", str(script), "down", "--purge"])


def digest(data: bytes) -> str:
    """What is printed of an output."""
    return hashlib.sha256(data).hexdigest()[:12]


def row(*cells: object) -> None:
    """One line of the table."""
    print("{:18}{:24}{:>8}{:>9}{:>11}  {:14}{}".format(*map(str, cells)), flush=True)


def compare(job: Job, arguments: argparse.Namespace, others: dict[str, Path]) -> bool:
    """Run a job everywhere; whether all outputs are the same."""
    reference, alone, same = b"", 0.0, True
    cores = len(os.sched_getaffinity(0))
    for label, section, detached, counts in engines(arguments.slurm, arguments.queue):
        for workers in counts:
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
                started = time.perf_counter()
                output = job.run(Path(folder).absolute(), {**section, "n_workers": workers}, detached)
                took = time.perf_counter() - started
            reference, alone = reference or output, alone or took
            same &= output == reference
            overhead = took - alone / min(workers, cores)
            verdict = "same" if output == reference else "DIFFERS"
            row(job.name, label, workers, f"{took:.1f} s", f"{overhead:+.1f} s", digest(output), verdict)
    for label, path in others.items():
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        same &= data == reference
        row(job.name, label, "", "", "", digest(data), "same" if data == reference else "DIFFERS")
    return same


def main() -> int:
    """Print the tables; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".", help="the folder with exp/ and data/ (default: this one)")
    parser.add_argument("--experiment", default="asr")
    parser.add_argument("--decoding", default="joint", help="a decoding of the experiment (default joint)")
    parser.add_argument("--corpus", default="commands")
    parser.add_argument("--split", default="test", help="the test set to decode (default test)")
    parser.add_argument("--records", type=int, help="only the first so many of each job (default: all)")
    parser.add_argument("--slurm", action="store_true", help="also on SLURM")
    parser.add_argument("--queue", help="the partition (default: the cluster's own)")
    parser.add_argument("--scratch", default=".", help="where outputs go for a while: a shared disk for --slurm")
    parser.add_argument("--also", action="append", default=[], metavar="LABEL=FILE", help="another hyp.jsonl")
    parser.add_argument("--also-cuts", action="append", default=[], metavar="LABEL=FILE", help="another manifest")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    os.chdir(arguments.root)
    row("job", "engine", "workers", "wall", "overhead", "sha256", "")
    with private_slurm(arguments.slurm):
        decode, batched = decoding(arguments)
        also, also_cuts = (
            {label: Path(path) for label, path in (item.rsplit("=", 1) for item in items)}
            for items in (arguments.also, arguments.also_cuts)
        )
        same_hypotheses = compare(decode, arguments, also)
        same_cuts = compare(preparation(arguments), arguments, also_cuts)
    texts = {}
    for size in (1, 8):
        started = time.perf_counter()
        texts[size] = [(record["id"], record["text"]) for record in batched(size)]
        took = f"{time.perf_counter() - started:.1f} s"
        row("decoding", f"batches of {size}", 1, took, "", digest(repr(texts[size]).encode()), "texts")
    print(f"decoding: byte-identical on every engine vs required: {'ok' if same_hypotheses else 'FALLS SHORT'}")
    print(f"data preparation: byte-identical on every engine vs required: {'ok' if same_cuts else 'FALLS SHORT'}")
    differ = sum(one != other for one, other in zip(texts[1], texts[8], strict=True))
    print(f"batches of 1 and 8: {differ} hypotheses differ vs 0: {'FALLS SHORT' if differ else 'ok'}")
    return 0 if same_hypotheses and same_cuts and not differ else 1


if __name__ == "__main__":
    raise SystemExit(main())
