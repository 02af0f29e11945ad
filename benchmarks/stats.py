"""Statistics for CMVN of 2,000 recorded digit strings, against `espnet2.bin.asr_train --collect_stats` on the same files.

python benchmarks/stats.py --work DIR [--fsdd ARCHIVE] [--espnet2 PYTHON] [--rounds 3]

By turns: ESPnet2's whole process, this package's (`python -m espnet3 stats`, then `stats-merge`), and the pass alone of
both, on one core; this package's pass in two worker processes; and the FFTs of all frames alone, which bound it. The features are
ESPnet2's (80 log-mel energies at 8 kHz). ESPnet2's pass is timed within its process. A second run of ESPnet2, one utterance at a
time, gives the values to compare: in its batches padding leaks into the last frames of shorter utterances. PYTHON is one that has
ESPnet2 (default: $ESPNET2_PYTHON, or this one). What is compared are CPU seconds, which other work on the machine disturbs
least, but for two workers, which are compared by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from digits import digit_strings
from figures import print_bars

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000
FEATURES = {"fs": RATE, "n_fft": 512, "win_length": 200, "hop_length": 80, "n_mels": 80}
CONF = {
    "stage": "stats",
    "config": {
        "data": {"sampling_rate": RATE},
        "model": {"frontend": {"_target_": "espnet3.models.logmel.LogMel", **FEATURES}},
    },
    "code": {},
}
# what the process of ESPnet2 runs: its own program, with a clock around the pass over the data
ESPNET2 = """
import sys, time
try:
    import torchaudio
except OSError:
    import types
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    part = types.ModuleType("torchaudio._extension")
    part._IS_TORCHAUDIO_EXT_AVAILABLE = part._IS_ALIGN_AVAILABLE = False
    part.fail_if_no_align = lambda function: function
    sys.modules["torchaudio._extension"] = part
from espnet2.tasks import abs_task
collect = abs_task.collect_stats
def timed(*args, **kwargs):
    start = time.process_time()
    collect(*args, **kwargs)
    print("PASS", time.process_time() - start, file=sys.stderr)
abs_task.collect_stats = timed
from espnet2.bin.asr_train import main
main()
"""


def run(command: list[str], **more: str) -> tuple[float, float, str]:
    """Seconds by the clock, CPU seconds, and what the command said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"stats: {' '.join(command[:4])} ...: {done.stderr[-1500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def espnet2(python: str, data: Path, out: Path, batch: int = 20) -> tuple[float, float, float]:
    """Clock, CPU seconds, and CPU seconds of the pass."""
    shutil.rmtree(out, ignore_errors=True)
    few = data / "few"
    if not few.exists():
        # the training set is what is timed; ESPnet2 wants a validation set, too
        few.mkdir()
        for name in ("wav.scp", "text"):
            (few / name).write_text("".join((data / "dev" / name).read_text().splitlines(keepends=True)[:1]))
    tokens = data / "tokens.txt"
    tokens.write_text("\n".join(["<blank>", "<unk>", "<space>", *"efghinorstuvwxz", "<sos/eos>"]) + "\n")
    conf = "{" + ", ".join(f"{k}: {v}" for k, v in FEATURES.items()) + "}"
    command = [python, "-c", ESPNET2, "--collect_stats", "true", "--use_preprocessor", "true", "--token_type", "char"]
    command += ["--token_list", str(tokens), "--frontend_conf", conf, "--normalize", "none", "--ngpu", "0"]
    command += ["--encoder", "transformer", "--decoder", "transformer", "--num_workers", "0"]
    for part, folder in (("train", data / "train"), ("valid", few)):
        command += [f"--{part}_data_path_and_name_and_type", f"{folder}/wav.scp,speech,sound"]
        command += [f"--{part}_data_path_and_name_and_type", f"{folder}/text,text,text"]
        command += [f"--{part}_shape_file", f"{folder}/wav.scp"]
    command += ["--batch_size", str(batch), "--batch_type", "unsorted", "--output_dir", str(out)]
    wall, cpu, said = run(command)
    # once for each part, the training set being the first or in the same call
    passes = [float(line.split()[1]) for line in said.splitlines() if line.startswith("PASS")]
    return wall, cpu, sum(passes)


def ours(data: Path, out: Path) -> tuple[float, float, float]:
    """Both commands of this package; of the pass, what the workflow's job spends beside starting up."""
    out.mkdir(exist_ok=True)
    shard = str(out / "shard-1-of-1.npz")
    base = [sys.executable, "-m", "espnet3"]
    first = [*base, "stats", "--conf", str(data / "stats.json"), "--manifest", str(data / "train.jsonl.gz")]
    first += ["--shard", "1", "--of", "1", "--output", shard, "--execution", "{}"]
    wall, cpu, _ = run(first)
    merged = run([*base, "stats-merge", "--output", str(out / "cmvn.npz"), shard])
    return wall + merged[0], cpu + merged[1], 0.0


def passes(data: Path, out: Path) -> dict[str, float]:
    """The FFTs alone; then by turns the pass in one of two worker processes, and its halves in both (the longer counts)."""
    import torch

    from espnet3.data.dataset import ESPnet3Dataset

    torch.set_num_threads(1)
    durations = ESPnet3Dataset(data / "train.jsonl.gz").durations
    frames = [torch.randn(round(d * RATE) // 80 + 1, 200) for d in durations]
    cpu = time.process_time()
    for part in frames:
        torch.fft.rfft(part, n=512)
    found = {"fft_cpu": time.process_time() - cpu, "audio": float(sum(durations))}
    command = [sys.executable, __file__, "--work", str(out), "--passes", str(data), "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]

    def ask(*parts: str) -> list[list[float]]:
        # all begin at once, each with its part
        for process, part in zip(workers, parts, strict=False):
            process.stdin.write(part + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process, _ in zip(workers, parts, strict=False)]

    ask("1 20", "1 20")
    turns = [(ask("1 1")[0], ask("1 2", "2 2")) for _ in range(5)]
    for process in workers:
        process.communicate()
    found["one_cpu"] = statistics.median(one[1] for one, _ in turns)
    found["one_wall"] = statistics.median(one[0] for one, _ in turns)
    found["two_wall"] = statistics.median(max(wall for wall, _ in two) for _, two in turns)
    found["speedup"] = statistics.median(one[0] / max(wall for wall, _ in two) for one, two in turns)
    return found


def shard(data: Path, out: Path, number: int, of: int) -> tuple[float, float]:
    """Clock and CPU seconds of one shard's pass."""
    from espnet3.stages.stats import run_shard

    cpu, start = time.process_time(), time.perf_counter()
    run_shard(CONF["config"], data / "train.jsonl.gz", number, of, out / f"shard-{number}-of-{of}.npz")
    return time.perf_counter() - start, time.process_time() - cpu


def worker(data: Path, out: Path) -> None:
    """The clock and CPU seconds of each shard that is asked for, a line ``NUMBER OF`` each."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        number, of = map(int, line.split())
        print(json.dumps(shard(data, out, number, of)), flush=True)


def prepare(work: Path, fsdd: str | None) -> Path:
    """The digit strings, their manifest and the slice file."""
    from espnet3.stages import corpus, manifest

    data = digit_strings(work / "digits", fsdd)
    if not (data / "train.jsonl.gz").exists():
        section = {
            "corpus": "digits",
            "sampling_rate": RATE,
            "min_duration": 0.1,
            "max_duration": 60.0,
            "max_rejected": 0.0,
        }
        section["builder"] = {
            "_target_": "espnet3.data.corpora.kaldi.KaldiCorpus",
            "dirs": {"train": str(data / "train")},
        }
        corpus.run({"data": section, "allow": []}, data / "corpus.jsonl", {"env": "local", "n_workers": 1})
        rejected = data / "rejected.jsonl"
        local = {"env": "local", "n_workers": 1}
        manifest.run({"data": section}, data / "corpus.jsonl", "train", data / "train.jsonl.gz", rejected, local)
    (data / "stats.json").write_text(json.dumps(CONF))
    return data


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data, which a second run finds again")
    parser.add_argument("--fsdd", help="the archive or its unpacked folder (default: $ESPNET3_FSDD, or it is fetched)")
    parser.add_argument("--espnet2", default=os.environ.get("ESPNET2_PYTHON", sys.executable), metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.worker:
        worker(given.passes, given.work)
        return 0
    if given.passes:
        print(json.dumps(passes(given.passes, given.work)))
        return 0
    if subprocess.run([given.espnet2, "-c", "import espnet2"], capture_output=True).returncode:
        print("stats: needs a Python with ESPnet2: --espnet2 PYTHON (docs/training.md says how to install it)")
        return 1
    given.work.mkdir(parents=True, exist_ok=True)
    data = prepare(given.work.resolve(), given.fsdd)
    out = given.work.resolve() / "out"
    out.mkdir(exist_ok=True)
    whole: dict[str, list[tuple[float, float, float]]] = {"ESPnet2": [], "espnet3": []}
    alone: list[dict[str, float]] = []
    for _ in range(given.rounds):
        whole["ESPnet2"].append(espnet2(given.espnet2, data, out / "espnet2"))
        whole["espnet3"].append(ours(data, out / "espnet3"))
        command = [sys.executable, __file__, "--work", str(out), "--passes", str(data)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        alone.append(json.loads(done.stdout.splitlines()[-1]))
    espnet2(given.espnet2, data, out / "alone", batch=1)
    with np.load(out / "alone/train/feats_stats.npz") as theirs, np.load(out / "espnet3/cmvn.npz") as mine:
        count = float(theirs["count"])
        mean = theirs["sum"] / count
        std = np.sqrt(theirs["sum_square"] / count - mean**2)
        apart = float(max(np.abs(mean - mine["mean"]).max(), np.abs(std - mine["std"]).max()))
        same = count == float(mine["count"])

    def middle(values) -> float:
        return statistics.median(values)

    audio = alone[0]["audio"]
    theirs_pass, our_pass = middle(r[2] for r in whole["ESPnet2"]), middle(r["one_cpu"] for r in alone)
    fft, speedup = middle(r["fft_cpu"] for r in alone), middle(r["speedup"] for r in alone)
    print(f"{audio:.0f} s of audio, medians of {given.rounds} rounds")
    print(f"{'':28} {'clock s':>9} {'CPU s':>9} {'x real time':>12}")
    for name, found in whole.items():
        wall, cpu = middle(r[0] for r in found), middle(r[1] for r in found)
        print(f"{name + ', whole process':28} {wall:9.2f} {cpu:9.2f} {audio / cpu:12.0f}")
    print(f"{'ESPnet2, the pass':28} {'':9} {theirs_pass:9.2f} {audio / theirs_pass:12.0f}")
    print(
        f"{'espnet3, the pass':28} {middle(r['one_wall'] for r in alone):9.2f} {our_pass:9.2f} {audio / our_pass:12.0f}"
    )
    print(f"{'espnet3, two workers':28} {middle(r['two_wall'] for r in alone):9.2f}")
    print(f"{'the FFTs alone':28} {'':9} {fft:9.2f} {audio / fft:12.0f}   ({100 * fft / our_pass:.0f} % of the pass)")
    ratio = middle(a[1] / b[1] for a, b in zip(whole["ESPnet2"], whole["espnet3"], strict=True))
    bars = [
        ("whole process, ESPnet2's CPU seconds / ours", ratio, 4.0, True),
        ("the pass on one core, ESPnet2's CPU seconds / ours", theirs_pass / our_pass, 1.3, True),
        ("the pass in two workers, speed against one", speedup, 1.8, True),
        ("largest difference of a mean or a standard deviation", apart if same else float("inf"), 1e-4, False),
    ]
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
