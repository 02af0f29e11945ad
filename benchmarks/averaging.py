"""Averaging checkpoints: time, peak memory and exactness, against ESPnet2's, on checkpoints of the same numbers.

python benchmarks/averaging.py [--espnet2 PYTHON] [--millions 100] [--checkpoints 10] [--rounds 3] [--folder DIR]

Each run is a process of its own; what is counted begins when everything is imported. Memory is the process's own (anonymous)
memory, sampled every 2 ms: pages of a file that is mapped can be dropped by the system at any time. PYTHON is one that has
ESPnet2 (default: $ESPNET2_PYTHON, or this one). Needs twice the checkpoints' size on the disk: 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def anonymous() -> int:
    """Bytes of this process's own memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no RssAnon in /proc/self/status")


def measured(function) -> dict[str, float]:
    """Seconds and peak of own memory, above what there was before."""
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "bytes": max(0, peak[0] - before)}


def run_ours(folder: Path, number: int) -> dict[str, float]:
    from espnet3.trainer.averaging import average

    paths = [folder / f"epoch-{n:04d}.safetensors" for n in range(1, number + 1)]
    return measured(lambda: average(paths, folder / "average.safetensors", {"epochs": "all"}))


def run_espnet2(folder: Path, number: int) -> dict[str, float]:
    import types

    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    from espnet2.main_funcs.average_nbest_models import average_nbest_models
    from espnet2.train.reporter import Reporter

    reporter = Reporter()
    stats = {n: {"valid": {"acc": n / 100}} for n in range(1, number + 1)}
    reporter.load_state_dict({"epoch": number, "stats": stats})
    arguments = {"best_model_criterion": [("valid", "acc", "max")], "nbest": [number]}
    return measured(lambda: average_nbest_models(output_dir=folder, reporter=reporter, **arguments))


def write_checkpoints(folder: Path, millions: float, number: int) -> int:
    """Both forms of *number* checkpoints; the bytes of one."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = {"decoder.embed.weight": (5000, 1024)}
    blocks = max(1, round((millions * 1e6 - 5000 * 1024) / (1024 * 1024)))
    shapes |= {f"encoder.encoders.{i}.weight": (1024, 1024) for i in range(blocks)}
    size = 0
    for n in range(1, number + 1):
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        state["encoder.norm.num_batches_tracked"] = torch.tensor(1000 * n)
        save_file(state, folder / f"epoch-{n:04d}.safetensors")
        torch.save(state, folder / f"{n}epoch.pth")
        size = sum(v.numel() * v.element_size() for v in state.values())
    return size


def exactness(folder: Path, number: int) -> dict[str, float]:
    """Largest distance of each average from the float64 mean, rounded to float32."""
    import torch
    from safetensors import safe_open

    files = [safe_open(str(folder / f"epoch-{n:04d}.safetensors"), "pt") for n in range(1, number + 1)]
    ours = safe_open(str(folder / "average.safetensors"), "pt")
    theirs = torch.load(folder / f"valid.acc.ave_{number}best.pth", weights_only=True, mmap=True)
    worst = {"espnet3": 0.0, "ESPnet2": 0.0}
    for name in ours.keys():  # noqa: SIM118
        values = [file.get_tensor(name) for file in files]
        if not values[0].is_floating_point():
            continue
        exact = torch.stack([v.double() for v in values]).mean(0).float()
        for key, found in (("espnet3", ours.get_tensor(name)), ("ESPnet2", theirs[name])):
            worst[key] = max(worst[key], float((found.double() - exact.double()).abs().max()))
    return worst


def child(python: str, what: str, folder: Path, number: int) -> dict[str, float]:
    """One run, in a process of its own."""
    command = [python, __file__, "--run", what, "--folder", str(folder), "--checkpoints", str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(
            f"{python}: {what}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espnet2", default=os.environ.get("ESPNET2_PYTHON", sys.executable), metavar="PYTHON")
    parser.add_argument("--millions", type=float, default=100)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (default: a temporary folder)")
    parser.add_argument("--run", choices=("espnet3", "ESPnet2"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps({"espnet3": run_ours, "ESPnet2": run_espnet2}[given.run](given.folder, given.checkpoints)))
        return 0
    has = subprocess.run([given.espnet2, "-c", "import espnet2"], capture_output=True).returncode == 0
    if not has:
        print("averaging: needs a Python with ESPnet2: --espnet2 PYTHON (docs/training.md says how to install it)")
        return 1
    sys.path.insert(0, str(ROOT))
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        need = 2.2 * given.checkpoints * given.millions * 4e6
        if shutil.disk_usage(folder).free < need:
            print(f"averaging: needs {need / 1e9:.1f} GB in {folder.parent}; name another place with --folder")
            return 1
        size = write_checkpoints(folder, given.millions, given.checkpoints)
        runs: dict[str, list[dict[str, float]]] = {"espnet3": [], "ESPnet2": []}
        for _ in range(given.rounds):
            for what, python in (("espnet3", sys.executable), ("ESPnet2", given.espnet2)):
                runs[what].append(child(python, what, folder, given.checkpoints))
        worst = exactness(folder, given.checkpoints)
    finally:
        shutil.rmtree(folder)
    print(
        f"{given.checkpoints} checkpoints of {size / 4e6:.0f} M parameters ({size / 1e6:.0f} MB), medians of {given.rounds} runs"
    )
    print(f"{'':10} {'seconds':>9} {'peak MB':>9} {'models':>7} {'error':>9}")
    figures = {}
    for what, found in runs.items():
        seconds = statistics.median(r["seconds"] for r in found)
        peak = statistics.median(r["bytes"] for r in found)
        figures[what] = (seconds, peak / size)
        print(f"{what:10} {seconds:9.2f} {peak / 1e6:9.0f} {peak / size:7.2f} {worst[what]:9.1e}")
    largest = 5000 * 1024 * 4 / size
    bars = [
        ("peak memory, models", figures["espnet3"][1], 1 + largest),
        ("time against ESPnet2's", figures["espnet3"][0] / figures["ESPnet2"][0], 1.0),
        ("distance from the float64 mean", worst["espnet3"], 0.0),
    ]
    short = 0
    for name, figure, target in bars:
        good = figure <= target
        short += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {figure:.2f}, target <= {target:.2f}")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
