"""Batches, loading, features and large manifests, paired with ESPnet2's own samplers and with a plain DataLoader.

python benchmarks/loading.py [--espnet2-python PATH] [--rounds 5] [--lines 1000000] [--parts batches fbank manifest]

ESPnet2 is measured where this interpreter has it, or in the interpreter that --espnet2-python names; otherwise install it beside:
pip install espnet==202511. Runs alternate; times are CPU seconds, medians.
Everything is synthetic: lengths in the manner of LibriSpeech (mean 12.3 s, deviation 3.8 s), noise for audio. Use one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from figures import peak_megabytes, print_bars, timed
from synthetic import BATCH_SECONDS, RATE, durations, write_corpus

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PARTS = ("batches", "fbank", "manifest")


def padding(batches: list[list[int]], lengths: np.ndarray) -> float:
    """Percent of the batches' area."""
    area = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 100 * (1 - sum(lengths[batch].sum() for batch in batches) / area)


# --- workers: each a fresh process, so that its peak memory is its own ---


def build_espnet3(job: dict[str, Any]) -> Any:
    from types import SimpleNamespace

    from espnet3.data.loader import build_sampler

    # a data set knows its ids before any sampler is made
    dataset = SimpleNamespace(ids=[f"utt-{i:07d}" for i in range(job["count"])])
    node = {"type": "numel", "batch_bins": job["bins"], "shape_file": job["shapes"]}
    return lambda: list(build_sampler(dataset, node, shuffle=False, seed=0))


def build_espnet2(job: dict[str, Any]) -> Any:
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    keys = {"type": "numel", "batch_size": 1, "batch_bins": job["bins"], "shape_files": [job["shapes"]]}
    return lambda: list(build_batch_sampler(**keys))


def area(batches: Any) -> tuple[int, ...]:
    """Utterances, their samples, and the samples of the batches that hold them."""
    sizes = [(len(speech), int(lengths.sum()), speech.numel()) for speech, lengths in batches]
    return tuple(map(sum, zip(*sizes, strict=True)))


def load_espnet3(job: dict[str, Any]) -> Any:
    from espnet3.data.dataset import ESPnet3Dataset
    from espnet3.data.loader import make_dataloader

    dataset = ESPnet3Dataset(job["manifest"])
    loader = make_dataloader(
        dataset, {"type": "numel", "batch_bins": int(BATCH_SECONDS * RATE)}, shuffle=True, pin_memory=False
    )
    return lambda: area((batch["speech"], batch["speech_lengths"]) for _, batch in loader)


def load_espnet2(job: dict[str, Any]) -> Any:
    from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
    from espnet2.samplers.build_batch_sampler import build_batch_sampler
    from espnet2.train.collate_fn import CommonCollateFn
    from espnet2.train.dataset import ESPnetDataset

    keys = {"type": "numel", "batch_size": 1, "batch_bins": int(BATCH_SECONDS * RATE), "shape_files": [job["few"]]}
    dataset = ESPnetDataset([(job["scp"], "speech", "sound")])
    factory = SequenceIterFactory(
        dataset, list(build_batch_sampler(**keys)), shuffle=True, collate_fn=CommonCollateFn(), num_workers=0
    )
    return lambda: area((batch["speech"], batch["speech_lengths"]) for _, batch in factory.build_iter(1))


def load_plain(job: dict[str, Any]) -> Any:
    import soundfile
    import torch
    from torch.nn.utils.rnn import pad_sequence

    paths = [line.split()[1] for line in Path(job["scp"]).read_text().splitlines()]

    def collate(items: list) -> tuple:
        waves = [torch.from_numpy(samples) for samples in items]
        return pad_sequence(waves, batch_first=True), torch.tensor([len(samples) for samples in items])

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return soundfile.read(paths[index], dtype="float32")[0]

    size = round(BATCH_SECONDS / 12.3)
    loader = torch.utils.data.DataLoader(Files(), batch_size=size, shuffle=True, collate_fn=collate)
    return lambda: area(loader)


WORKERS = {
    f"{what} {who}": function
    for what, who, function in (
        ("build", "espnet3", build_espnet3),
        ("build", "espnet2", build_espnet2),
        ("load", "espnet3", load_espnet3),
        ("load", "espnet2", load_espnet2),
        ("load", "plain", load_plain),
    )
}


def work(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """What a worker prints: CPU seconds of one run after a first one, peak memory, and for batches what they are."""
    import torch

    torch.set_num_threads(1)
    function = WORKERS[name](job)
    function()
    seconds, result = timed(function)
    report: dict[str, Any] = {"seconds": seconds, "peak": peak_megabytes()}
    if name.startswith("build"):
        batches = (
            [[int(uid.removeprefix("utt-")) for uid in batch] for batch in result] if "espnet2" in name else result
        )
        report |= {"batches": len(batches), "padding": padding(batches, durations(job["count"]))}
        report["first"] = [batches[0], batches[len(batches) // 2], batches[-1]]
    else:
        report["padding"] = 100 * (1 - result[1] / result[2])
        assert result[0] == job["files"], f"{result[0]} utterances"
    return report


def run_worker(python: str, name: str, job: Path) -> dict[str, Any]:
    """*name* in a fresh process."""
    command = [python, __file__, "--worker", name, "--job", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- the large manifest ---


def large_manifest(folder: Path) -> dict[str, float]:
    """Validate, shard and sample a corpus of many utterances in this process; seconds of each step, and the peak in MB."""
    from espnet3.data.batching import Lengths, SortedPools, TypedBatchSampler
    from espnet3.data.lazy import Manifest
    from espnet3.data.manifest import build_manifest, read_durations
    from espnet3.parallel.plan import plan_shards

    report: dict[str, float] = {"start": peak_megabytes()}
    limits = {"sampling_rate": RATE, "min_duration": 0.1, "max_duration": 40.0}
    manifest = folder / "large.jsonl.gz"
    report["validate"], counts = timed(
        lambda: build_manifest(folder / "corpus.jsonl", "train", manifest, folder / "rejected.jsonl", limits, 0.01)
    )
    report["validate peak"], report["accepted"] = peak_megabytes(), counts[0]

    def shard() -> int:
        ids, lengths = read_durations(manifest)
        return len(plan_shards(ids, lengths, 64))

    report["shard"], _ = timed(shard)
    report["shard peak"] = peak_megabytes()

    def sample() -> int:
        opened = Manifest(manifest)
        lengths = Lengths(np.arange(len(opened)), [np.rint(opened.durations * opened.rates).astype(np.int64)[:, None]])
        bins = int(BATCH_SECONDS * RATE)
        batches = sum(1 for _ in TypedBatchSampler(lengths, "numel", batch_bins=bins, shuffle=True))
        batches += sum(1 for _ in SortedPools(opened, BATCH_SECONDS))
        for index in np.random.default_rng(0).integers(len(opened), size=2000):
            assert opened[index]["id"] == opened.ids[index]
        return batches

    report["sample"], _ = timed(sample)
    report["peak"] = peak_megabytes()
    return report


def lhotse_on_large(folder: Path) -> dict[str, float]:
    """A hundred batches of Lhotse's DynamicBucketingSampler on the same manifest, with torch and Lhotse in memory."""
    from lhotse.dataset import DynamicBucketingSampler

    from espnet3.data.dataset import ESPnet3Dataset

    report = {"start": peak_megabytes()}
    cuts = ESPnet3Dataset(folder / "large.jsonl.gz").cuts
    sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, num_buckets=30, shuffle=True)
    report["seconds"], _ = timed(lambda: [len(batch) for _, batch in zip(range(100), sampler, strict=False)])
    return report | {"peak": peak_megabytes()}


# --- one process for all else ---


def samplers(count: int) -> float:
    """Print what other ways to make batches pad; what SortedPools pads."""
    from types import SimpleNamespace

    import lhotse
    from lhotse.dataset import DynamicBucketingSampler

    from espnet3.data.batching import SortedPools
    from espnet3.data.wrapped import bare_cut

    lengths = durations(count)
    pools = SortedPools(SimpleNamespace(durations=lengths), BATCH_SECONDS)
    seconds, batches = timed(lambda: list(pools))
    row("SortedPools", seconds, len(batches), padding(batches, lengths))
    cuts = lhotse.CutSet.from_cuts(bare_cut(str(i), float(d), RATE) for i, d in enumerate(lengths))
    for buckets in (10, 30):
        sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, num_buckets=buckets, shuffle=True)
        seconds, found = timed(lambda sampler=sampler: [[int(cut.id) for cut in batch] for batch in sampler])
        row(f"Lhotse, {buckets} buckets", seconds, len(found), padding(found, lengths))
    size = round(BATCH_SECONDS / 12.3)
    order = np.random.default_rng(0).permutation(count)
    plain = [order[i : i + size].tolist() for i in range(0, count, size)]
    row("plain DataLoader (shuffled, fixed size)", 0.0, len(plain), padding(plain, lengths))
    return padding(batches, lengths)


def fbank(rounds: int) -> tuple[float, float]:
    """Times real time, on one core: ours and Lhotse's, on a batch of BATCH_SECONDS."""
    import torch
    from lhotse import Fbank as LhotseFbank

    from espnet3.models.frontend import Fbank

    torch.set_num_threads(1)
    lengths = np.sort(durations(int(BATCH_SECONDS / 12.3), seed=3))
    samples = torch.tensor((lengths * RATE).astype(np.int64))
    speech = 0.1 * torch.randn(len(lengths), int(samples.max()))
    single = [speech[i, :n].numpy() for i, n in enumerate(samples.tolist())]
    ours, theirs = Fbank(RATE, 80), LhotseFbank()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours(speech, samples)
    for _ in range(rounds):
        times["ours"].append(timed(lambda: ours(speech, samples))[0])
        times["theirs"].append(timed(lambda: theirs.extract_batch(single, RATE))[0])
    total = float(lengths.sum())
    return total / statistics.median(times["ours"]), total / statistics.median(times["theirs"])


def row(name: str, seconds: float, batches: Any, padded: float | str = "", peak: float | None = None) -> None:
    """One line of the tables."""
    shown = f"{padded:.2f} %" if isinstance(padded, float) else padded
    print(f"{name:42} {seconds * 1000:10.1f} {batches!s:>10} {shown:>9} {f'{peak:.0f}' if peak else '':>8}", flush=True)


def prepare(count: int, files: int, folder: Path) -> Path:
    """Shape files, audio, manifest and wav.scp for the workers; the job that names them."""
    import soundfile

    from espnet3.io import write_jsonl
    from espnet3.stages import manifest

    lengths = durations(count)
    frames = (lengths * 100).astype(int)
    (folder / "shapes").write_text("".join(f"utt-{i:07d} {n},80\n" for i, n in enumerate(frames)))
    rng = np.random.default_rng(5)
    records, shapes, scp = [], [], []
    for i, seconds in enumerate(durations(files, seed=6)):
        path, samples = folder / f"utt-{i:07d}.wav", int(seconds * RATE)
        soundfile.write(path, (0.1 * rng.standard_normal(samples)).astype(np.float32), RATE)
        records.append({"id": path.stem, "split": "train", "audio": str(path), "text": "noise", "speaker": "s"})
        shapes.append(f"{path.stem} {samples}\n")
        scp.append(f"{path.stem} {path}\n")
    (folder / "few").write_text("".join(shapes))
    (folder / "scp").write_text("".join(scp))
    write_jsonl(folder / "files.jsonl", records)
    data = {"sampling_rate": RATE, "min_duration": 0.1, "max_duration": 40.0, "max_rejected": 0.0}
    manifest.run({"data": data}, folder / "files.jsonl", "train", folder / "files.jsonl.gz", folder / "rejected.jsonl")
    job = {"count": count, "files": files, "bins": int(BATCH_SECONDS * 100 * 80), "shapes": str(folder / "shapes")}
    job |= {"manifest": str(folder / "files.jsonl.gz"), "few": str(folder / "few"), "scp": str(folder / "scp")}
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def batches_and_loading(arguments: argparse.Namespace, other: str | None, folder: Path) -> list[tuple]:
    """The tables of batches made and of audio loaded; their bars."""
    job = prepare(arguments.utterances, arguments.files, folder)
    pythons = {"espnet3": sys.executable, "plain": sys.executable} | ({"espnet2": other} if other else {})
    found: dict[str, list[dict]] = {key: [] for key in WORKERS if key.split()[1] in pythons}
    for _ in range(arguments.rounds):
        for key in found:
            found[key].append(run_worker(pythons[key.split()[1]], key, job))
    seconds = {key: statistics.median(r["seconds"] for r in reports) for key, reports in found.items()}
    peaks = {key: max(r["peak"] for r in reports) for key, reports in found.items()}
    print(
        f"{arguments.utterances} lengths, batches of {BATCH_SECONDS:g} s; numel: the shape file is read, batches are made"
    )
    print(f"{'':42} {'CPU ms':>10} {'batches':>10} {'padding':>9} {'peak MB':>8}")
    for key in ("build espnet3", "build espnet2"):
        if key in found:
            last = found[key][-1]
            row(f"numel, {key.split()[1]}", seconds[key], last["batches"], last["padding"], peaks[key])
    pools = samplers(arguments.utterances)
    bars = [
        ("padding, numel (%)", found["build espnet3"][-1]["padding"], 3.0, False),
        ("padding, SortedPools (%)", pools, 3.0, False),
    ]
    if other:
        same = found["build espnet3"][-1]["first"] == found["build espnet2"][-1]["first"]
        ratio = seconds["build espnet2"] / seconds["build espnet3"]
        bars.append(("batches built, times as fast as ESPnet2", ratio, 5.0, True))
        bars.append(("first, middle and last batch the same as ESPnet2's", float(same), 1.0, True))
    print(f"\n{arguments.files} wav files, read, batched and padded in one process")
    print(f"{'':42} {'CPU ms':>10} {'utt/s':>10} {'padding':>9} {'peak MB':>8}")
    for key in (key for key in found if key.startswith("load")):
        row(
            key.split()[1], seconds[key], f"{arguments.files / seconds[key]:.0f}", found[key][-1]["padding"], peaks[key]
        )
    return bars


def main() -> int:
    """Print the tables and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espnet2-python", help="an interpreter that has ESPnet2 (default: this one, where it has it)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=100_000, help="synthetic lengths (default 100000)")
    parser.add_argument("--files", type=int, default=200, help="audio files that are loaded (default 200)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the large manifest (default 1000000)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure (default: all)")
    parser.add_argument("--worker", choices=[*WORKERS, "manifest", "lhotse"], help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker in ("manifest", "lhotse"):
        measure = large_manifest if arguments.worker == "manifest" else lhotse_on_large
        print(json.dumps(measure(Path(arguments.job))))
        return 0
    if arguments.worker:
        print(json.dumps(work(arguments.worker, json.loads(Path(arguments.job).read_text()))))
        return 0
    other = arguments.espnet2_python or (sys.executable if importlib.util.find_spec("espnet2") else None)
    if other is None and "batches" in arguments.parts:
        print("no ESPnet2 here: pip install espnet==202511 (in an environment of its own), then --espnet2-python PATH")
    bars: list[tuple[str, float, float, bool]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "batches" in arguments.parts:
            bars += batches_and_loading(arguments, other, folder)
        if "fbank" in arguments.parts:
            ours, theirs = fbank(max(arguments.rounds, 5))
            print(
                f"\nfbank, one core, a batch of {BATCH_SECONDS:g} s: in the model {ours:.0f} x real time, Lhotse's {theirs:.0f} x"
            )
            bars.append(("fbank (x real time)", ours, 1000.0, True))
        if "manifest" in arguments.parts:
            write_corpus(arguments.lines, folder)
            report, lhotse = (run_worker(sys.executable, worker, folder) for worker in ("manifest", "lhotse"))
            print(
                f"\na manifest of {arguments.lines} lines, in one fresh process ({report['start']:.0f} MB when it begins)"
            )
            for step in ("validate", "shard", "sample"):
                peak = report["peak" if step == "sample" else f"{step} peak"]
                print(f"{step:12} {report[step]:8.1f} CPU s, peak so far {peak:.0f} MB")
            print(
                f"Lhotse's DynamicBucketingSampler on it: 100 batches in {lhotse['seconds']:.1f} CPU s, peak {lhotse['peak']:.0f} "
                f"MB, of which {lhotse['start']:.0f} are torch and Lhotse"
            )
            bars.append((f"peak of {arguments.lines} lines (MB)", report["peak"], 500.0, False))
    print()
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
