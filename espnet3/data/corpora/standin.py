"""Small corpora in the shape of the public ones, spoken by eSpeak NG: to try a recipe without its download.

    python -m espnet3.data.corpora.standin librispeech OUT
    snakemake --profile local exp/librispeech_100/manifests --config \\
        overrides="librispeech_100:data.builder.source=OUT librispeech_100:data.builder.check=false"
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from espnet3.data.audio import resample
from espnet3.data.corpora.espeak import SAMPLING_RATE, synthesise
from espnet3.data.corpora.grammar import sentence
from espnet3.errors import UserError, did_you_mean

_VOICES = ("en-us+m1", "en-us+f1", "en-us+m3", "en-us+f3", "en-us+m5", "en-us+f5")


def _say(path: Path, text: str, rate: int, voice: int, **options: str) -> None:
    samples = synthesise(text, _VOICES[voice % len(_VOICES)], seed=voice).astype(np.float32) / 32768
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, resample(samples, SAMPLING_RATE, rate), rate, **options)


def librispeech(folder: Path, parts: tuple[str, ...] = ("train-clean-100", "dev-clean", "test-clean")) -> None:
    """``LibriSpeech/<part>/<speaker>/<chapter>/``: two speakers a part, two utterances each."""
    rng = random.Random("librispeech")
    for number, part in enumerate(parts):
        for speaker in range(10 * number + 10, 10 * number + 12):
            place = folder / part / str(speaker) / "1000"
            lines = []
            for i in range(2):
                text = sentence(rng)
                _say(place / f"{speaker}-1000-{i:04d}.flac", text, 16000, speaker)
                lines.append(f"{speaker}-1000-{i:04d} {text.upper()}\n")
            (place / f"{speaker}-1000.trans.txt").write_text("".join(lines))


def ljspeech(folder: Path) -> None:
    """``metadata.csv`` and ``wavs/``: 40 utterances of one voice."""
    rng = random.Random("ljspeech")
    lines = []
    for i in range(40):
        text = sentence(rng)
        _say(folder / "wavs" / f"LJ001-{i + 1:04d}.wav", text, 22050, 1, subtype="PCM_16")
        lines.append(f"LJ001-{i + 1:04d}|{text.capitalize()}.|{text.capitalize()}.\n")
    (folder / "metadata.csv").write_text("".join(lines))


def yesno(folder: Path) -> None:
    """60 recordings of eight words, named by them."""
    rng = random.Random("yesno")
    for number in sorted(rng.sample(range(256), 60)):
        words = f"{number:08b}"
        said = " ".join("yes" if bit == "1" else "no" for bit in words)
        _say(folder / f"{'_'.join(words)}.wav", said, 8000, 0, subtype="PCM_16")


def an4(folder: Path) -> None:
    """``etc/`` with transcriptions, ``wav/`` with SPHERE files: 4 and 2 speakers, two utterances each."""
    rng = random.Random("an4")
    for split, speakers, mark in (("train", "abcd", ("<s> ", " </s>")), ("test", "ef", ("", ""))):
        lines = []
        for voice, letter in enumerate(speakers):
            speaker, place = f"f{letter}st", folder / "wav" / f"an4{'_clstk' if split == 'train' else 'test_clstk'}"
            for i in range(2):
                text, uid = sentence(rng), f"an{251 + i}-{speaker}-b"
                _say(place / speaker / f"{uid}.sph", text, 16000, voice, format="NIST", subtype="PCM_16")
                lines.append(f"{mark[0]}{text.upper()}{mark[1]} ({uid})\n")
        (folder / "etc").mkdir(exist_ok=True)
        (folder / "etc" / f"an4_{split}.transcription").write_text("".join(lines))


def commonvoice(folder: Path) -> None:
    """Parquet with the columns of Common Voice's Hugging Face copies, MP3 inside."""
    import io

    import pyarrow
    import pyarrow.parquet

    rng = random.Random("commonvoice")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = []
        for i in range(count):
            text, name = sentence(rng), f"common_voice_en_{split}{i:04d}.mp3"
            samples = synthesise(text, _VOICES[i % len(_VOICES)], seed=i).astype(np.float32) / 32768
            buffer = io.BytesIO()
            soundfile.write(buffer, resample(samples, SAMPLING_RATE, 48000), 48000, format="MP3")
            audio = {"bytes": buffer.getvalue(), "path": name}
            rows.append({
                "client_id": f"{split}-{i % 3}", "path": name, "audio": audio, "sentence": f"{text.capitalize()}.",
                "up_votes": 2, "locale": "en",
            })  # fmt: skip
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"data/{split}-00000-of-00001.parquet")


STANDINS: dict[str, Callable[[Path], None]] = {
    "an4": an4,
    "commonvoice": commonvoice,
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "yesno": yesno,
}


def main(argv: list[str]) -> int:
    """``<name> <folder>``."""
    try:
        if len(argv) != 2 or argv[0] not in STANDINS:
            known = did_you_mean(argv[0], STANDINS) if argv else f"; known: {', '.join(STANDINS)}"
            raise UserError(f"usage: python -m espnet3.data.corpora.standin NAME OUT{known}")
        STANDINS[argv[0]](Path(argv[1]))
    except UserError as error:
        print(f"espnet3: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
