"""A training step beside ESPnet2's: the same batches of recorded digit strings, sizes, threads and frontend, by turns.

Conformer 6 x 144 with 4 heads, Transformer decoder of 3 layers, 80 filters at 8 kHz, batches of 50 s of padded audio; forward,
backward, clipping and optimiser of both systems on eight batches from the shortest to the longest. Then this model is
trained for 480 such steps and decoded (beam 10, CTC weight 0.3), to show that it is as good; ESPnet2's error rates for that are
1.47 % (the last epoch) and 0.74 % (the average of five).

    python benchmarks/train_step.py --work DIR [--fsdd ARCHIVE] [--threads 1] [--rounds 3] [--device cpu|cuda] [--no-quality]

Needs ESPnet2 beside it: docs/training.md says how to install that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from digits import digit_strings
from figures import print_bars

BINS, RATE, STEPS_AN_EPOCH = 400_000, 8000, 96
EPOCHS = 5
ESPNET2 = {
    "frontend": "default",
    "frontend_conf": {"fs": RATE, "n_fft": 512, "win_length": 200, "hop_length": 80, "n_mels": 80},
    "normalize": "global_mvn",
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 144,
        "attention_heads": 4,
        "linear_units": 576,
        "num_blocks": 6,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.0,
        "input_layer": "conv2d",
        "macaron_style": True,
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "activation_type": "swish",
        "use_cnn_module": True,
        "cnn_module_kernel": 15,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 4, "linear_units": 576, "num_blocks": 3},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False},
}
OURS = {
    "_target_": "espnet3.models.asr.ASRModel",
    "ctc_weight": 0.3,
    "label_smoothing": 0.1,
    "frontend": {"_target_": "espnet3.models.frontend.Fbank", "sampling_rate": RATE, "n_mels": 80, "n_fft": 512},
    "encoder": {
        "_target_": "espnet3.models.conformer.ConformerEncoder",
        "output_size": 144,
        "heads": 4,
        "hidden": 576,
        "blocks": 6,
        "kernel": 15,
        "dropout": 0.1,
    },
    "decoder": {
        "_target_": "espnet3.models.decoder.TransformerDecoder",
        "size": 144,
        "heads": 4,
        "hidden": 576,
        "blocks": 3,
        "dropout": 0.1,
    },
}


def prepare(work: Path, fsdd: str | None) -> dict[str, Path]:
    """Digit strings, manifests, tokens and statistics, made by this package's own stages."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    from espnet3.data.manifest import write_cuts
    from espnet3.stages import stats, tokenizer

    data = digit_strings(work / "digits", fsdd)
    paths = {part: work / f"{part}.jsonl.gz" for part in ("train", "dev", "test")}
    for part, path in paths.items():
        if path.exists():
            continue
        audio = dict(line.split(maxsplit=1) for line in (data / part / "wav.scp").read_text().splitlines())
        text = dict(line.split(maxsplit=1) for line in (data / part / "text").read_text().splitlines())
        cuts = []
        for name, file in audio.items():
            recording = Recording.from_file(file, recording_id=name)
            spoken = SupervisionSegment(name, name, 0.0, recording.duration, text=text[name])
            cuts.append(MonoCut(name, 0.0, recording.duration, 0, recording=recording, supervisions=[spoken]))
        write_cuts(path, CutSet.from_cuts(cuts))
    paths |= {"tokens": work / "tokens", "cmvn": work / "cmvn.npz"}
    if not paths["cmvn"].exists():
        tokenizer.run({"tokenizer": {"type": "char", "vocab_size": None}}, paths["train"], paths["tokens"])
        conf = {"data": {"sampling_rate": RATE}, "model": OURS}
        stats.run_shard(conf, paths["train"], 1, 1, work / "stats.npz")
        stats.merge([work / "stats.npz"], paths["cmvn"])
    return paths


def batches(paths: dict[str, Path]):
    """Eight of the batches that a budget of BINS padded samples makes, from the shortest to the longest."""
    from espnet3.data.collate import Collate
    from espnet3.data.dataset import ESPnet3Dataset
    from espnet3.data.manifest import read_durations
    from espnet3.text.tokenizer import Tokenizer

    dataset = ESPnet3Dataset(paths["train"], tokenizer=Tokenizer.load(paths["tokens"], "char"))
    ids, durations = read_durations(paths["train"])
    order = sorted(range(len(ids)), key=lambda i: (durations[i], ids[i]))
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * durations[i] * RATE > BINS:
            groups.append([])
        groups[-1].append(i)
    collate = Collate()
    chosen = [groups[i * len(groups) // 8 + len(groups) // 16] for i in range(8)]
    return [collate([dataset[i] for i in group])[1] for group in chosen]


def systems(paths: dict[str, Path], device: str) -> dict[str, tuple]:
    """Model and optimiser of each system, as its recipe has them."""
    import torch

    from espnet3.config.instantiate import instantiate
    from espnet3.models import espnet2
    from espnet3.text.tokenizer import Tokenizer

    size = len(Tokenizer.load(paths["tokens"], "char"))
    torch.manual_seed(0)
    theirs = espnet2.build("espnet2.tasks.asr.ASRTask", ESPNET2, vocab_size=size, cmvn=paths["cmvn"])
    ours = instantiate(OURS, vocab_size=size, cmvn=str(paths["cmvn"]))
    return {
        "ESPnet2": (theirs.to(device).train(), torch.optim.Adam(theirs.parameters(), 1e-4, weight_decay=1e-6)),
        "espnet3": (ours.to(device).train(), torch.optim.AdamW(ours.parameters(), 1e-4, fused=True)),
    }


def step(model, optimizer, batch: dict, precision: Callable) -> None:
    """One training step."""
    import torch

    with precision():
        loss = model(**batch)[0]
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    if loss.is_cuda:
        torch.cuda.synchronize()


def speed(paths: dict[str, Path], rounds: int, device: str) -> float:
    """The table of one precision; the ratio of audio seconds in a second, ours to ESPnet2's."""
    import torch

    chosen = [{k: v.to(device) for k, v in batch.items()} for batch in batches(paths)]
    seconds = [float(batch["speech_lengths"].sum()) / RATE for batch in chosen]
    modes = {"float32": contextlib.nullcontext}
    if device != "cpu":
        modes["bf16"] = lambda: torch.autocast(device, torch.bfloat16)
    for mode, precision in modes.items():
        pair = systems(paths, device)
        times: dict[str, list[list[float]]] = {name: [[] for _ in chosen] for name in pair}
        processor = dict.fromkeys(pair, 0.0)
        for turn in range(rounds + 1):
            for number, batch in enumerate(chosen):
                for name, (model, optimizer) in pair.items():
                    begin, cpu = time.perf_counter(), time.process_time()
                    step(model, optimizer, batch, precision)
                    if turn:  # the first round warms up
                        times[name][number].append(time.perf_counter() - begin)
                        processor[name] += time.process_time() - cpu
        print(f"\n{mode} on {device}: seconds a step, median of {rounds} rounds")
        print(f"{'utterances':>10} {'longest':>8} {'audio':>7} {'ESPnet2':>9} {'espnet3':>9} {'ratio':>6}")
        ratios = []
        for number, batch in enumerate(chosen):
            theirs, ours = (statistics.median(times[name][number]) for name in ("ESPnet2", "espnet3"))
            longest = float(batch["speech_lengths"].max()) / RATE
            print(
                f"{len(batch['speech']):10d} {longest:6.2f} s {seconds[number]:5.1f} s {theirs:7.3f} s {ours:7.3f} s "
                f"{theirs / ours:6.2f}"
            )
            ratios.append(theirs / ours)
        for name, (model, _) in pair.items():
            total = sum(statistics.median(values) for values in times[name])
            size = sum(p.numel() for p in model.parameters()) / 1e6
            used = processor[name] / rounds / len(chosen)
            print(f"{name}: {size:.2f} M parameters, {sum(seconds) / total:.1f} s of audio/s, {used:.3f} CPU s a step")
        ratio = statistics.median(ratios)
        print(f"{mode}: median ratio {ratio:.2f}")
    return ratio


def quality(paths: dict[str, Path], work: Path, seed: int) -> dict[str, float]:
    """Train OURS for 480 steps of 50 s and decode the 200 test utterances: word error rates by weights."""
    from espnet3.io import read_json
    from espnet3.stages import average, decode, score, train

    conf = {
        "seed": seed,
        "data": {"sampling_rate": RATE},
        "tokenizer": {"type": "char", "vocab_size": None},
        "model": OURS,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.002, "betas": [0.9, 0.98], "weight_decay": 0.01},
        "scheduler": {
            "_target_": "espnet3.trainer.schedulers.WarmupCosine",
            "warmup_steps": 240,
            "steps": EPOCHS * STEPS_AN_EPOCH,
        },
        "dataloader": {
            part: {"sampler": {"_target_": "espnet3.trainer.batches.SortedPools", "max_duration": BINS / RATE}}
            for part in ("train", "valid")
        },
        "trainer": {"max_epochs": EPOCHS, "gradient_clip_val": 5.0},
        "best_model_criterion": [["valid/loss", EPOCHS, "min"]],
    }
    folder = work / f"seed{seed}"
    begin = time.perf_counter()
    train.run(conf, paths["train"], paths["dev"], paths["tokens"], paths["cmvn"], folder)
    print(f"trained {EPOCHS} epochs in {time.perf_counter() - begin:.0f} s")
    index, rates = folder / "checkpoints.json", {}
    settings = {"method": "joint", "beam": 10, "ctc_weight": 0.3, "batch_seconds": 60.0}
    for name, monitor, k in (("last epoch", "last", 1), ("average of 5", "last", EPOCHS)):
        weights, out = folder / f"{monitor}.{k}.safetensors", folder / f"decode.{k}"
        average.run(index, monitor, k, weights)
        slice_ = {key: conf[key] for key in ("model", "tokenizer", "data")} | {"decode": settings}
        decode.run_shard(slice_, paths["test"], weights, paths["tokens"], 1, 1, out / "hyp.shard.jsonl")
        decode.merge(paths["test"], [out / "hyp.shard.jsonl"], out / "hyp.jsonl")
        score.run({"score": {"normalize": "none"}}, paths["test"], out / "hyp.jsonl", out)
        rates[name] = read_json(out / "metrics.json")["wer"]
    return rates


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="a folder for data and models; what is there is used again")
    parser.add_argument("--fsdd", help="the archive or its unpacked folder (default: $ESPNET3_FSDD, or it is fetched)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-quality", action="store_true", help="do not train the 480 steps")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(a.threads)
    import logging

    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(a.threads)
    work = Path(a.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    paths = prepare(work, a.fsdd)
    bars = [("audio seconds/s, ratio to ESPnet2's", speed(paths, a.rounds, a.device), 1.5, True)]
    if not a.no_quality:
        rates = quality(paths, work, a.seed)
        bars.append(("WER after 480 steps, last epoch, %", 100 * rates["last epoch"], 1.47, False))
        bars.append(("WER after 480 steps, average of 5, %", 100 * rates["average of 5"], 0.74, False))
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
