"""A tiny recogniser with random weights, and recordings for it: tones whose pitch glides, as files and as a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from espnet3.config.instantiate import instantiate
from espnet3.data.manifest import make_cut
from espnet3.io import write_jsonl

TOKENS = ["<blank>", "<unk>", "<space>", *"abcdefgh", "<sos/eos>"]
MODEL = {
    "_target_": "espnet3.models.asr.ASRModel",
    "frontend": {"_target_": "espnet3.models.frontend.Fbank", "n_mels": 40},
    "encoder": {
        "_target_": "espnet3.models.conformer.ConformerEncoder",
        "input_size": 40,
        "output_size": 16,
        "heads": 2,
        "hidden": 32,
        "blocks": 2,
        "kernel": 7,
        "subsampling_channels": 4,
    },
    "decoder": {
        "_target_": "espnet3.models.decoder.TransformerDecoder",
        "size": 16,
        "heads": 2,
        "hidden": 32,
        "blocks": 2,
    },
    "ctc_weight": 0.3,
}
JOINT = {
    "method": "joint",
    "beam": 4,
    "ctc_weight": 0.3,
    "length_bonus": 0.0,
    "maxlenratio": 0.0,
    "minlenratio": 0.0,
    "nbest": 1,
    "batch_seconds": 4.0,
}


def slice_of(decode: dict) -> dict:
    return {"decode": decode, "model": MODEL, "tokenizer": {"type": "char"}, "data": {"sampling_rate": 16000}}


def glide(seconds: float, seed: int, rate: int = 16000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = generator.uniform(200, 2000) + generator.uniform(-500, 3000) * np.sin(
        2 * np.pi * generator.uniform(0.5, 3) * t
    )
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * generator.standard_normal(t.size)
    return wave.astype(np.float32)


def make_task(folder: Path, utterances: int = 23) -> dict[str, str]:
    """``manifest``, ``weights`` and ``tokens`` in *folder*; utterances of 0.2 to 1.6 s, not sorted."""
    (folder / "tokens").mkdir(parents=True)
    (folder / "tokens/tokens.txt").write_text("\n".join(TOKENS) + "\n")
    torch.manual_seed(1)
    model = instantiate(MODEL, vocab_size=len(TOKENS))
    with torch.no_grad():
        # sharp enough that hypotheses differ, and likely to end
        model.ctc.output.weight.mul_(12)
        model.decoder.output.weight.mul_(6)
        model.decoder.output.bias[-1] += 2.0
    save_file(model.state_dict(), folder / "weights.safetensors")
    cuts = []
    for i in range(utterances):
        seconds = 0.2 + 1.4 * ((i * 7) % utterances) / utterances
        path = folder / f"u{i:02d}.wav"
        soundfile.write(path, glide(seconds, i), 16000)
        record = {
            "id": f"u{i:02d}",
            "audio": str(path),
            "text": "a bad cab" if i % 2 else "fade",
            "speaker": f"s{i % 3}",
        }
        cuts.append(make_cut(record, 16000, 0.1, 30.0))
    write_jsonl(folder / "test.jsonl.gz", cuts)
    return {
        "manifest": str(folder / "test.jsonl.gz"),
        "weights": str(folder / "weights.safetensors"),
        "tokens": str(folder / "tokens"),
    }


def read_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
