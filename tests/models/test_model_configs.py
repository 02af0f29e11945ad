"""Every model in config/model can be picked by name: it validates, trains and decodes with the decoding that goes with it."""

from __future__ import annotations

import pytest
import torch

from espnet3.config.compose import load_configs
from espnet3.config.decoding import resolve_variants
from espnet3.config.instantiate import instantiate
from espnet3.inference.search import build_search

EXPERIMENT = """
defaults:
  - recipe: base
  - data: commands
  - tokenizer: char
  - model: {model}
  - trainer: small
  - decode: {decode}
  - parallel: local
  - _self_
"""
DECODING = {"transducer_small": "transducer"}


@pytest.mark.parametrize("name", ["conformer_small", "ebranchformer_small", "conformer_ctc_small", "transducer_small"])
def test_a_model_by_name(name, repository, project, monkeypatch):
    text = EXPERIMENT.format(model=name, decode=DECODING.get(name, "joint")).lstrip()
    if name == "conformer_ctc_small":
        text += "decode: {variants: {joint: {method: ctc_beam}}}\n"
    (project.root / "config/mine.yaml").write_text(text)
    monkeypatch.chdir(project.root)
    config = load_configs(["mine"], "")["mine"]
    torch.manual_seed(0)
    model = instantiate(config["model"], vocab_size=20)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "speech": 0.1 * torch.randn(2, 24000, generator=generator),
        "speech_lengths": torch.tensor([24000, 15000]),
        "text": torch.randint(1, 19, (2, 7), generator=generator),
        "text_lengths": torch.tensor([7, 5]),
    }
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss, _, _ = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    for settings in resolve_variants(config["decode"]).values():
        nbest = build_search(model, settings)(memory, lengths)
        assert len(nbest) == 2 and all(torch.isfinite(torch.tensor(h.score)) for row in nbest for h in row)
