"""Manifests too large to hold decoded: what they cost, and that they are what Lhotse reads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from espnet3.data.lazy import BLOCK, IdList, Manifest
from espnet3.data.manifest import read_cuts
from espnet3.errors import UserError
from espnet3.io import write_jsonl
from espnet3.stages import manifest as stage

LIMITS = {"sampling_rate": 16000, "min_duration": 0.1, "max_duration": 30.0, "max_rejected": 0.0}


def test_any_line_is_the_cut_that_lhotse_reads(spoken_manifest):
    cuts = list(read_cuts(spoken_manifest))
    lazy = Manifest(spoken_manifest).cuts(eager=0)
    assert not Manifest(spoken_manifest).cuts().is_lazy
    assert lazy.is_lazy and len(lazy) == len(cuts) == 24
    assert list(lazy) == list(lazy) == cuts and lazy[7] == cuts[7]
    assert list(lazy.subset(first=3)) == cuts[:3]


def test_blocks_ids_and_positions(tmp_path):
    count = 3 * BLOCK + 5
    ids = [f"é{i}" for i in range(count)]
    lines = (
        {"id": uid, "start": 0.0, "duration": i / 7, "recording": {"sampling_rate": 8000 + i}}
        for i, uid in enumerate(ids)
    )
    write_jsonl(tmp_path / "m.jsonl.gz", lines)
    found = pickle.loads(pickle.dumps(Manifest(tmp_path / "m.jsonl.gz")))
    assert found.ids == ids and ids == found.ids and found.ids[-3:] == ids[-3:] and len(found) == count
    assert found.durations.tolist() == [i / 7 for i in range(count)]
    assert found.rates.tolist() == [8000 + i for i in range(count)]
    for i in (0, BLOCK - 1, BLOCK, count - 1, 5):
        assert found[i]["id"] == ids[i] and found.ids.position(ids[i]) == i
    with pytest.raises(KeyError):
        found.ids.position("é")
    with pytest.raises(IndexError):
        found.ids[count]
    assert IdList(["a", "b", "a"]).first_duplicate() == (0, 2) and IdList(["a", "b"]).first_duplicate() is None


@pytest.mark.parametrize(
    "line", ['{"id": 3, "duration": 1.0}', '{"id": "a", "duration": null}', '{"id": "a", "duration": NaN}', "[]"]
)
def test_a_line_that_is_no_cut_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_text('{"id": "u", "start": 0.0, "duration": 1.5}\n' + line + "\n")
    with pytest.raises(UserError, match=r"m\.jsonl:2: not a Lhotse cut"):
        Manifest(tmp_path / "m.jsonl")


MEASURE = """
import sys
from espnet3.data.lazy import Manifest

def peak():
    # ru_maxrss would begin with that of the process that started this one
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
manifest = Manifest(sys.argv[1])
print(len(manifest), (peak() - before) / len(manifest))
"""


def test_a_line_takes_a_few_hundred_bytes(spoken_manifest, tmp_path):
    first = json.dumps(Manifest(spoken_manifest)[0], ensure_ascii=False)
    uid = json.loads(first)["id"]
    with open(tmp_path / "large.jsonl", "w") as handle:
        handle.writelines(first.replace(uid, f"{uid}-{i * 7919:09d}") + "\n" for i in range(40_000))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, each = done.stdout.split()
    assert int(count) == 40_000 and float(each) < 350, f"{each} bytes for each line of {len(first)}"


def test_duplicates_are_found_whatever_the_workers_and_the_line_endings(tmp_path, spoken):
    records = [*spoken[:6], {**spoken[6], "id": spoken[2]["id"]}, *spoken[7:10], {**spoken[11], "id": spoken[0]["id"]}]
    write_jsonl(tmp_path / "corpus.jsonl", records)
    crlf = (tmp_path / "corpus.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "crlf.jsonl").write_bytes(crlf)
    outputs = set()
    for corpus in ("corpus.jsonl", "crlf.jsonl"):
        for workers in (1, 2):
            output, rejected = tmp_path / "o.jsonl.gz", tmp_path / "r.jsonl"
            conf = {"data": {**LIMITS, "max_rejected": 0.5}}
            stage.run(conf, tmp_path / corpus, "test", output, rejected, {"env": "local", "n_workers": workers})
            outputs.add((output.read_bytes(), rejected.read_text()))
    assert len(outputs) == 1
    reasons = [json.loads(line) for line in outputs.pop()[1].splitlines()]
    assert [(r["id"], r["reason"]) for r in reasons] == [
        (spoken[2]["id"], "duplicate id"),
        (spoken[0]["id"], "duplicate id"),
    ]
