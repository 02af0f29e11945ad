"""A language model trained by its stage, and decodings with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from speech_task import JOINT, TOKENS, make_task, read_lines, slice_of

import espnet3
from espnet3.config.compose import load_configs
from espnet3.config.experiment import Experiment
from espnet3.config.instantiate import instantiate
from espnet3.config.slices import config_slice
from espnet3.errors import UserError
from espnet3.stages import decode, pack
from espnet3.stages import lm as stage

LM = {
    "model": {"_target_": "espnet3.models.lm.TransformerLM", "size": 16, "heads": 2, "hidden": 32, "blocks": 1},
    "transcripts": True,
    "text": None,
    "batch_size": 4,
    "average": 2,
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.03},
    "scheduler": None,
    "trainer": {"max_epochs": 4},
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lm")
    task = make_task(folder, utterances=12)
    text = folder / "more.txt"
    text.write_text("a bad cab\nfade\n" * 10)
    conf = {"seed": 0, "tokenizer": {"type": "char"}, "lm": {**LM, "text": str(text)}}
    execution = {"accelerator": "cpu", "devices": 1}
    stage.run(conf, task["manifest"], task["manifest"], task["tokens"], folder / "exp", execution)
    return folder, task


def test_it_learns_the_text_and_the_average_is_a_model(task):
    folder, _ = task
    index = json.loads((folder / "exp/checkpoints.json").read_text())
    losses = [entry["metrics"]["valid/loss"] for entry in index["checkpoints"]]
    lm = instantiate(LM["model"], vocab_size=len(TOKENS))
    lm.load_state_dict(load_file(folder / "exp/lm.safetensors"))
    lm.eval()
    text = torch.tensor([[TOKENS.index("<space>" if c == " " else c) for c in "a bad cab"]])
    shuffled = text.flip(1)
    length = torch.tensor([text.size(1)])
    assert min(losses) < 1.2 < lm(shuffled, length)[0].item()
    assert lm(text, length)[0].item() < 0.7


def test_a_decoding_with_it_prefers_what_it_knows(task, tmp_path):
    folder, task = task
    settings = {"accelerator": "cpu"}
    plain = {**JOINT, "nbest": 2}
    found = {}
    for weight in (0.0, 2.0):
        conf = slice_of({**plain, "lm_weight": weight} if weight else plain) | {"lm": {"model": LM["model"]}}
        output = tmp_path / f"{weight}.jsonl"
        lm = folder / "exp/lm.safetensors" if weight else None
        decode.run_shard(conf, shard=1, of=1, output=output, execution=settings, lm=lm, **task)
        found[weight] = read_lines(output)
    for record in found[2.0]:
        assert record["score"] == pytest.approx(
            0.3 * record["ctc"] + 0.7 * record["att"] + 2.0 * record["lm"], abs=5e-3
        )
    assert all("lm" not in record for record in found[0.0])
    alike = sum(record["text"] in ("a bad cab", "fade") for record in found[2.0])
    assert [r["text"] for r in found[0.0]] != [r["text"] for r in found[2.0]]
    assert alike >= sum(record["text"] in ("a bad cab", "fade") for record in found[0.0])
    with pytest.raises(UserError, match="language model is not here"):
        conf = slice_of({**plain, "lm_weight": 1.0})
        decode.run_shard(conf, shard=1, of=1, output=tmp_path / "x.jsonl", execution=settings, **task)


def test_an_ngram_model_takes_part(task, tmp_path):
    _, task = task
    arpa = tmp_path / "two.arpa"
    arpa.write_text(
        "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-99 <s> -0.1\n-1 </s>\n-0.3 a -0.2\n-0.4 b -0.1\n-2 <unk>\n\n"
        "\\2-grams:\n-0.1 a b\n-0.2 b a\n\n\\end\\\n"
    )
    conf = slice_of({**JOINT, "ngram": str(arpa), "ngram_weight": 1.0})
    output = tmp_path / "s.jsonl"
    decode.run_shard(conf, shard=1, of=1, output=output, execution={"accelerator": "cpu"}, **task)
    for record in read_lines(output):
        parts = 0.3 * record["ctc"] + 0.7 * record["att"] + record["ngram"]
        assert record["score"] == pytest.approx(parts, abs=5e-3)


def test_a_pack_holds_the_language_models(task, tmp_path):
    folder, task = task
    (tmp_path / "lms").mkdir()
    arpa = tmp_path / "lms/one.arpa"
    arpa.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-99 <s>\n-1 </s>\n-0.3 a\n\n\\end\\\n")
    section = {**JOINT, "nbest": 2, "shards": 1, "average": "valid.loss.ave_1best", "lm_weight": 0.0}
    section["variants"] = {"fused": {"lm_weight": 2.0, "ngram": str(arpa), "ngram_weight": 0.5}, "plain": {}}
    conf = slice_of(section) | {"lm": {"model": LM["model"]}}
    lm = folder / "exp/lm.safetensors"
    pack.run(conf, task["weights"], task["tokens"], [], tmp_path / "pack", "tones", lm=lm)
    card = (tmp_path / "pack/README.md").read_text()
    assert "`lm.safetensors`: the language model" in card and "`one.arpa`: the n-gram model" in card
    own = {k: v for k, v in section.items() if k != "variants"} | section["variants"]["fused"]
    decoded = slice_of(own) | {"lm": {"model": LM["model"]}}
    output = tmp_path / "s.jsonl"
    decode.run_shard(decoded, shard=1, of=1, output=output, execution={"accelerator": "cpu"}, lm=lm, **task)
    # whoever gets the folder has neither the experiment nor the ARPA file
    arpa.unlink()
    moved = shutil.copytree(tmp_path / "pack", tmp_path / "moved")
    files = sorted((folder).glob("*.wav"))
    found = espnet3.from_pretrained(moved, device="cpu").batch(files)
    expected = {record["id"]: record for record in read_lines(output)}
    assert [r.text for r in found] == [expected[path.stem]["text"] for path in files]
    assert [r.scores["lm"] for r in found] == pytest.approx([expected[p.stem]["lm"] for p in files], abs=1e-3)
    assert "lm" not in espnet3.from_pretrained(moved, device="cpu", lm_weight=0)(files[0]).scores
    # packed again without, it leaves nothing behind
    del section["variants"]["fused"]
    pack.run(slice_of(section), task["weights"], task["tokens"], [], tmp_path / "pack", "tones")
    assert not (tmp_path / "pack/lm.safetensors").exists()


def test_without_it_nothing_of_an_experiment_changes():
    (config,) = load_configs(["asr"]).values()
    plain = Experiment("asr", config)
    assert "lm" not in plain.targets and not any("/lm" in path for path in plain.files("pack"))
    assert "lm_weight" not in config_slice(config, "decode.joint")["decode"]
    assert "lm" not in config_slice(config, "pack")
    with pytest.raises(UserError, match=r"needs a language model; add `- lm: small`"):
        load_configs(["asr"], "decode.lm_weight=0.3")
    (config,) = load_configs(["asr"], "+lm=small decode.lm_weight=0.3").values()
    fused = Experiment("asr", config)
    assert fused.language_models("joint") == {"lm": "exp/asr/lm/lm.safetensors"}
    assert fused.language_models("greedy") == {}
    assert "exp/asr/lm/lm.safetensors" in fused.files("decode")
    for reads in ("decode.joint", "pack"):
        assert config_slice(config, reads)["lm"]["model"]["_target_"].endswith("TransformerLM")
