"""The same ESPnet2 checkpoint decoded by ESPnet2's Speech2Text and by this search, in turns, one thread each.

    python benchmarks/decode.py --model FOLDER [--fsdd ARCHIVE] [--rounds 2] [--utterances N] [--pack exp/fsdd/pack]

Needs ESPnet2 beside this package. FOLDER holds an ESPnet2 recogniser of spoken digits (a config.yaml, a .pth; paths in the
config are relative to FOLDER). The 200 test utterances are connected digits drawn from the Free Spoken Digit Dataset with a
fixed seed (benchmarks/digits.py). ESPnet2 runs as it chooses to (BatchBeamSearch, one utterance at a time); this search at
batch 1 and at batch 16. The utterances are decoded in chunks, each by every system before the next; a ratio is the median
over chunks and rounds. Exits with status 1 where a figure falls short of its bar.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jiwer
import soundfile
import torch
from digits import digit_strings

import espnet3
from espnet3.config.decoding import resolve_variants
from espnet3.errors import UserError
from espnet3.inference.espnet2 import ESPnet2Recogniser
from espnet3.io import read_json

BARS = {
    "search, batch 16": ("search without the encoder, batch 16", 20.0),
    "search, batch 1": ("search without the encoder, batch 1", 4.0),
    "whole, batch 16": ("audio to text, encoder included, batch 16", 8.0),
}


class ESPnet2:
    """ESPnet2's own decoding; *encoder* adds up the seconds in its encoder."""

    def __init__(self, folder: Path, beam: int, ctc_weight: float, nbest: int):
        from espnet2.bin.asr_inference import Speech2Text

        config, weights = _only(folder, "config.yaml"), _only(folder, "*.pth")
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            self.decode = Speech2Text(
                str(config),
                str(weights),
                device="cpu",
                beam_size=beam,
                ctc_weight=ctc_weight,
                lm_weight=0.0,
                nbest=nbest,
            )
        self.model = self.decode.asr_model
        self.encoder = 0.0
        encode = self.model.encode

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return encode(*args, **kwargs)
            finally:
                self.encoder += time.perf_counter() - started

        self.timed, self.plain = timed, encode

    def __call__(self, paths: list[str]) -> tuple[list, float, float]:
        """For each file its n best (text, token ids, score); seconds in all, and without encoder and audio."""
        self.model.encode, self.encoder, reading = self.timed, 0.0, 0.0
        results = []
        started = time.perf_counter()
        for path in paths:
            before = time.perf_counter()
            speech, _ = soundfile.read(path, dtype="float32")
            reading += time.perf_counter() - before
            results.append([(text, list(ids), float(h.score)) for text, _, ids, h in self.decode(speech)])
        whole = time.perf_counter() - started
        self.model.encode = self.plain
        return results, whole, whole - self.encoder - reading


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"{folder}: {len(found)} files {pattern}; name a folder with the one model that is to be decoded"
        )
    return found[0].resolve()


def ours(recogniser: ESPnet2Recogniser, paths: list[str], batch: int) -> tuple[list, float, float]:
    """The same by this search: results, seconds in all, seconds of the search."""
    started = time.perf_counter()
    waveforms = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    encoded, lengths = recogniser.encode(waveforms, batch)
    before = time.perf_counter()
    if batch == 1:
        found = [recogniser.search([e], length[None])[0] for e, length in zip(encoded, lengths, strict=True)]
    else:
        found = recogniser.search(encoded, lengths)
    search = time.perf_counter() - before
    results = [[(recogniser.text(h.tokens), h.tokens, h.score) for h in nbest] for nbest in found]
    return results, time.perf_counter() - started, search


def compare(theirs: list, mine: list) -> tuple[int, int, int, float]:
    """Utterances whose best text is the same; n-best entries of theirs, those of them found in ours; the largest
    difference of a score."""
    same, entries, common, worst = 0, 0, 0, 0.0
    for one, other in zip(theirs, mine, strict=True):
        same += one[0][0] == other[0][0]
        scores = {tuple(ids): score for _, ids, score in other}
        for _, ids, score in one:
            entries += 1
            if tuple(ids) in scores:
                common += 1
                worst = max(worst, abs(score - scores[tuple(ids)]))
    return same, entries, common, worst


def word_errors(references: list[str], results: list) -> float:
    """WER in percent of the best texts."""
    return 100 * jiwer.wer(references, [nbest[0][0] for nbest in results])


def packed(pack: str, recognise: Any, paths: list[str], references: list[str], seconds: float) -> None:
    """RTF and WER of this package's own model."""
    recognise(paths[0])
    started = time.perf_counter()
    results = [[(result.text, [], result.score)] for result in recognise.batch(paths)]
    took = time.perf_counter() - started
    print(
        f"own model {pack} ({recognise.settings['method']}, beam {recognise.settings.get('beam', '-')}): "
        f"{took:.2f} s, RTF {took / seconds:.4f}, WER {word_errors(references, results):.2f} %"
    )


def on_gpu(recogniser: ESPnet2Recogniser, paths: list[str], seconds: float) -> None:
    """RTFx where a GPU is at hand."""
    waveforms = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]).cuda() for path in paths]
    recogniser.model.cuda()
    recogniser.search.slots = 0
    for number in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        recogniser(waveforms, batch=len(waveforms))
        took = time.perf_counter() - started
        if number:
            print(f"GPU {torch.cuda.get_device_name()}: {took:.2f} s, RTFx {seconds / took:.0f}")


def main() -> int:
    """Print the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with ESPnet2's config.yaml and .pth")
    parser.add_argument("--fsdd", help="the archive or its unpacked folder (default: $ESPNET3_FSDD, or it is fetched)")
    parser.add_argument("--data", help="where the utterances are kept for the next time (default: a temporary folder)")
    parser.add_argument("--utterances", type=int, default=200, help="of 200 (default all); fewer for a quick look")
    parser.add_argument(
        "--chunk", type=int, default=100, help="utterances that one system decodes in a turn (default 100)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="passes over all utterances (default 2)")
    parser.add_argument("--beam", type=int, default=10)
    parser.add_argument("--ctc-weight", type=float, default=0.3)
    parser.add_argument("--nbest", type=int, default=5, help="entries whose scores are compared (default 5)")
    parser.add_argument("--pack", help="a packed model of this package, to be shown beside it")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    # what is amiss with it should show before an hour of decoding, not after
    own = {}
    if arguments.pack:
        decodings = resolve_variants(read_json(Path(arguments.pack) / "config.json")["decode"])
        own = {name: espnet3.from_pretrained(arguments.pack, decoding=name, device="cpu") for name in decodings}
    try:
        theirs = ESPnet2(Path(arguments.model).resolve(), arguments.beam, arguments.ctc_weight, arguments.nbest)
    except ImportError as error:
        raise SystemExit(
            f"benchmarks/decode.py needs ESPnet2 beside this package ({error}); see docs/dependencies.md"
        ) from None
    with tempfile.TemporaryDirectory() as temporary:
        folder = digit_strings(arguments.data or temporary, arguments.fsdd) / "test"
        return run(theirs, own, folder, arguments)


def run(theirs: ESPnet2, own: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> int:
    """Decode in turns, compare, report."""
    rows = [line.split() for line in (folder / "wav.scp").read_text().splitlines()]
    # a spread over the speakers where not all are taken
    rows = rows[:: max(1, len(rows) // arguments.utterances)][: arguments.utterances]
    texts = dict(line.split(maxsplit=1) for line in (folder / "text").read_text().splitlines())
    paths, references = [path for _, path in rows], [texts[name] for name, _ in rows]
    seconds = sum(soundfile.info(path).duration for path in paths)
    options = {"beam": arguments.beam, "ctc_weight": arguments.ctc_weight}
    one, several = (ESPnet2Recogniser(theirs.model, nbest=n, **options) for n in (1, arguments.nbest))
    systems = {
        "batch 16": lambda part: ours(one, part, 16),
        "batch 1": lambda part: ours(one, part, 1),
        f"batch 16, {arguments.nbest} best": lambda part: ours(several, part, 16),
    }
    theirs(paths[:1])
    for call in systems.values():
        call(paths[:2])

    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ESPnet2", *systems)}
    found: dict[str, list] = {name: [] for name in spent}
    chunks = [paths[i : i + arguments.chunk] for i in range(0, len(paths), arguments.chunk)]
    for number in range(arguments.rounds):
        for place, chunk in enumerate(chunks):
            calls = {"ESPnet2": theirs, **systems}
            names = list(calls)
            turn = (number * len(chunks) + place) % len(names)
            for name in names[turn:] + names[:turn]:
                results, whole, search = calls[name](chunk)
                spent[name].append((whole, search))
                if number == 0:
                    found[name] += results
            print(f"round {number + 1}, chunk {place + 1} of {len(chunks)}", file=sys.stderr, flush=True)

    print(
        f"{len(paths)} utterances, {seconds:.0f} s of audio, beam {arguments.beam}, CTC {arguments.ctc_weight}, "
        f"{type(theirs.decode.beam_search).__name__}, {arguments.rounds} rounds of {len(chunks)} chunks, one thread"
    )
    print(f"{'':22}{'s':>9}{'RTF':>9}{'search s':>10}{'x':>8}{'x search':>10}{'WER %':>8}")
    ratios: dict[str, tuple[float, float]] = {}
    for name, values in spent.items():
        whole, search = (sum(v[k] for v in values) / arguments.rounds for k in (0, 1))
        ratios[name] = tuple(
            statistics.median(b[k] / v[k] for v, b in zip(values, spent["ESPnet2"], strict=True)) for k in (0, 1)
        )
        print(
            f"{name:22}{whole:9.2f}{whole / seconds:9.4f}{search:10.2f}{ratios[name][0]:8.1f}{ratios[name][1]:10.1f}"
            f"{word_errors(references, found[name]):8.2f}"
        )
    for recognise in own.values():
        packed(arguments.pack, recognise, paths, references, seconds)
    if torch.cuda.is_available():
        on_gpu(one, paths, seconds)
    return bars(ratios, found, f"batch 16, {arguments.nbest} best")


def bars(ratios: dict[str, tuple[float, float]], found: dict[str, list], several: str) -> int:
    """A line for each bar; 1 where one falls short."""
    figures = {
        "search, batch 16": ratios["batch 16"][1],
        "search, batch 1": ratios["batch 1"][1],
        "whole, batch 16": ratios["batch 16"][0],
    }
    short = False
    for name, (what, bar) in BARS.items():
        short |= figures[name] < bar
        print(f"{'FAIL' if figures[name] < bar else 'ok  '} {what}: {figures[name]:.1f} x ESPnet2, target >= {bar:.0f}")
    for name in ("batch 16", "batch 1"):
        same, _, _, worst = compare(found["ESPnet2"], found[name])
        short |= same < len(found[name])
        print(f"{'ok  ' if same == len(found[name]) else 'FAIL'} {name}: same 1-best text {same} of {len(found[name])}")
    _, entries, common, worst = compare(found["ESPnet2"], found[several])
    good = worst <= 1e-3 and common == entries
    print(
        f"{'ok  ' if good else 'FAIL'} n-best: {common} of {entries} entries in both, scores differ by {worst:.1e} at most, "
        "target <= 1e-3"
    )
    return int(short or not good)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"benchmarks/decode.py: {error}")
