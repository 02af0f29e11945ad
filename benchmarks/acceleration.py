"""What the keys `precision: bf16-mixed`, `gradient_checkpointing` and `compile` cost and gain in a training step.

    python benchmarks/acceleration.py --work DIR [--fsdd ARCHIVE] [--threads 1] [--rounds 3] [--device cpu|cuda] [--compile]

The model and the batches are those of benchmarks/train_step.py (Conformer 6 x 144, 50 s of padded audio a batch, from the
shortest utterances to the longest). Each variant runs in a process of its own, by turns; the seconds are medians over batches
and rounds, after one pass that warms up. "MB kept" is what autograd holds between the forward and the backward pass, of the
batch with the most; "MB more" the process's peak above what it had before the first step (on a GPU: the allocator's), scratch
space of the operators included. How far the first gradients lie from those of float32 stands beside it. `--compile` measures
torch.compile as well, which compiles for minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from figures import peak_megabytes, print_bars
from train_step import OURS, RATE, batches, prepare, step

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("float32", "bf16-mixed", "gradient_checkpointing")


def kept(model, batches: list[dict], precision) -> float:
    """Megabytes that autograd keeps for the backward pass, parameters and buffers aside: of the batch with the most."""
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: list[dict[int, int]] = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    for batch in batches:
        found.append({})
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision():
            model(**batch)
    return max(sum(sizes.values()) for sizes in found) / 2**20


def child(variant: str, paths: dict[str, Path], device: str, gradients: Path) -> dict[str, float]:
    """Seconds a step, megabytes kept and at the peak, seconds of the first pass, and the distance of the first gradients."""
    import torch

    from espnet3.config.instantiate import instantiate
    from espnet3.text.tokenizer import Tokenizer
    from espnet3.trainer.acceleration import compile_model, recompute

    torch.manual_seed(0)
    size = len(Tokenizer.load(paths["tokens"], "char"))
    # without dropout the gradients of all variants are of the same function
    still = {**OURS, "encoder": {**OURS["encoder"], "dropout": 0.0}, "decoder": {**OURS["decoder"], "dropout": 0.0}}
    model = instantiate(still, vocab_size=size, cmvn=str(paths["cmvn"])).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    precision = contextlib.nullcontext
    if variant == "bf16-mixed":
        precision = lambda: torch.autocast(device, torch.bfloat16)  # noqa: E731
    elif variant == "gradient_checkpointing":
        recompute(model, True)
    elif variant == "compile":
        compile_model(model, True, device)
    chosen = [{k: v.to(device) for k, v in batch.items()} for batch in batches(paths)]
    times: list[float] = []
    # the interpreter, the weights and the batches are there in any case
    before = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else peak_megabytes()
    begin = time.perf_counter()
    with precision():
        loss = model(**chosen[0])[0]
    loss.backward()
    flat = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    apart = 0.0
    if variant == "float32":
        torch.save(flat, gradients)
    else:
        exact = torch.load(gradients)
        apart = float((flat - exact).norm() / exact.norm())
    for turn in range(2):
        for batch in chosen:
            start = time.perf_counter()
            step(model, optimizer, batch, precision)
            if turn:
                times.append(time.perf_counter() - start)
        if not turn:
            first = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_megabytes()
    return {
        "seconds": statistics.median(times),
        "kept": kept(model, chosen, precision),
        "megabytes": peak - before,
        "first": first,
        "apart": apart,
    }


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data, which a second run finds again")
    parser.add_argument("--fsdd", help="the archive or its unpacked folder (default: $ESPNET3_FSDD, or it is fetched)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    paths = prepare(given.work.resolve(), given.fsdd)
    if given.variant:
        import torch

        torch.set_num_threads(given.threads)
        print(json.dumps(child(given.variant, paths, given.device, given.work / "gradients.pt")))
        return 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "PYTHONPATH": str(ROOT)}
    variants = (*VARIANTS, "compile") if given.compile else VARIANTS
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(given.rounds):
        for variant in variants:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--variant", variant],
                env=environment, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} of {given.rounds}: {variant}", file=sys.stderr, flush=True)
    middle = {v: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for v, rows in found.items()}
    audio = statistics.mean(float(b["speech_lengths"].sum()) / RATE for b in batches(paths))
    print(f"{audio:.0f} s of audio a step, {given.threads} threads, {given.device}, medians of {given.rounds} rounds")
    print(f"{'':24}{'s a step':>10}{'speed':>8}{'MB kept':>9}{'MB more':>9}{'first pass':>12}{'gradients apart':>17}")
    plain = middle["float32"]
    for variant, row in middle.items():
        print(
            f"{variant:24}{row['seconds']:10.3f}{plain['seconds'] / row['seconds']:8.2f}{row['kept']:9.0f}{row['megabytes']:9.0f}"
            f"{row['first']:10.1f} s{row['apart']:17.1e}"
        )
    again = middle["gradient_checkpointing"]
    bars = [
        ("kept for the backward pass with gradient checkpointing, part of float32's", again["kept"] / plain["kept"], 0.5, False),
        ("time of a step with gradient checkpointing, of float32's", again["seconds"] / plain["seconds"], 1.4, False),
        ("distance of gradients with gradient checkpointing", again["apart"], 0.0, False),
    ]  # fmt: skip
    if given.compile:
        bars.append(("distance of compiled gradients", middle["compile"]["apart"], 1e-4, False))
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
