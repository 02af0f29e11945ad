"""Recordings of any length: memory, speed, and the words at the seams of a recording whose text is known.

python benchmarks/longform.py [--pack exp/asr/pack] [--manifest data/commands/test.jsonl.gz] [--train ...] [--minutes 5 60]

Needs a finished experiment. Its test utterances, with pauses between, are joined to one file of each length, which a fresh
process decodes; each utterance's words in there, found by their times, are compared with what it gives decoded alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from figures import peak_megabytes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from espnet3.data.manifest import read_durations  # noqa: E402
from espnet3.errors import UserError  # noqa: E402
from espnet3.metrics.errors import UtteranceScore, score_utterances, summarise  # noqa: E402
from espnet3.metrics.significance import matched_pairs  # noqa: E402


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default="exp/asr/pack")
    parser.add_argument("--manifest", default="data/commands/test.jsonl.gz")
    parser.add_argument("--train", default="data/commands/train.jsonl.gz", help="its longest utterance is a window")
    parser.add_argument("--minutes", type=float, nargs=2, default=(5.0, 60.0), help="short and long recording (5 60)")
    parser.add_argument("--gap", type=float, nargs=2, default=(0.3, 0.8), help="pauses between utterances, seconds")
    parser.add_argument("--pause", type=float, default=0.3, help="as of transcribe; 0: overlapping windows only")
    parser.add_argument("--utterances", type=int, help="so many of the manifest, the first ones (all)")
    parser.add_argument("--method", help="as of transcribe")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def recogniser(a: argparse.Namespace):
    """The model on one thread, with a window as long as its longest training utterance."""
    import torch

    from espnet3 import from_pretrained

    torch.set_num_threads(1)
    settings = {"method": a.method} if a.method else {}
    window = max(read_durations(a.train)[1])
    return from_pretrained(a.pack, device="cpu", window=window, pause=a.pause, **settings)


def child(a: argparse.Namespace) -> None:
    """Decode one file; its segments, and what they cost, as JSON."""
    audio, output = a.child
    model = recogniser(a)
    wall, cpu = time.monotonic(), time.process_time()
    segments = [[[w.word, w.start, w.end] for w in segment.words] for segment in model.stream(audio)]
    result = {
        "wall": time.monotonic() - wall,
        "cpu": time.process_time() - cpu,
        "megabytes": peak_megabytes(),
        "segments": segments,
    }
    Path(output).write_text(json.dumps(result), encoding="utf-8")


def join(waves: list[np.ndarray], rate: int, minutes: float, gap: tuple[float, float], path: Path):
    """Write utterances in turn, with pauses of faint noise; (utterance, first second, past the last) of each."""
    import soundfile

    generator = np.random.default_rng(0)
    placed, at, number = [], 0, 0
    with soundfile.SoundFile(path, "w", samplerate=rate, channels=1, subtype="PCM_16") as file:
        while at < minutes * 60 * rate:
            wave = waves[number % len(waves)]
            noise = 1e-3 * generator.standard_normal(round(generator.uniform(*gap) * rate))
            file.write(np.concatenate([noise.astype(np.float32), wave]))
            placed.append((number % len(waves), (at + noise.size) / rate, (at + noise.size + wave.size) / rate))
            at, number = at + noise.size + wave.size, number + 1
    return placed


def hear(segments: list, placed: list) -> tuple[list[str], list[bool]]:
    """For each placed utterance the words whose middle lies in it, and whether they are of several segments."""
    middles = [(placed[i][2] + placed[i + 1][1]) / 2 for i in range(len(placed) - 1)]
    texts: list[list[str]] = [[] for _ in placed]
    parts: list[set[int]] = [set() for _ in placed]
    for number, words in enumerate(segments):
        for word, start, end in words:
            i = int(np.searchsorted(middles, (start + end) / 2))
            texts[i].append(word)
            parts[i].add(number)
    return [" ".join(words) for words in texts], [len(found) > 1 for found in parts]


def main() -> int:
    """Print the table and a line for each bar; 1 where one falls short."""
    a = parse()
    if a.child:
        child(a)
        return 0
    for path in (a.pack, a.manifest, a.train):
        if not Path(path).exists():
            raise UserError(f"{path}: not here; run `make decode`, or name a finished experiment (--help)")
    from espnet3.data.dataset import ESPnet3Dataset

    model = recogniser(a)
    data = ESPnet3Dataset(a.manifest)
    items = [data[i][1] for i in range(min(len(data), a.utterances or len(data)))]
    waves, texts = [item["speech"] for item in items], [" ".join(item["text"].split()) for item in items]
    wall = time.monotonic()
    alone = [" ".join(result.text.split()) for result in model.batch(waves)]
    wall = time.monotonic() - wall
    seconds = sum(w.size for w in waves) / model.sampling_rate
    print(
        f"window {model.window:.2f} s, pause {a.pause} s; {len(waves)} utterances decoded alone: {summary(texts, alone)}"
    )
    print(f"{'recording':>12} {'wall s':>8} {'CPU s':>8} {'RTF':>7} {'peak MB':>8} {'WER':>7} {'alone':>7} {'cut':>5}")
    print(f"{'alone':>12} {wall:8.1f} {'':8} {wall / seconds:7.4f}")
    memory, bars = [], []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in a.minutes:
            audio, output = Path(folder, "long.wav"), Path(folder, "out.json")
            placed = join(waves, model.sampling_rate, minutes, a.gap, audio)
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(audio), str(output)]
            subprocess.run(command, check=True)
            result = json.loads(output.read_text())
            found, cut = hear(result["segments"], placed)
            long = score([texts[i] for i, _, _ in placed], found)
            single = score([texts[i] for i, _, _ in placed], [alone[i] for i, _, _ in placed])
            memory.append(result["megabytes"])
            duration = placed[-1][2]
            print(
                f"{duration / 60:8.1f} min {result['wall']:8.1f} {result['cpu']:8.1f} {result['wall'] / duration:7.4f}"
                f" {result['megabytes']:8.0f} {rate(long):7.2%} {rate(single):7.2%} {sum(cut):5d}"
            )
            bars = report(long, single, cut)
    growth = memory[1] / memory[0] - 1
    bars.insert(
        0, (growth <= 0.10, f"memory of the long recording over the short one's: {growth:+.1%}, target <= +10 %")
    )
    for good, line in bars:
        print(f"{'ok  ' if good else 'FAIL'} {line}")
    return int(not all(good for good, _ in bars))


def report(long: list[UtteranceScore], single: list[UtteranceScore], cut: list[bool]) -> list[tuple[bool, str]]:
    """The bars of the long recording: utterances that a seam runs through, and all."""
    more = [x.words.errors - y.words.errors for x, y, c in zip(long, single, cut, strict=True) if c]
    test = matched_pairs(single, long)
    whole = rate(long) - rate(single)
    return [
        (
            sum(more) <= 0,
            f"errors beyond the model's own in {len(more)} utterances with a seam: {sum(more)}, target <= 0",
        ),
        (
            whole <= 0 or test.p >= 0.05,
            f"WER less that of the utterances alone: {whole:+.2%} (matched pairs: p = {test.p:.3f}), target: not "
            "significantly above 0",
        ),
    ]


def score(texts: list[str], found: list[str]) -> list[UtteranceScore]:
    """Utterance by utterance."""
    return score_utterances([(str(i), "", r, h) for i, (r, h) in enumerate(zip(texts, found, strict=True))])


def rate(scored: list[UtteranceScore]) -> float:
    """The WER, a fraction."""
    return summarise(scored)["wer"]


def summary(texts: list[str], found: list[str]) -> str:
    """In words."""
    return f"WER {rate(score(texts, found)):.2%}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
