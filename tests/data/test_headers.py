"""Headers are read once for each state of a file, by any number of workers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet3.data.headers import CacheWriter, Headers
from espnet3.data.wavheader import BadAudio
from espnet3.io import read_jsonl, write_jsonl
from espnet3.stages import manifest

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 1.0}
LONG_AGO = 1_700_000_000


def build(folder: Path, workers: int = 1) -> tuple[list[str], dict[str, str]]:
    """Accepted ids, and ``{id: reason}``."""
    outputs = folder / "test.jsonl.gz", folder / "test.rejected.jsonl"
    parallel = {"env": "multiprocessing", "n_workers": 2} if workers > 1 else None
    manifest.run({"data": LIMITS}, folder / "corpus.jsonl", "test", *outputs, parallel)
    good, bad = (list(read_jsonl(path)) for path in outputs)
    return [cut["id"] for cut in good], {line["id"]: line["reason"] for line in bad}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_is_read_again_when_its_size_or_time_has_changed(tmp_path, samples, workers):
    names = [f"u{i}" for i in range(6)]
    for name in names:
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
        os.utime(tmp_path / f"{name}.wav", (LONG_AGO, LONG_AGO))
    (tmp_path / "u5.wav").write_bytes(b"no audio")
    os.utime(tmp_path / "u5.wav", (LONG_AGO, LONG_AGO))
    write_jsonl(
        tmp_path / "corpus.jsonl",
        ({"id": n, "split": "test", "audio": str(tmp_path / f"{n}.wav"), "text": "one"} for n in names),
    )
    assert build(tmp_path, workers)[0] == names[:5]
    whole = (tmp_path / "u0.wav").read_bytes()
    for name in ("u0", "u1"):
        # other content of the same size: u0 at the old time, u1 at a new one
        (tmp_path / f"{name}.wav").write_bytes(bytes(len(whole)))
    os.utime(tmp_path / "u0.wav", (LONG_AGO, LONG_AGO))
    (tmp_path / "u2.wav").unlink()
    (tmp_path / "u3.wav").write_bytes(whole[:-100])
    os.utime(tmp_path / "u3.wav", (LONG_AGO, LONG_AGO))
    good, bad = build(tmp_path, workers)
    assert good == ["u0", "u4"]
    assert {name: reason.split(":")[0] for name, reason in bad.items()} == {
        "u1": "unreadable file", "u2": "missing file", "u3": "truncated audio", "u5": "unreadable file",
    }  # fmt: skip


def test_hits_reasons_and_files_that_are_still_fresh(tmp_path, samples):
    soundfile.write(tmp_path / "old.wav", samples, 16000)
    (tmp_path / "bad.wav").write_bytes(b"x")
    for name in ("old.wav", "bad.wav"):
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    soundfile.write(tmp_path / "new.wav", samples, 16000)
    for expected in (0, 2):
        headers = Headers(tmp_path / "cache/x.sqlite")
        assert headers.read(tmp_path / "old.wav").num_samples == len(samples)
        assert headers.read(tmp_path / "new.wav").sampling_rate == 16000
        with pytest.raises(BadAudio, match="unreadable file"):
            headers.read(tmp_path / "bad.wav")
        assert headers.hits == expected and len(headers.fresh) == 2 - expected
        with CacheWriter(tmp_path / "cache/x.sqlite") as writer:
            writer.add(headers.fresh)


def test_a_damaged_or_foreign_cache_is_no_cache(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", np.asarray(samples), 16000)
    os.utime(tmp_path / "a.wav", (LONG_AGO, LONG_AGO))
    cache = tmp_path / "x.sqlite"
    for content in (b"this is no database, though it is long enough to be one" * 40, b""):
        cache.write_bytes(content)
        headers = Headers(cache)
        assert headers.read(tmp_path / "a.wav").num_samples == len(samples) and headers.hits == 0
        with CacheWriter(cache) as writer:
            writer.add(headers.fresh)
        again = Headers(cache)
        again.read(tmp_path / "a.wav")
        assert again.hits == 1


def test_a_cache_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("where the cache's folder should be")
    cache = tmp_path / "file" / "x.sqlite"
    with CacheWriter(cache) as writer:
        writer.add([("a.wav", 1, 1, 8000, 1, 1, None)])
        writer.add([("b.wav", 1, 1, 8000, 1, 1, None)])
    (record,) = caplog.records
    assert "not remembered" in record.message
