"""Manifests: what is unfit is left out with its reason, and the rest is a CutSet that Lhotse reads."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.data.manifest import read_cuts, read_durations, write_cuts
from espnet3.errors import UserError
from espnet3.io import read_jsonl, write_jsonl
from espnet3.stages import manifest

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 0.0}
UNIQUE = itertools.count()


def build(folder: Path, records: list[dict], parallel=None, **limits):
    """Run the stage on *records*; the manifest's cuts as dictionaries, and ``{id: reason}`` of what was rejected."""
    folder = folder / f"run{next(UNIQUE)}"
    write_jsonl(folder / "corpus.jsonl", [{"split": "test", "speaker": "s", **record} for record in records])
    output, rejected = folder / "test.jsonl.gz", folder / "test.rejected.jsonl"
    conf = {"data": {**LIMITS, "max_rejected": 1.0, **limits}}
    manifest.run(conf, folder / "corpus.jsonl", "test", output, rejected, parallel)
    return list(read_jsonl(output)), {line["id"]: line["reason"] for line in read_jsonl(rejected)}


def header(data: bytes, rate: int = 16000, size: int | None = None) -> bytes:
    size = len(data) if size is None else size
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + data


@pytest.fixture
def broken(tmp_path, spoken, samples):
    """Files that are wrong in one way each, and the reason that is expected."""
    good = Path(spoken[0]["audio"]).read_bytes()
    nan = samples.copy()
    nan[1000] = np.nan
    made = {
        "zero": (b"", "empty file: zero bytes"),
        "truncated": (good[: len(good) // 2], "truncated audio: "),
        "header-only": (good[:44], "truncated audio: 0 of"),
        "half-a-header": (good[:20], "truncated audio: the file ends inside its header"),
        "no-samples": (header(b""), "empty audio"),
        "0-hz": (header(good[44:], rate=0), "sampling rate of 0 Hz"),
        "text": (b"this is no audio at all", "unreadable file"),
    }
    for name, (data, _) in made.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
    for name, data, subtype in (("nan", nan, "FLOAT"), ("stereo", np.stack([samples, samples], 1), "PCM_16")):
        soundfile.write(tmp_path / f"{name}.wav", data, 16000, subtype=subtype)
    soundfile.write(tmp_path / "whole.flac", samples, 16000)
    flac = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    soundfile.write(tmp_path / "short.wav", samples[:800], 16000)
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 30), 16000)
    expected = {f"{name}.wav": reason for name, (_, reason) in made.items()}
    return expected | {
        "nan.wav": "non-finite samples",
        "stereo.wav": "not mono: 2 channels",
        "cut.flac": "truncated audio: the end cannot be decoded",
        "short.wav": "too short: 0.050 s, data.min_duration is 0.1",
        "long.wav": "too long: ",
        "absent.wav": "missing file",
        ".": "unreadable file: it is a folder",
    }


@pytest.mark.parametrize("parallel", [None, {"env": "local", "n_workers": 2}], ids=["alone", "two workers"])
def test_each_broken_file_is_left_out_with_its_reason(tmp_path, spoken, broken, parallel):
    records = [{"id": f"bad-{name}", "audio": str(tmp_path / name), "text": "one"} for name in broken]
    cuts, rejected = build(tmp_path, [*records, spoken[0]], parallel)
    assert [cut["id"] for cut in cuts] == [spoken[0]["id"]]
    assert rejected.keys() == {f"bad-{name}" for name in broken}
    for name, reason in broken.items():
        assert rejected[f"bad-{name}"].startswith(reason), rejected[f"bad-{name}"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": ""}, "empty transcript"),
        ({"text": " \t\u00a0"}, "empty transcript"),
        ({"text": None}, "empty transcript"),
        ({"id": "two words"}, "bad id"),
        ({"duration": 1.0}, "duration mismatch: 1.000 s stated"),
        ({"duration": "long"}, "bad duration"),
        ({"start": 1.0, "duration": 900.0}, "duration mismatch"),
        ({"start": -1.0, "duration": 1.0}, "duration mismatch"),
        ({"start": float("nan")}, "bad start"),
        ({"channel": 1}, "no such channel: 1 of 1"),
    ],
)
def test_each_wrong_record_is_left_out_with_its_reason(tmp_path, spoken, change, reason):
    _, rejected = build(tmp_path, [{**spoken[1], **change}, spoken[0]])
    assert [text.startswith(reason) for text in rejected.values()] == [True], rejected


def test_of_two_utterances_with_one_id_the_first_stays(tmp_path, spoken):
    cuts, rejected = build(tmp_path, [spoken[0], {**spoken[1], "id": spoken[0]["id"]}])
    assert rejected == {spoken[0]["id"]: "duplicate id"}
    assert cuts[0]["supervisions"][0]["text"] == spoken[0]["text"]


def test_too_many_rejections_end_in_one_line_that_counts_reasons(tmp_path, spoken):
    bad = [{"id": "a", "audio": "absent.wav", "text": "x"}, {"id": "b", "audio": "absent.wav", "text": "x"}]
    empty = {**spoken[2], "text": ""}
    with pytest.raises(UserError) as error:
        build(tmp_path, [*spoken[:2], *bad, empty], max_rejected=0.5)
    message = str(error.value)
    assert "3 of 5 utterances rejected (2 missing file, 1 empty transcript)" in message
    assert "data.max_rejected=0.5" in message and "the first is a (absent.wav: missing file)" in message
    named = next(word for word in message.split() if word.endswith(".rejected.failed.jsonl:")).rstrip(":")
    assert len(list(read_jsonl(named))) == 3
    # Snakemake removes a failed job's declared outputs: the list must not be one of them
    assert not Path(named).with_name("test.rejected.jsonl").exists()
    assert "\n" not in message and not Path(named).with_name("test.jsonl.gz").exists()


def test_nothing_left_is_an_error_however_much_may_be_rejected(tmp_path):
    with pytest.raises(UserError, match="1 of 1 utterances rejected"):
        build(tmp_path, [{"id": "a", "audio": "absent.wav", "text": "x"}])


def test_a_split_that_the_corpus_lacks_is_named(tmp_path, spoken):
    write_jsonl(tmp_path / "corpus.jsonl", spoken)
    with pytest.raises(UserError, match=r"no recording of split 'tset'.*\['test'\]"):
        manifest.run({"data": LIMITS}, tmp_path / "corpus.jsonl", "tset", tmp_path / "o.jsonl.gz", tmp_path / "r.jsonl")


def test_the_manifest_is_what_lhotse_reads_and_writes(spoken_manifest, spoken, tmp_path):
    cuts = read_cuts(spoken_manifest)
    assert [cut.id for cut in cuts] == [record["id"] for record in spoken]
    first = cuts[0]
    assert first.supervisions[0].text == spoken[0]["text"]
    assert first.supervisions[0].speaker == spoken[0]["speaker"]
    assert first.custom["sha256"] == spoken[0]["sha256"]
    assert first.load_audio().shape == (1, first.num_samples)
    assert read_durations(spoken_manifest) == ([cut.id for cut in cuts], [cut.duration for cut in cuts])
    write_cuts(tmp_path / "again.jsonl.gz", cuts)
    assert list(read_cuts(tmp_path / "again.jsonl.gz")) == list(cuts)
    assert read_durations(tmp_path / "again.jsonl.gz") == read_durations(spoken_manifest)


def test_the_same_corpus_gives_the_same_bytes(spoken_manifest, tmp_path):
    source = spoken_manifest.with_name("corpus.jsonl")
    for workers in (1, 2):
        output = tmp_path / f"{workers}.jsonl.gz"
        parallel = {"env": "local", "n_workers": workers}
        manifest.run({"data": LIMITS}, source, "test", output, tmp_path / "r.jsonl", parallel)
        assert output.read_bytes() == spoken_manifest.read_bytes()


def test_parts_channels_and_rates(tmp_path, samples):
    two = np.stack([samples, -samples], axis=1)
    soundfile.write(tmp_path / "two.wav", two, 16000)
    record = {"audio": str(tmp_path / "two.wav"), "text": "one", "channel": 1}
    cuts, rejected = build(
        tmp_path,
        [{**record, "id": "whole"}, {**record, "id": "part", "start": 0.25, "duration": 0.5}],
        sampling_rate=8000,
    )
    assert not rejected
    assert [cut["recording"]["sampling_rate"] for cut in cuts] == [8000, 8000]
    assert (cuts[1]["start"], cuts[1]["duration"], cuts[1]["channel"]) == (0.25, 0.5, 1)


def test_ids_that_json_escapes_are_read_back(tmp_path):
    lines = [{"id": i, "start": 0.0, "duration": 1.5, "other": 1} for i in ('a"b', "a\\b", "émile", "plain")]
    write_jsonl(tmp_path / "m.jsonl.gz", lines)
    assert read_durations(tmp_path / "m.jsonl.gz")[0] == ['a"b', "a\\b", "émile", "plain"]


@pytest.mark.parametrize("damage", ["cut", "no cut"])
def test_a_damaged_manifest_is_named(spoken_manifest, tmp_path, damage):
    path = tmp_path / "m.jsonl.gz"
    if damage == "cut":
        path.write_bytes(spoken_manifest.read_bytes()[:-20])
    else:
        write_jsonl(path, [json.loads('{"a": 1}')])
    with pytest.raises(UserError, match=r"damaged|not a Lhotse cut"):
        read_durations(path)
