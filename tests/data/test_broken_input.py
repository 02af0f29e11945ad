"""Broken input of every kind: it is listed with its reason, or ends in one line; never in a traceback, a hang, or a wrong
manifest. What only looks broken is taken."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from broken import DATA, RATE, build, no_hang, speech, wav, wav_header  # noqa: F401

from espnet3.data.corpora.guess import TARGETS
from espnet3.data.survey import measure, survey
from espnet3.errors import UserError
from espnet3.io import read_jsonl
from espnet3.stages import corpus, manifest

def stored(path: Path, samples: np.ndarray, **options) -> None:
    soundfile.write(path, samples, options.pop("rate", RATE), **options)


def nan(path: Path, speech: np.ndarray) -> None:
    samples = speech.astype(np.float32) / 32768
    samples[700] = np.nan
    stored(path, samples, subtype="FLOAT", format="WAV")


def half_a_flac(path: Path, speech: np.ndarray) -> None:
    stored(path, speech, format="FLAC")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nobody_may_read(path: Path, speech: np.ndarray) -> None:
    path.write_bytes(wav(speech))
    path.chmod(0)


# a file of audio: how it comes about, and the reason with which it is rejected
FILES: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "zero bytes": (lambda p, s: p.write_bytes(b""), "empty file: zero bytes"),
    "one byte": (lambda p, s: p.write_bytes(b"R"), "unreadable file"),
    "header only": (lambda p, s: p.write_bytes(wav_header(40000)), "truncated audio: 0 of 40000 bytes"),
    "header without samples": (lambda p, s: p.write_bytes(wav_header(0)), "empty audio"),
    "half a header": (lambda p, s: p.write_bytes(wav(s)[:20]), "truncated audio: the file ends inside its header"),
    "truncated": (lambda p, s: p.write_bytes(wav(s)[:9000]), "truncated audio: "),
    "truncated flac": (half_a_flac, "truncated audio: the end cannot be decoded"),
    "NaN samples": (nan, "non-finite samples"),
    "0 Hz": (lambda p, s: p.write_bytes(wav(s, rate=0)), "sampling rate of 0 Hz"),
    "stereo where mono is meant": (lambda p, s: stored(p, np.stack([s, s], 1), format="WAV"), "not mono: 2 channels"),
    "text named wav": (lambda p, s: p.write_text("this is no audio\n" * 50), "unreadable file"),
    "an unknown codec": (lambda p, s: p.write_bytes(wav(s, form=0x4242)), "unreadable file"),
    "random bytes": (lambda p, s: p.write_bytes(np.random.default_rng(0).bytes(30000)), "unreadable file"),
    "a missing file": (lambda p, s: None, "missing file"),
    "a dangling link": (lambda p, s: p.symlink_to("nowhere.wav"), "missing file"),
    "a loop of links": (lambda p, s: p.symlink_to(p.name), "unreadable file: Too many levels"),
    "a folder": (lambda p, s: p.mkdir(), "unreadable file: it is a folder"),
    "a FIFO": (lambda p, s: os.mkfifo(p), "unreadable file: it is no regular file"),
    "a device": (lambda p, s: p.symlink_to("/dev/zero"), "unreadable file: it is no regular file"),
    "no permission": (nobody_may_read, "unreadable file: Permission denied"),
    "too short": (lambda p, s: p.write_bytes(wav(s[:800])), "too short: 0.050 s"),
    "too long": (lambda p, s: p.write_bytes(wav(np.tile(s, 30))), "too long: "),
}

# a file that only looks broken: its length in seconds
SOUND: dict[str, tuple[Callable[[Path, np.ndarray], object], float]] = {
    "8 bits": (lambda p, s: stored(p, s, format="WAV", subtype="PCM_U8"), 1.25),
    "24 bits": (lambda p, s: stored(p, s, format="WAV", subtype="PCM_24"), 1.25),
    "float": (lambda p, s: stored(p, s / 32768, format="WAV", subtype="FLOAT"), 1.25),
    "WAVE_FORMAT_EXTENSIBLE": (lambda p, s: stored(p, s, format="WAVEX", subtype="PCM_16"), 1.25),
    "RF64": (lambda p, s: stored(p, s, format="RF64", subtype="PCM_16"), 1.25),
    "mp3 named wav": (lambda p, s: stored(p, s, format="MP3"), 1.25),
    "flac named wav": (lambda p, s: stored(p, s, format="FLAC"), 1.25),
    "another sampling rate": (lambda p, s: stored(p, s, format="WAV", rate=8000), 2.5),
    "unknown size, from a pipe": (lambda p, s: p.write_bytes(wav_header(0x7FFFF000) + s.tobytes()), 1.25),
    "a chunk after the samples": (lambda p, s: p.write_bytes(wav(s) + b"LIST\x04\0\0\0INFO"), 1.25),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_broken_file_is_rejected_with_its_reason(kind, speech, tmp_path):
    make, reason = FILES[kind]
    make(tmp_path / "bad.wav", speech)
    (tmp_path / "good.wav").write_bytes(wav(speech))
    lines = [{"id": name, "audio": f"{name}.wav", "text": "one", "split": "test"} for name in ("bad", "good")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    root = os.geteuid() == 0 and kind == "no permission"
    if root:
        # root may read everything
        for path in (tmp_path, *tmp_path.parents):
            if path.stat().st_mode & 0o005 != 0o005:
                path.chmod(0o755)
        (tmp_path / "out").mkdir(mode=0o777)
        (tmp_path / "out").chmod(0o777)
        # what is imported at first use lies where only root may read
        (tmp_path / "warm").mkdir()
        (tmp_path / "warm/good.wav").write_bytes(wav(speech))
        (tmp_path / "warm/c.jsonl").write_text(json.dumps(lines[1]) + "\n")
        build({"_target_": TARGETS["jsonl"], "path": str(tmp_path / "warm/c.jsonl")}, tmp_path / "warm")
        os.seteuid(65534)
    try:
        cuts, rejected = build({"_target_": TARGETS["jsonl"], "path": str(tmp_path / "c.jsonl")}, tmp_path)
    finally:
        if root:
            os.seteuid(0)
    assert [cut["id"] for cut in cuts] == ["good"]
    assert rejected.keys() == {"bad"} and rejected["bad"].startswith(reason), rejected


@pytest.mark.parametrize("kind", SOUND)
def test_what_only_looks_broken_is_taken(kind, speech, tmp_path):
    make, seconds = SOUND[kind]
    make(tmp_path / "a.wav", speech)
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav", "text": "one", "split": "test"}) + "\n")
    (cut,), rejected = build({"_target_": TARGETS["jsonl"], "path": str(tmp_path / "c.jsonl")}, tmp_path)
    assert not rejected and cut["duration"] == pytest.approx(seconds, abs=0.08)
    assert cut["recording"]["sampling_rate"] == RATE and cut["duration"] * RATE == pytest.approx(
        cut["recording"]["num_samples"]
    )


def test_a_part_from_the_beginning_of_a_file_at_another_rate_keeps_its_length(speech, tmp_path):
    stored(tmp_path / "a.wav", speech, rate=8000)
    line = {"id": "a", "audio": "a.wav", "text": "one", "split": "test", "start": 0.0, "duration": 0.5}
    (tmp_path / "c.jsonl").write_text(json.dumps(line) + "\n")
    (cut,), _ = build({"_target_": TARGETS["jsonl"], "path": str(tmp_path / "c.jsonl")}, tmp_path)
    assert (cut["duration"], cut["supervisions"][0]["duration"]) == (0.5, 0.5)


# a record of which one thing is wrong
RECORDS: dict[str, tuple[dict, str]] = {
    "empty text": ({"text": ""}, "empty transcript"),
    "no text": ({"text": None}, "empty transcript"),
    "a text of blanks": ({"text": " \t\u00a0\u3000"}, "empty transcript"),
    "a list in place of the text": ({"text": ["a"]}, "bad transcript: list"),
    "a control character in the text": ({"text": "a\u0000b"}, "bad transcript: the control character U+0000"),
    "text that was decoded wrongly": ({"text": "caf\ufffd"}, "bad transcript: U+FFFD"),
    "an id with a slash": ({"id": "a/../../b"}, "bad id: 'a/../../b' has a slash"),
    "an id with a blank": ({"id": "a b"}, "bad id: 'a b' is empty or has white space"),
    "an id that is a folder": ({"id": ".."}, "bad id: '..' has a slash"),
    "a very long id": ({"id": "x" * 300}, "bad id: 'xx"),
    "a control character in the id": ({"id": "a\u0007"}, "bad id: 'a\\x07' has a control character"),
    "a list in place of the id": ({"id": ["a"]}, "bad id: ['a'] is no name"),
    "a number in place of the audio": ({"audio": 7}, "bad audio: 7 is no path"),
    "half a character": ({"text": "a \ud800"}, "bad text: half of a character, U+D800"),
    "no audio": ({"audio": None}, "missing audio"),
    "NUL in the path": ({"audio": "a\u0000.wav"}, "unreadable file: a path cannot hold NUL"),
    "a very long path": ({"audio": "x" * 5000}, "unreadable file: File name too long"),
    "a mismatched duration": ({"duration": 9.0}, "duration mismatch: 9.000 s stated, 1.250 s in the file"),
    "a word as duration": ({"duration": "long"}, "bad duration: 'long'"),
    "an infinite start": ({"start": float("inf")}, "bad start"),
    "a negative start": ({"start": -0.5, "duration": 0.5}, "duration mismatch: -0.500 s"),
    "a part beyond the end": ({"start": 1.0, "duration": 5.0}, "duration mismatch: 1.000 s + 5.000 s"),
    "an end before the start": ({"start": 1.0, "duration": -0.5}, "duration mismatch"),
    "a channel that is not there": ({"channel": 3}, "no such channel: 3 of 1"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_broken_record_is_rejected_with_its_reason(kind, speech, tmp_path):
    change, reason = RECORDS[kind]
    (tmp_path / "a.wav").write_bytes(wav(speech))
    good = {"id": "good", "audio": "a.wav", "text": "one", "split": "test"}
    lines = [good, {**good, "id": "bad", **change}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cuts, rejected = build({"_target_": TARGETS["jsonl"], "path": str(tmp_path / "c.jsonl")}, tmp_path)
    assert [cut["id"] for cut in cuts] == ["good"]
    assert len(rejected) == 1 and next(iter(rejected.values())).startswith(reason), rejected


GOOD = '{"id": "a", "audio": "a.wav", "text": "one", "split": "test"}\n'
# a list that cannot be read at all: its format, its name and content, and the line that says so
LISTS: dict[str, tuple[str, str, bytes, str]] = {
    "a comma too many in JSONL": ("jsonl", "c.jsonl", b'{"id": "a",}\n', r"c.jsonl:1: not valid JSON"),
    "a comma too many in JSON": ("jsonl", "c.json", b'[{"id": "a", "audio": "a.wav"},]', r"c.json: not valid JSON"),
    "JSON of a number": ("jsonl", "c.json", b"7", r"neither a list of recordings nor a mapping"),
    "a line that is no object": ("jsonl", "c.jsonl", b"[1, 2]\n", r"c.jsonl:1: not an object"),
    "an empty list": ("jsonl", "c.jsonl", b"", r"the source has no recordings"),
    "a BOM in JSONL": ("jsonl", "c.jsonl", b"\xef\xbb\xbf" + GOOD.encode(), r"c.jsonl:1: not valid JSON .*BOM"),
    "Latin-1 in JSONL": (
        "jsonl",
        "c.jsonl",
        GOOD.replace("one", "caf\xe9").encode("latin-1"),
        r"c.jsonl: damaged file",
    ),
    "a duplicate id": ("jsonl", "c.jsonl", GOOD.encode() * 2, r"two recordings have the id 'a'"),
    "a truncated gzip": ("jsonl", "c.jsonl.gz", gzip.compress(GOOD.encode())[:-9], r"c.jsonl.gz: damaged file"),
    "gzip in name only": ("jsonl", "c.jsonl.gz", GOOD.encode(), r"c.jsonl.gz: damaged file"),
    "a TSV without a header": (
        "tsv",
        "c.tsv",
        b"a\ta.wav\tone\n",
        r"c.tsv:1: none of the columns is the audio .*header",
    ),
    "a TSV without texts": ("tsv", "c.tsv", b"id\taudio\na\ta.wav\n", r"none of the columns is the text"),
    "an empty TSV": ("tsv", "c.tsv", b"", r"c.tsv: the table is empty"),
    "a column twice": ("tsv", "c.tsv", b"id\taudio\ttext\ttext\n", r"a column's name stands twice"),
    "Latin-1 in a TSV": ("tsv", "c.tsv", "id\taudio\ttext\na\ta.wav\tcaf\xe9\n".encode("latin-1"), r"c.tsv: not UTF-8"),
    "no manifest of Lhotse's": ("lhotse", "c.jsonl", b'{"foo": 1}\n', r"c.jsonl:1: nothing that Lhotse can read"),
    "a truncated Lhotse manifest": (
        "lhotse",
        "c.jsonl.gz",
        gzip.compress(b'{"id": "a"}\n' * 99)[:-9],
        r"damaged|Lhotse",
    ),
    "YAML that is none": ("lhotse", "c.yaml", b"{[", r"c.yaml: no manifest that Lhotse can read"),
    "parquet that is none": ("hf", "c.parquet", b"PAR1 and nothing else", r"c.parquet: cannot be (read|loaded)"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_broken_list_ends_in_one_line(kind, speech, tmp_path):
    source, name, content, message = LISTS[kind]
    (tmp_path / "a.wav").write_bytes(wav(speech))
    (tmp_path / name).write_bytes(content)
    place = {"hf": "dataset"}.get(source, "path")
    with pytest.raises(UserError, match=message) as error:
        build({"_target_": TARGETS[source], place: str(tmp_path / name)}, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/corpus.jsonl").exists()


@pytest.mark.parametrize("source", ["jsonl", "tsv", "lhotse"])
def test_a_folder_where_a_list_is_meant_ends_in_one_line(source, tmp_path):
    (tmp_path / "c.jsonl").mkdir()
    with pytest.raises(UserError, match=r"c.jsonl: (not a file|is no regular file|neither Shar)"):
        build({"_target_": TARGETS[source], "path": str(tmp_path / "c.jsonl")}, tmp_path)


def test_untidy_tables_are_taken_and_their_broken_lines_rejected(speech, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(speech))
    content = '\ufeffid\tfile_name\tsentence\r\na\ta.wav\tsaid "one\r\nb\ta.wav\r\nc\ta.wav\tone\tmore\r\nd\t\tone\r\n'
    (tmp_path / "c.tsv").write_bytes(content.encode())
    cuts, rejected = build({"_target_": TARGETS["tsv"], "path": {"test": str(tmp_path / "c.tsv")}}, tmp_path)
    assert [(cut["id"], cut["supervisions"][0]["text"]) for cut in cuts] == [("a", 'said "one')]
    assert {uid: reason.partition(":")[0] for uid, reason in rejected.items()} == {
        "b": "bad line", "c": "bad line", "d": "missing audio",
    }  # fmt: skip


def test_rows_of_a_hugging_face_data_set_are_rejected_one_by_one(speech, tmp_path):
    import datasets

    good = {"bytes": wav(speech), "path": None}
    audio = [
        good,
        None,
        {"bytes": b"", "path": None},
        {"bytes": b"noise", "path": None},
        {"bytes": None, "path": "no.wav"},
        good,
    ]
    rows = {"id": [*"abcdef"], "audio": audio, "text": ["one"] * 5 + [None]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "disk"))
    node = {"_target_": TARGETS["hf"], "dataset": str(tmp_path / "disk"), "splits": {"test": "test"}}
    cuts, rejected = build(node, tmp_path)
    assert [cut["id"] for cut in cuts] == ["a"]
    assert {uid: reason.partition(":")[0] for uid, reason in rejected.items()} == {
        "b": "missing audio", "c": "empty file", "d": "unreadable file", "e": "missing file", "f": "empty transcript",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"id": ["a"], "audio": [{"bytes": b"x"}]}, r"none of the columns is the text"),
        ({"id": ["a"], "text": ["one"]}, r"none of the columns is the audio"),
    ],
    ids=["no text", "no audio"],
)
def test_a_hugging_face_data_set_that_lacks_a_column_ends_in_one_line(rows, message, tmp_path):
    import datasets

    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "disk"))
    with pytest.raises(UserError, match=message):
        build({"_target_": TARGETS["hf"], "dataset": str(tmp_path / "disk"), "splits": {"test": "test"}}, tmp_path)


def test_columns_of_a_wrong_type_are_rejected(speech, tmp_path):
    import datasets

    datasets.Dataset.from_dict({"id": ["a"], "audio": [3], "text": ["one"]}).save_to_disk(str(tmp_path / "disk"))
    node = {"_target_": TARGETS["hf"], "dataset": str(tmp_path / "disk"), "splits": {"test": "test"}}
    with pytest.raises(UserError, match=r"1 of 1 utterances rejected \(1 bad audio\)"):
        build(node, tmp_path)


@pytest.mark.parametrize("kind", ["escape", "absolute", "symbolic link", "hard link", "device", "truncated"])
def test_a_hostile_or_damaged_archive_ends_in_one_line(kind, tmp_path):
    path = tmp_path / "waves.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo({"escape": "an4/../../x.wav", "absolute": "/x.wav"}.get(kind, "an4/etc/x.wav"))
        kinds = {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.BLKTYPE}
        member.type = kinds.get(kind, tarfile.REGTYPE)
        member.linkname = "/etc/passwd" if kind in kinds else ""
        tar.addfile(member)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    node = {"_target_": "espnet3.data.corpora.an4.An4Corpus", "source": str(path), "downloads": str(tmp_path / "d")}
    with pytest.raises(UserError, match=r"would leave the folder|no regular file|cannot be unpacked") as error:
        build(node, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "x.wav").exists() and not (tmp_path / "d/an4").exists()


def test_the_same_audio_twice_is_told_by_the_survey(speech, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(speech))
    records = [
        {"id": uid, "split": split, "audio": str(tmp_path / "a.wav"), "text": "one"}
        for uid, split in (("a", "train"), ("b", "train"), ("c", "valid"), ("d", "test"))
    ]
    found = survey(measure(records, {}), {"train": "train", "valid": "valid", "test": ["test"]})
    assert any("1 recordings are there more than once, such as a and b" in problem for problem in found.problems)
