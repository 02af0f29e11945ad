"""Broken Kaldi directories: they end in one line, or list what is broken with its reason; what is untidy is taken."""

from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
from broken import RATE, build, no_hang, speech, wav  # noqa: F401

from espnet3.data.corpora.guess import TARGETS
from espnet3.errors import UserError


def kaldi(folder: Path, speech: np.ndarray, **files: str | bytes) -> dict:
    """A Kaldi directory of the utterances a and b; *files* (``wav_scp=...``) replace its own."""
    place = folder / "test"
    place.mkdir()
    for name in "ab":
        (folder / f"{name}.wav").write_bytes(wav(speech))
    content: dict = {
        "wav_scp": f"a {folder}/a.wav\nb {folder}/b.wav\n",
        "text": "a one\nb two\n",
        "utt2spk": "a s\nb s\n",
    }
    for name, text in (content | files).items():
        data = text if isinstance(text, bytes) else text.replace("FOLDER", str(folder)).encode()
        (place / name.replace("_scp", ".scp")).write_bytes(data)
    return {"_target_": TARGETS["kaldi"], "dirs": {"test": str(place)}}


# Kaldi directories that end in one line
KALDI_LINES = {
    "a pipe in wav.scp": ({"wav_scp": "a cat FOLDER/a.wav |\n"}, r"a is a command .* is not run"),
    "a whole ark": ({"wav_scp": "a FOLDER/a.ark\n"}, r"a is a whole ark"),
    "standard input": ({"wav_scp": "a -\n"}, r"a is '-'"),
    "no path": ({"wav_scp": "a\n"}, r"a has no path"),
    "an id twice": ({"wav_scp": "a FOLDER/a.wav\na FOLDER/b.wav\n"}, r"wav.scp:2: 'a' is there twice"),
    "Latin-1 in text": ({"text": b"a caf\xe9\n"}, r"text: not UTF-8"),
    "an empty line": ({"text": "a one\n\nb two\n"}, r"text:2: the line is empty"),
    "a segment of nothing": ({"segments": "a nobody 0 1\n"}, r"'nobody', which wav.scp lacks"),
    "a segment without an end": ({"segments": "a a 0\n"}, r"is not '<recording> <start> <end>'"),
    "a segment of words": ({"segments": "a a zero one\n"}, r"is not '<recording> <start> <end>'"),
    "an empty wav.scp": ({"wav_scp": ""}, r"the source has no recordings"),
}


@pytest.mark.parametrize("kind", KALDI_LINES)
def test_a_broken_kaldi_directory_ends_in_one_line(kind, speech, tmp_path):
    files, message = KALDI_LINES[kind]
    with pytest.raises(UserError, match=message) as error:
        build(kaldi(tmp_path, speech, **files), tmp_path)
    assert "\n" not in str(error.value)


def ark(folder: Path, speech: np.ndarray, cut: int | None = None) -> None:
    """``x.ark`` with the utterance a at byte 2."""
    with kaldiio.WriteHelper(f"ark:{folder / 'x.ark'}") as writer:
        writer("a", (RATE, speech))
    if cut is not None:
        data = (folder / "x.ark").read_bytes()
        (folder / "x.ark").write_bytes(data[:cut])


# Kaldi directories of which b is fit and a is rejected
KALDI_REJECTED = {
    "a segment beyond the end": ({"segments": "a a 0.5 9.0\nb b 0.0 1.0\n"}, "duration mismatch: 0.500 s"),
    "a negative segment": ({"segments": "a a -0.5 1.0\nb b 0.0 1.0\n"}, "duration mismatch: -0.500 s"),
    "a segment's end before its start": ({"segments": "a a 1.0 0.5\nb b 0.0 1.0\n"}, "duration mismatch: 1.000 s"),
    "a segment of NaN": ({"segments": "a a nan 1.0\nb b 0.0 1.0\n"}, "bad start or end"),
    "an offset out of the ark": ({"wav_scp": "a FOLDER/x.ark:999999\nb FOLDER/b.wav\n"}, "unreadable file: .*beyond the end"),
    "an offset beside the audio": ({"wav_scp": "a FOLDER/x.ark:5\nb FOLDER/b.wav\n"}, "unreadable file: .*holds no audio"),
    "no ark": ({"wav_scp": "a FOLDER/nowhere.ark:2\nb FOLDER/b.wav\n"}, "unreadable file: .*is no file"),
    "a broken ark": ({"wav_scp": "a FOLDER/x.ark:2\nb FOLDER/b.wav\n"}, "unreadable file: .*cut short"),
    "no transcript": ({"text": "b two\n"}, "empty transcript"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KALDI_REJECTED)
def test_a_broken_entry_of_a_kaldi_directory_is_rejected(kind, speech, tmp_path):
    files, reason = KALDI_REJECTED[kind]
    node = kaldi(tmp_path, speech, **files)
    ark(tmp_path, speech, cut=3000 if kind == "a broken ark" else None)
    cuts, rejected = build(node, tmp_path)
    assert [cut["id"] for cut in cuts] == ["b"] and rejected.keys() == {"a"}
    assert pytest.importorskip("re").match(reason, rejected["a"]), rejected


def test_what_is_untidy_in_a_kaldi_directory_is_taken(speech, tmp_path):
    # a BOM, CRLF, tabs, utt2spk unsorted and not whole, a line of text without audio, blanks in a path, Unicode
    (tmp_path / "a file.wav").write_bytes(wav(speech))
    node = kaldi(
        tmp_path, speech, wav_scp="\ufeffb FOLDER/b.wav\r\na\tFOLDER/a file.wav\r\n", text="c x\r\nb  zwei  日本\r\na eins\r\n",
        utt2spk="b s\n",
    )  # fmt: skip
    cuts, rejected = build(node, tmp_path)
    assert [(cut["id"], cut["supervisions"][0]["text"]) for cut in cuts] == [("b", "zwei 日本"), ("a", "eins")]
    assert not rejected and "speaker" not in cuts[1]["supervisions"][0]
    assert cuts[1]["recording"]["sources"][0]["source"].endswith("/a file.wav")
