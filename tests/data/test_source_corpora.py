"""One corpus through every source: the same manifest, the same first batch; and what each format has of its own."""

from __future__ import annotations

import json
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet3.data.convert import convert
from espnet3.data.corpora.guess import builder_node
from espnet3.data.dataset import ESPnet3Dataset
from espnet3.data.loader import make_dataloader
from espnet3.errors import UserError
from espnet3.io import read_jsonl, write_jsonl
from espnet3.stages import corpus, manifest

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 0.0}
SOURCES = {"kaldi": "kaldi", "jsonl": "jsonl", "tsv": "tsv", "lhotse": "lhotse", "shar": "lhotse", "hf": "hf"}
SOURCES |= {"hf-disk": "hf"}


def build(node: dict, folder: Path, split: str = "test") -> list[dict]:
    """The cuts of a corpus's split."""
    corpus.run({"data": {"builder": node}}, folder / "corpus.jsonl")
    output = folder / f"{split}.jsonl.gz"
    manifest.run({"data": LIMITS}, folder / "corpus.jsonl", split, output, folder / f"{split}.rejected.jsonl")
    return list(read_jsonl(output))


@pytest.fixture(scope="session")
def listed(spoken, tmp_path_factory) -> Path:
    """The spoken utterances as a JSONL file, ordered as Kaldi orders them; the texts have Unicode and odd spaces."""
    path = tmp_path_factory.mktemp("listed") / "test.jsonl"
    keys = ("id", "audio", "text", "speaker", "split")
    records = [{key: record[key] for key in keys} for record in spoken[:12]]
    records[3]["text"] = "zwölf  naïve\u00a0日本 "
    write_jsonl(path, sorted(records, key=lambda r: r["id"].encode()))
    return path


@pytest.fixture(scope="session")
def forms(listed, tmp_path_factory) -> dict[str, Path]:
    """The same corpus in every format that there is."""
    folder = tmp_path_factory.mktemp("forms")
    for kind in SOURCES:
        assert convert(("jsonl", str(listed)), kind, str(folder / kind)) == {"test": 12}
    return {kind: folder / kind for kind in SOURCES}


def facts(cuts: list[dict]) -> list[tuple]:
    supervisions = [cut["supervisions"][0] for cut in cuts]
    return [
        (cut["id"], cut["start"], cut["duration"], s["text"], s["speaker"])
        for cut, s in zip(cuts, supervisions, strict=True)
    ]


def test_every_source_gives_the_same_manifest_and_the_same_first_batch(forms, listed, tmp_path):
    expected = facts(build(builder_node("jsonl", str(listed)), tmp_path / "original"))
    assert len(expected) == 12 and expected[3][3] == "zwölf naïve 日本"
    first = None
    for form, kind in SOURCES.items():
        folder = tmp_path / form
        assert facts(build(builder_node(kind, str(forms[form])), folder)) == expected, form
        (uids, batch) = next(iter(make_dataloader(ESPnet3Dataset(folder / "test.jsonl.gz"), batch_size=5)))
        assert batch["speech"].abs().max() > 0.05
        if first is None:
            first = uids, batch
        assert uids == first[0] and batch.keys() == first[1].keys(), form
        for name, value in batch.items():
            same = torch.equal(value, first[1][name]) if isinstance(value, torch.Tensor) else value == first[1][name]
            assert same, (form, name)


def test_sources_that_point_to_files_copy_none(forms, tmp_path):
    for form in ("kaldi", "jsonl", "tsv", "lhotse"):
        build(builder_node(SOURCES[form], str(forms[form])), tmp_path / form)
        assert not (tmp_path / form / "audio").exists(), form


def test_parts_of_recordings_stay_parts_where_the_format_allows_it(spoken, tmp_path):
    uid, whole = spoken[0]["id"], soundfile.read(spoken[0]["audio"], dtype="int16")[0]
    parts = [("a", 0.0, 0.4), ("b", 0.4, 0.30625), ("c", 0.70625, 0.25)]
    lines = [
        {"id": f"{uid}-{name}", "audio": spoken[0]["audio"], "text": name, "start": start, "duration": duration}
        | {"split": "test", "speaker": "s"}
        for name, start, duration in parts
    ]
    write_jsonl(tmp_path / "parts.jsonl", lines)
    expected = build(builder_node("jsonl", str(tmp_path / "parts.jsonl")), tmp_path / "original")
    for form, kind in SOURCES.items():
        convert(("jsonl", str(tmp_path / "parts.jsonl")), form, str(tmp_path / "forms" / form))
        cuts = build(builder_node(kind, str(tmp_path / "forms" / form)), tmp_path / form)
        assert [cut["supervisions"][0]["text"] for cut in cuts] == ["a", "b", "c"]
        if form in ("kaldi", "jsonl", "tsv", "lhotse"):
            assert [(c["start"], c["duration"]) for c in cuts] == [(c["start"], c["duration"]) for c in expected], form
            assert all(cut["recording"]["sources"][0]["source"] == spoken[0]["audio"] for cut in cuts)
        for position, (_, start, duration) in enumerate(parts):
            _, item = ESPnet3Dataset(tmp_path / form / "test.jsonl.gz")[position]
            wanted = whole[round(start * 16000) : round((start + duration) * 16000)]
            assert np.array_equal(np.rint(item["speech"] * 32768), wanted), (form, position)


def test_arks_and_allowed_commands_are_written_out(spoken, tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    samples = [soundfile.read(record["audio"], dtype="int16")[0] for record in spoken[:3]]
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path / 'wav.ark'},{folder / 'wav.scp'}") as ark:
        ark("one", (16000, samples[0]))
        ark("two", (16000, samples[1]))
    with open(folder / "wav.scp", "a") as scp:
        scp.write(f"three cat '{spoken[2]['audio']}' |\n")
    (folder / "text").write_text("one a\ntwo b\nthree c\n")
    node = builder_node("kaldi", str(tmp_path))
    with pytest.raises(UserError, match=r"three is a command .* is not run.*allow_pipes"):
        corpus.run({"data": {"builder": node}}, tmp_path / "out" / "corpus.jsonl")
    for run in (1, 2):  # again over what is there
        node["allow_pipes"] = True
        cuts = build(node, tmp_path / "out")
        assert [cut["id"] for cut in cuts] == ["one", "two", "three"], run
    for position, wanted in enumerate(samples):
        _, item = ESPnet3Dataset(tmp_path / "out" / "test.jsonl.gz")[position]
        assert np.array_equal(np.rint(item["speech"] * 32768), wanted)


def test_a_pickle_in_an_ark_is_not_opened(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    (tmp_path / "evil.ark").write_bytes(
        b"a PKL" + b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR."
    )
    (folder / "wav.scp").write_text(f"a {tmp_path / 'evil.ark'}:2\n")
    (folder / "text").write_text("a text\n")
    corpus.run({"data": {"builder": builder_node("kaldi", str(tmp_path))}}, tmp_path / "out" / "corpus.jsonl")
    (record,) = read_jsonl(tmp_path / "out" / "corpus.jsonl")
    assert "holds no audio" in record["rejected"] and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("shape", ["list", "mapping", "lines"])
def test_json_files_of_every_shape(spoken, tmp_path, shape):
    one = {"audio_filepath": spoken[0]["audio"], "text": "one", "duration": spoken[0]["duration"], "lang": "en"}
    content = {
        "list": json.dumps([{**one, "id": "u"}]),
        "mapping": json.dumps({"u": one}, indent=1),
        "lines": json.dumps({**one, "utt_id": "u"}) + "\n" + json.dumps({**one, "utt_id": "v"}) + "\n",
    }
    (tmp_path / "mine.json").write_text(content[shape])
    node = {**builder_node("jsonl", str(tmp_path / "mine.json")), "fractions": {}}
    cuts = build(node, tmp_path / "out", "train")
    assert [cut["id"] for cut in cuts] == ["u", "v"][: len(cuts)] and len(cuts) == (2 if shape == "lines" else 1)
    assert cuts[0]["supervisions"][0]["language"] == "en"


def test_a_hugging_face_audio_folder_needs_no_torchcodec(spoken, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(Path(spoken[0]["audio"]).read_bytes())
    (folder / "metadata.csv").write_text("file_name,transcription\na.wav,hello\n")
    for streaming in (None, False):
        node = {**builder_node("hf", str(tmp_path / "corpus")), "streaming": streaming}
        (cut,) = build(node, tmp_path / f"out-{streaming}")
        assert (cut["id"], cut["supervisions"][0]["text"]) == ("a", "hello")
        assert cut["recording"]["sources"][0]["source"] == str(folder / "a.wav")


def test_recordings_and_supervisions_and_cuts_of_many_supervisions(spoken, tmp_path):
    from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    recording = Recording.from_file(spoken[0]["audio"], recording_id="rec")
    segments = [
        SupervisionSegment("s1", "rec", 0.0, 0.5, text="a"),
        SupervisionSegment("s2", "rec", 0.5, 0.25, text="b"),
    ]
    (tmp_path / "pair").mkdir()
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "pair/x_recordings_test.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(tmp_path / "pair/x_supervisions_test.jsonl.gz")
    cut = MonoCut("cut", 0.0, recording.duration, 0, supervisions=segments, recording=recording)
    (tmp_path / "cuts").mkdir()
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts/test.jsonl.gz")
    # one that lies in no file: Lhotse has to make its audio
    CutSet.from_cuts([cut.trim_to_supervisions()[0].perturb_speed(1.1)]).to_file(tmp_path / "cuts/train.jsonl.gz")
    for kind in ("pair", "cuts"):
        cuts = build(builder_node("lhotse", str(tmp_path / kind)), tmp_path / f"out-{kind}")
        assert [(c["id"], c["start"], c["duration"]) for c in cuts] == [("s1", 0.0, 0.5), ("s2", 0.5, 0.25)]
    (faster,) = build(builder_node("lhotse", str(tmp_path / "cuts")), tmp_path / "out-cuts", "train")
    assert faster["duration"] == pytest.approx(0.5 / 1.1, abs=1e-3) and "/out-cuts/audio/" in str(faster["recording"])


def test_splits_are_drawn_by_speaker_when_asked(tmp_path):
    lines = [{"id": f"u{i}", "audio": f"{i}.wav", "text": "x", "speaker": f"s{i % 20}"} for i in range(400)]
    write_jsonl(tmp_path / "mine.jsonl", lines)
    node = {**builder_node("jsonl", str(tmp_path / "mine.jsonl")), "split_by": "speaker"}
    corpus.run({"data": {"builder": node}}, tmp_path / "out" / "corpus.jsonl")
    speakers: dict[str, set] = {}
    for record in read_jsonl(tmp_path / "out" / "corpus.jsonl"):
        speakers.setdefault(record["split"], set()).add(record["speaker"])
    assert {split: len(names) for split, names in speakers.items()} == {"train": 18, "valid": 1, "test": 1}
    write_jsonl(tmp_path / "mine.jsonl", lines[:2])
    with pytest.raises(UserError, match="2 speakers cannot be shared"):
        corpus.run({"data": {"builder": node}}, tmp_path / "out" / "corpus.jsonl")
