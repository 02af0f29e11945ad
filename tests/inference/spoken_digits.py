"""A recogniser of rendered digits, really trained, in seconds: one voice, ten words, CTC; and recordings whose text and
word boundaries are known."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from espnet3.config.instantiate import instantiate
from espnet3.data.corpora import espeak
from espnet3.inference.audio import to_model_rate
from espnet3.io import write_json

RATE = 8000
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TOKENS = ["<blank>", "<unk>", *DIGITS, "<sos/eos>"]
MODEL = {
    "_target_": "espnet3.models.asr.ASRModel",
    "frontend": {"_target_": "espnet3.models.frontend.Fbank", "n_mels": 24, "sampling_rate": RATE},
    "encoder": {
        "_target_": "espnet3.models.conformer.ConformerEncoder",
        "input_size": 24,
        "output_size": 48,
        "heads": 2,
        "hidden": 96,
        "blocks": 2,
        "kernel": 9,
        "dropout": 0.0,
        "subsampling_channels": 8,
    },
    "ctc_weight": 1.0,
}
LONGEST = 3.5
"""Seconds of the longest training utterance, about."""


@functools.cache
def spoken(digit: int, rate: int) -> np.ndarray:
    """One digit at *rate* words a minute, without the silence around it."""
    wave = to_model_rate(espeak.synthesise(DIGITS[digit], "en-us", rate), espeak.SAMPLING_RATE, RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1]


def recording(generator: np.random.Generator, count: int, gap: tuple[float, float]) -> tuple[np.ndarray, list[tuple]]:
    """Samples of *count* digits with gaps (s) of faint noise; (word, start, end) of each, in seconds."""
    parts, words, at = [], [], 0

    def add(wave: np.ndarray) -> None:
        nonlocal at
        parts.append(wave)
        at += wave.size

    add(np.zeros(round(generator.uniform(0.05, 0.2) * RATE), np.float32))
    for _ in range(count):
        digit = int(generator.integers(10))
        wave = spoken(digit, int(generator.choice([165, 175, 185])))
        words.append((DIGITS[digit], at / RATE, (at + wave.size) / RATE))
        add(wave * generator.uniform(0.4, 1.0))
        add(np.zeros(round(generator.uniform(*gap) * RATE), np.float32))
    wave = np.concatenate(parts)
    return (wave + 1e-4 * generator.standard_normal(wave.size)).astype(np.float32), words


def train(folder: Path, steps: int = 120) -> Path:
    """A packed model in *folder*; about twelve CPU seconds."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = instantiate(MODEL, vocab_size=len(TOKENS)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.2)
    ids = {token: i for i, token in enumerate(TOKENS)}
    for _ in range(steps):
        made = [recording(generator, int(generator.integers(1, 7)), (0.0, 0.15)) for _ in range(16)]
        labels = [torch.tensor([ids[word] for word, _, _ in words]) for _, words in made]
        lengths = torch.tensor([wave.size for wave, _ in made])
        speech = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave, _ in made], batch_first=True)
        text = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
        loss, _, _ = model(speech, lengths, text, torch.tensor([len(row) for row in labels]))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    section: dict = {
        "method": "ctc_greedy",
        "average": "valid.loss.ave_1best",
        "batch_seconds": 30.0,
        "variants": {"greedy": {}},
    }
    section |= {"beam": 4, "length_bonus": 0.0, "maxlenratio": 0.0, "minlenratio": 0.0}
    config = {"model": MODEL, "tokenizer": {"type": "word"}, "data": {"sampling_rate": RATE}, "decode": section}
    write_json(folder / "config.json", config | {"durations": {"mean": LONGEST / 2, "max": LONGEST}})
    return folder
