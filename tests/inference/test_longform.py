"""Recordings of any length, by a model that was really trained: words at the seams, times, formats, memory."""

import io
import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from spoken_digits import LONGEST, RATE, recording, train

import espnet3
from espnet3.errors import UserError
from espnet3.inference.audio import read_audio, read_blocks
from espnet3.inference.longform import seam
from espnet3.inference.timestamps import Word
from espnet3.inference.transcribe import main as transcribe
from espnet3.inference.windows import cut_windows


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("digits") / "pack")


def model_of(pack, **settings):
    return espnet3.from_pretrained(pack, device="cpu", **settings)


@pytest.mark.parametrize(
    ("gap", "pause", "overlap"),
    [((0.0, 0.05), 0.0, None), ((0.0, 0.05), 0.0, 0.8), ((0.0, 0.15), 0.3, None), ((0.0, 1.2), 0.3, None)],
    ids=["overlapping", "little overlap", "short gaps", "pauses"],
)
def test_every_word_is_there_once_and_at_its_time(pack, gap, pause, overlap):
    wave, words = recording(np.random.default_rng(7), 150, gap)
    segments = list(model_of(pack, pause=pause, overlap=overlap).stream(wave))
    found = [word for segment in segments for word in segment.words]
    assert [w.word for w in found] == [text for text, _, _ in words]
    assert len(segments) >= wave.size / RATE / LONGEST, "there must be seams for this test to mean anything"
    for word, (_, start, end) in zip(found, words, strict=True):
        assert abs((word.start + word.end) / 2 - (start + end) / 2) < 0.25
    assert all(a.end <= b.start + 0.1 for a, b in pairwise(segments))
    assert [s.text for s in segments] == [" ".join(w.word for w in s.words) for s in segments]


def test_times_of_a_short_recording(pack):
    model = model_of(pack, timestamps=True)
    offsets = []
    for seed in range(8):
        wave, words = recording(np.random.default_rng(seed + 50), 5, (0.0, 0.15))
        result = model(wave)
        assert [w.word for w in result.words] == [text for text, _, _ in words] == result.text.split()
        offsets += [
            (w.start + w.end) / 2 - (start + end) / 2 for w, (_, start, end) in zip(result.words, words, strict=True)
        ]
    assert abs(np.mean(offsets)) < 0.1 and np.abs(offsets).max() < 0.2


def test_the_size_of_blocks_changes_nothing(pack):
    wave, _ = recording(np.random.default_rng(3), 40, (0.0, 0.4))
    model = model_of(pack)
    whole = [(s.text, s.start) for s in model.stream(wave)]
    assert [(s.text, s.start) for s in model.stream(wave[i : i + 1111] for i in range(0, wave.size, 1111))] == whole
    assert model(wave).text == " ".join(text for text, _ in whole)
    assert model(wave).segments and not model(wave[: 3 * RATE]).segments


def test_windows_cover_the_recording_and_share_what_they_say():
    generator = np.random.default_rng(0)
    wave = (0.1 * generator.standard_normal(RATE * 60)).astype(np.float32)
    wave[RATE * 20 : RATE * 21] *= 1e-3
    wave[RATE * 40 : RATE * 50] *= 0.0
    reached = 0
    for window in cut_windows([wave], RATE, 4.0, 1.0, 0.3):
        assert np.array_equal(window.samples, wave[window.start : window.start + window.samples.size])
        assert window.samples.size <= 4 * RATE
        if window.shared:
            assert window.start + window.shared == reached
        elif window.start > reached:
            assert np.abs(wave[reached : window.start]).max() < 1e-2, "sound was left out"
        reached = window.start + window.samples.size
    assert reached == wave.size
    assert list(cut_windows([np.zeros(RATE * 9, np.float32)], RATE, 4.0, 1.0, 0.3)) == []
    assert list(cut_windows([], RATE, 4.0, 1.0, 0.3)) == []


def test_a_seam_loses_and_repeats_no_word():
    def words(*rows):
        return [Word(text, start, start + 0.2, 1.0) for text, start in rows]

    def joined(before, after, low, high):
        kept, taken = seam(before, after, low, high)
        return " ".join(w.word for w in [*before[:kept], *after[taken:]])

    # the second window begins inside "two", the first one ends inside "four"
    before = words(("one", 0.2), ("two", 1.0), ("three", 1.5), ("for", 2.0))
    after = words(("oo", 1.1), ("three", 1.52), ("four", 2.0), ("five", 2.6))
    assert joined(before, after, 1.1, 2.2) == "one two three four five"
    # the same word twice: the one at the same time counts
    before = words(("one", 0.2), ("nine", 1.0), ("nine", 1.5))
    after = words(("nine", 1.02), ("nine", 1.52), ("six", 2.1))
    assert joined(before, after, 0.9, 1.9) == "one nine nine six"
    # no word in common: at a gap between words, next to the middle
    assert joined(words(("a", 0.2), ("b", 1.1)), words(("c", 1.8), ("d", 2.3)), 1.0, 2.0) == "a b c d"
    assert joined(words(("a", 1.4)), words(("x", 1.45), ("d", 2.3)), 1.0, 2.0) in ("a d", "x d")
    assert joined([], words(("d", 2.3)), 1.0, 2.0) == "d" and joined(words(("a", 0.1)), [], 1.0, 2.0) == "a"


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_blocks_are_resampled_as_the_whole_file_is(tmp_path, rate):
    generator = np.random.default_rng(rate)
    for samples in (1, 777, 3 * rate + 17):
        path = tmp_path / "a.wav"
        soundfile.write(path, 0.1 * generator.standard_normal((samples, 2)), rate, subtype="FLOAT")
        whole = read_audio(path, 16000)
        for seconds in (0.37, 10.0):
            blocks = np.concatenate(list(read_blocks(path, 16000, seconds)))
            assert blocks.shape == whole.shape and np.abs(blocks - whole).max() < 1e-6


MEMORY = """
import re, sys, numpy as np, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
import espnet3
model = espnet3.from_pretrained({pack!r}, device="cpu", batch_seconds=14.0)
wave = np.load({wave!r})
def blocks(minutes):
    for _ in range(int(minutes * 60 * 8000 / wave.size)):
        yield wave
peaks = []
for minutes in (1, 12):
    words = sum(len(segment.words) for segment in model.stream(blocks(minutes)))
    # ru_maxrss would begin with that of the process that started this one
    peaks.append(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]))
print(words, *peaks)
"""


def test_memory_does_not_grow_with_the_recording(pack, tmp_path, repository):
    wave, words = recording(np.random.default_rng(1), 30, (0.0, 0.3))
    np.save(tmp_path / "wave.npy", wave)
    script = MEMORY.format(root=str(repository), pack=str(pack), wave=str(tmp_path / "wave.npy"))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    found, short, long = map(int, run.stdout.split())
    assert found == len(words) * int(12 * 60 * RATE / wave.size)
    # twelve times the audio; samples alone would be 23 MB more
    assert long - short < 8 * 1024


def test_transcribe_writes_subtitles_of_long_and_short_files(pack, tmp_path, capsys):
    long, words = recording(np.random.default_rng(2), 60, (0.0, 0.4))
    short, few = recording(np.random.default_rng(4), 3, (0.0, 0.1))
    (tmp_path / "in/deep").mkdir(parents=True)
    soundfile.write(tmp_path / "in/long.flac", np.stack([long, long], 1), RATE)
    soundfile.write(tmp_path / "in/deep/short.mp3", short, RATE)
    soundfile.write(tmp_path / "in/deep/short.ogg", short, RATE)
    (tmp_path / "in/bad.wav").write_bytes(b"nonsense")
    common = [str(pack), str(tmp_path / "in"), "--device", "cpu"]
    with pytest.raises(UserError, match=r"srt of 4 files needs a folder"):
        transcribe([*common, "--format", "srt"])
    for form in ("srt", "vtt", "jsonl", "text"):
        assert transcribe([*common, "--format", form, "--output", f"{tmp_path}/{form}/"]) == 1
    names = {str(p.relative_to(tmp_path / "srt")) for p in (tmp_path / "srt").rglob("*") if p.is_file()}
    assert names == {"long.srt", "deep/short.mp3.srt", "deep/short.ogg.srt"}
    record = json.loads((tmp_path / "jsonl/long.json").read_text())
    assert [w["word"] for s in record["segments"] for w in s["words"]] == [text for text, _, _ in words]
    assert (tmp_path / "text/deep/short.ogg.txt").read_text() == " ".join(text for text, _, _ in few) + "\n"
    cues = (tmp_path / "srt/long.srt").read_text().strip().split("\n\n")
    assert [cue.split("\n")[0] for cue in cues] == [str(n + 1) for n in range(len(cues))]
    texts = [" ".join(cue.split("\n")[2:]) for cue in cues]
    assert " ".join(texts).split() == [text for text, _, _ in words]
    times = [
        float(m) * 60 + float(s.replace(",", ".")) for m, s in re.findall(r"00:(\d\d):(\d\d,\d{3})", "".join(cues))
    ]
    assert times == sorted(times) and times[-1] < long.size / RATE + 1
    assert all(len(line) <= 42 for cue in cues for line in cue.split("\n")[2:])
    assert (tmp_path / "vtt/long.vtt").read_text().startswith("WEBVTT\n\n00:00:")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/in/long.flac\n\n{tmp_path}/in/deep/short.ogg\n"))
        assert transcribe([str(pack), "-", "--device", "cpu"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [len(text.split()) for _, text in lines] == [60, 3]


def test_a_model_without_ctc_says_so(pack):
    model = model_of(pack)
    model.model.ctc_weight = 0.0
    with pytest.raises(UserError, match="a recording longer than a window: it aligns by CTC"):
        list(model.stream(np.zeros(RATE * 60, np.float32)))
