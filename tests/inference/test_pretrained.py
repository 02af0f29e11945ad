"""A packed model: made by the pack stage, loaded, and used on arrays, files and folders."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from speech_task import JOINT, glide, make_task, read_lines, slice_of

import espnet3
from espnet3.errors import UserError
from espnet3.inference.transcribe import main as transcribe
from espnet3.io import read_json, write_json
from espnet3.stages import decode, pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("packed")
    task = make_task(folder / "task", utterances=9)
    metrics = folder / "score/joint/test/metrics.json"
    write_json(metrics, {"wer": 0.125, "cer": 0.05, "ser": 0.5, "utterances": 9, "words": 1234})
    section = {**JOINT, "shards": 4, "average": "valid.loss.ave_5best", "variants": {"joint": {}, "greedy": {}}}
    section["variants"]["greedy"] = {"method": "ctc_greedy"}
    conf = slice_of(section)
    pack.run(conf, task["weights"], task["tokens"], [metrics], folder / "pack", "tones", train=task["manifest"])
    return folder, task


def test_a_pack_holds_what_it_needs_and_a_card(packed):
    folder, task = packed
    names = {path.name for path in (folder / "pack").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokens.txt", "README.md", "metrics.json"}
    card = (folder / "pack/README.md").read_text()
    assert "| joint    | test     |" in card and "12.50" in card and "1,234" in card
    assert read_json(folder / "pack/metrics.json")["joint"]["test"]["wer"] == 0.125
    # what is by half longer than the longest utterance of training is decoded in windows
    assert read_json(folder / "pack/config.json")["durations"] == {"mean": 0.822, "max": 1.444}
    recogniser = espnet3.from_pretrained(folder / "pack", device="cpu")
    assert [recogniser.is_long(np.zeros(n)) for n in (34000, 35000)] == [False, True]
    assert not espnet3.from_pretrained(folder / "pack", device="cpu", window=0).is_long(np.zeros(35000))
    with pytest.raises(UserError, match=r"bpe.model: no such file"):
        conf = {**read_json(folder / "pack/config.json"), "tokenizer": {"type": "bpe"}}
        pack.run(conf, task["weights"], task["tokens"], [], folder / "other", "tones")


def test_it_recognises_what_the_decode_stage_recognises(packed, tmp_path):
    folder, task = packed
    settings = {"accelerator": "cpu"}
    decode.run_shard(slice_of(JOINT), shard=1, of=1, output=tmp_path / "s.jsonl", execution=settings, **task)
    expected = {record["id"]: record for record in read_lines(tmp_path / "s.jsonl")}
    shutil.copytree(folder / "pack", tmp_path / "moved")
    recognise = espnet3.from_pretrained(tmp_path / "moved", device="cpu")
    files = sorted((folder / "task").glob("*.wav"))
    results = recognise.batch(files)
    assert [r.text for r in results] == [expected[path.stem]["text"] for path in files]
    one = recognise(files[3])
    assert one.text == results[3].text and one.tokens == expected[files[3].stem]["tokens"]
    assert one.score == pytest.approx(expected[files[3].stem]["score"], abs=2e-3)
    greedy = espnet3.from_pretrained(tmp_path / "moved", decoding="greedy", device="cpu")(files[3])
    assert set(greedy.scores) == {"ctc"}
    assert len(espnet3.from_pretrained(tmp_path / "moved", nbest=3, device="cpu")(files[3]).nbest) == 3


def test_arrays_of_any_kind_are_heard_alike(packed):
    recognise = espnet3.from_pretrained(packed[0] / "pack", device="cpu")
    wave = glide(1.0, 3)
    expected = recognise(wave)
    assert recognise(np.stack([wave, wave], 1)).text == expected.text
    whole = np.round(wave * 32767).astype(np.int16)
    assert recognise(whole).score == pytest.approx(recognise(whole / 32768.0).score, abs=1e-6)
    assert recognise.read(glide(1.0, 3, 8000), 8000).shape == (16000,)
    with pytest.raises(UserError, match="no samples"):
        recognise(np.zeros(0))
    with pytest.raises(UserError, match="not finite"):
        recognise(np.array([0.0, np.nan]))


def test_foreign_code_is_refused_before_it_runs(packed, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(packed[0] / "pack", bad)
    config = read_json(bad / "config.json")
    for target in ("os.system", "espnet3.io.write_json", "espnet3.models.asr.os.system"):
        config["model"]["specaug"] = {"_target_": target, "command": f"touch {tmp_path}/ran"}
        write_json(bad / "config.json", config)
        with pytest.raises(UserError, match="outside the"):
            espnet3.from_pretrained(bad)
    assert not (tmp_path / "ran").exists()


def test_mistakes_are_named_in_one_line(packed, tmp_path):
    pack_folder = packed[0] / "pack"
    with pytest.raises(UserError, match=r"no packed model here"):
        espnet3.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'joit'; did you mean 'joint'"):
        espnet3.from_pretrained(pack_folder, decoding="joit")
    with pytest.raises(UserError, match=r"'beem'; did you mean 'beam'"):
        espnet3.from_pretrained(pack_folder, beem=3)
    cut = tmp_path / "cut"
    shutil.copytree(pack_folder, cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model.safetensors: not a readable safetensors file"):
        espnet3.from_pretrained(cut)


def test_transcribe_files_and_folders(packed, tmp_path, capsys):
    audio = tmp_path / "audio"
    (audio / "deep").mkdir(parents=True)
    soundfile.write(audio / "a.wav", glide(0.8, 1), 16000)
    soundfile.write(audio / "deep/b.flac", np.stack([glide(1.1, 2, 44100)] * 2, 1), 44100)
    soundfile.write(tmp_path / "c.ogg", glide(0.6, 3, 22050), 22050)
    (audio / "notes.txt").write_text("not audio")
    model = str(packed[0] / "pack")
    assert transcribe([model, str(audio), str(tmp_path / "c.ogg"), "--device", "cpu"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == [str(audio / "a.wav"), str(audio / "deep/b.flac"), str(tmp_path / "c.ogg")]
    output = tmp_path / "out.jsonl"
    assert transcribe([model, str(audio), "--format", "jsonl", "--output", str(output), "--device", "cpu"]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["text"] for r in records] == [text for _, text in lines[:2]]
    assert records[1]["duration"] == pytest.approx(1.1, abs=0.01)


def test_transcribe_goes_on_after_a_file_that_is_no_audio(packed, tmp_path, capsys, caplog):
    soundfile.write(tmp_path / "a.wav", glide(0.8, 1), 16000)
    (tmp_path / "b.wav").write_bytes(b"RIFF nonsense")
    soundfile.write(tmp_path / "c.wav", glide(0.5, 2), 16000)
    assert transcribe([str(packed[0] / "pack"), str(tmp_path), "--device", "cpu"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "b.wav: not readable as audio" in caplog.text
    assert transcribe([str(packed[0] / "pack"), str(tmp_path / "missing.wav"), str(tmp_path / "a.wav")]) == 1
    assert "missing.wav: no such file" in caplog.text and len(capsys.readouterr().out.splitlines()) == 1
