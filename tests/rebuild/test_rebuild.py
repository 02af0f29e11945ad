"""Edits of a finished experiment, really run again: exactly the jobs that depend on the edit, and then none.

A job is named after its log. What must run is: a job whose slice, recordings or files have changed, and each job that reads
what such a job has made anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from rebuild_lab import Lab

PAIRS = [(decoding, test_set) for decoding in ("joint", "greedy") for test_set in ("test", "other")]
JOINT = PAIRS[:2]
ON_TEST = PAIRS[::2]
LEAVES = {"report", "pack"}


def conf(*stages: str) -> set[str]:
    return {f"conf.{stage}" for stage in stages}


def scored(*pairs: tuple[str, str]) -> set[str]:
    return {f"{job}.{d}.{t}" for d, t in pairs for job in ("hypotheses", "score")} | LEAVES


def decoded(*pairs: tuple[str, str], shards: int = 1) -> set[str]:
    return {f"decode.{d}.{t}.{i}-of-{shards}" for d, t in pairs for i in range(1, shards + 1)} | scored(*pairs)


def listed(*splits: str) -> set[str]:
    return {f"{job}.{split}" for split in splits for job in ("recordings", "manifest")}


ALL_DECODED = conf("decode.joint", "decode.greedy") | decoded(*PAIRS)
AVERAGED = {"average.valid.loss.2"} | decoded(*PAIRS)
TRAINED = {"train"} | AVERAGED
FROM_TRAINING_DATA = {"corpus", "tokenizer", "stats.1-of-1", "stats"} | listed("train") | TRAINED
FROM_TEST_DATA = {"corpus"} | listed("test") | decoded(*ON_TEST)


@dataclass
class Step:
    """An edit, the jobs that it must cost, and what ``why`` must name."""

    apply: Callable[[Lab], object]
    jobs: set[str] = field(default_factory=set)
    why: tuple[str, ...] = ("nothing to be done",)
    as_before: bool = False
    fails: bool = False
    options: tuple[str, ...] = ()


def own(old: str, new: str) -> Callable[[Lab], object]:
    return lambda lab: lab.replace("config/own.yaml", old, new)


def append(path: str, text: str) -> Callable[[Lab], object]:
    return lambda lab: (lab.root / path).write_text((lab.root / path).read_text() + text)


def delete(*paths: str) -> Callable[[Lab], object]:
    def apply(lab: Lab) -> None:
        for path in paths:
            target = lab.root / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return apply


def put(source: str, path: str) -> Callable[[Lab], object]:
    """Replace the content of *path* in place."""
    return lambda lab: shutil.copyfile(lab.root / source, lab.root / path)


def touch(*paths: str) -> Callable[[Lab], object]:
    return lambda lab: [os.utime(lab.root / path) for path in paths]


def line(split: str, of: str) -> str:
    return json.dumps({"id": f"{split}-new", "split": split, "audio": f"{of}.wav", "text": "turn on the light"}) + "\n"


def both(*edits: Callable[[Lab], object]) -> Callable[[Lab], object]:
    return lambda lab: [edit(lab) for edit in edits]


MARK = "\n_MARK = 1\n"
SEARCH = "espnet3/inference/search/beam.py"
BEAM = conf("decode.joint", "report", "pack") | decoded(*JOINT)

EDITS: dict[str, list[Step]] = {
    "comment": [Step(own("seed: 0", "# a comment\nseed: 0"))],
    "key order": [Step(own("{beam: 2, shards: 1,", "{shards: 1, beam: 2,"))],
    "equal spelling": [Step(own("lr: 0.002", "lr: 2.0e-3"))],
    "workers": [
        Step(own("num_workers: 0", "num_workers: 2")),
        Step(append("config/own.yaml", "parallel: {n_workers: 3}\n")),
    ],
    "beam, and back": [
        Step(own("beam: 2", "beam: 3"), BEAM, ("decode.beam: 2 → 3",)),
        Step(own("beam: 3", "beam: 2"), BEAM, ("decode.beam: 3 → 2",), as_before=True),
    ],
    "CTC weight": [Step(own("ctc_weight: 0.3", "ctc_weight: 0.5"), BEAM, ("decode.ctc_weight: 0.3 → 0.5",))],
    "averaging K": [
        Step(
            own("ave_2best", "ave_1best"),
            {"average.valid.loss.1"} | ALL_DECODED | conf("report", "pack"),
            ('decode.average: "valid.loss.ave_2best" → "valid.loss.ave_1best"',),
        )
    ],
    "seed": [Step(own("seed: 0", "seed: 1"), conf("train", "report") | TRAINED, ("seed: 0 → 1",))],
    "epochs up, and down": [
        Step(own("max_epochs: 2", "max_epochs: 3"), conf("train", "report") | TRAINED, ("trainer.max_epochs: 2 → 3",)),
        Step(
            own("max_epochs: 3", "max_epochs: 2"),
            conf("train", "report") | TRAINED,
            ("trainer.max_epochs: 3 → 2",),
            as_before=True,
        ),
    ],
    "model width": [
        Step(
            own("hidden: 32, heads: 2, kernel", "hidden: 48, heads: 2, kernel"),
            conf("train", "report", "pack") | TRAINED | ALL_DECODED,
            ("model.encoder.hidden: 32 → 48",),
        )
    ],
    "tokenizer": [
        Step(
            own("tokenizer: char", "tokenizer: word"),
            conf("tokenizer", "train", "score", "report", "pack") | {"tokenizer"} | TRAINED | ALL_DECODED,
            ('tokenizer.type: "char" → "word"',),
        )
    ],
    "batch size of training": [
        Step(
            own("max_duration: 25.0", "max_duration: 12.0"),
            conf("train", "report") | TRAINED,
            ("dataloader.train.sampler.max_duration: 25.0 → 12.0",),
        )
    ],
    "batch size of decoding": [
        Step(
            own("batch_seconds: 60.0", "batch_seconds: 1.0"),
            ALL_DECODED | conf("report", "pack"),
            ("decode.batch_seconds",),
        )
    ],
    "a test set added, and removed": [
        Step(
            own("test: [test, other]", "test: [test, other, third]"),
            conf("report") | listed("third") | decoded(("joint", "third"), ("greedy", "third")),
            ('data.test: ["test", "other"] → ["test", "other", "third"]',),
        ),
        Step(
            own("test: [test, other, third]", "test: [test, other]"),
            conf("report") | LEAVES,
            ('data.test: ["test", "other", "third"] → ["test", "other"]',),
        ),
    ],
    "shards of decoding": [
        Step(
            own("beam: 2, shards: 1", "beam: 2, shards: 2"),
            conf("report", "pack") | decoded(*PAIRS, shards=2),
            ("decode.shards: 1 → 2", "shards: 1 → 2"),
            as_before=True,
        )
    ],
    "shards of statistics": [
        Step(
            own("stats: {shards: 1}", "stats: {shards: 2}"),
            {"stats.1-of-2", "stats.2-of-2", "stats"},
            ("stats/shard-1-of-2.npz", "shards: 1 → 2"),
            as_before=True,
        )
    ],
    "scoring": [
        Step(
            own("normalize: none", "normalize: basic"),
            conf("score") | {f"score.{d}.{t}" for d, t in PAIRS} | LEAVES,
            ("score.normalize",),
        )
    ],
    "a wav of the test set replaced, and put back": [
        Step(
            both(put("own/test/test-0.wav", "own/kept.wav"), put("own/third/third-0.wav", "own/test/test-0.wav")),
            FROM_TEST_DATA,
            ("data/own: test: audio replaced: test-0 (own/test/test-0.wav)",),
        ),
        Step(put("own/kept.wav", "own/test/test-0.wav"), FROM_TEST_DATA, ("audio replaced: test-0",), as_before=True),
    ],
    "a wav of the training set replaced": [
        Step(
            put("own/third/third-0.wav", "own/train/train-3.wav"),
            FROM_TRAINING_DATA,
            ("data/own: train: audio replaced: train-3 (own/train/train-3.wav)",),
        )
    ],
    "a line added to the test set, another corrected": [
        Step(
            append("own/corpus.jsonl", line("test", "third/third-1")),
            FROM_TEST_DATA,
            ("data/own: test: new: test-new",),
        ),
        Step(
            lambda lab: lab.replace("own/corpus.jsonl", "turn on the light", "turn on the lights"),
            FROM_TEST_DATA,
            ('test: changed: test-new (text: "turn on the light" → "turn on the lights")',),
        ),
    ],
    "a line added to the training set": [
        Step(append("own/corpus.jsonl", line("train", "third/third-1")), FROM_TRAINING_DATA, ("train: new: train-new",))
    ],
    "times of a wav, of the list and of a manifest": [
        Step(touch("own/train/train-0.wav", "own/test/test-0.wav")),
        Step(touch("own/corpus.jsonl")),
        Step(touch("data/own/train.jsonl.gz", "config/own.yaml", SEARCH)),
    ],
    "a comment and a docstring": [
        Step(
            both(
                append(SEARCH, "\n# a comment\n"),
                lambda lab: lab.replace("espnet3/models/asr.py", '"""', '"""Other words. ', 1),
                append("espnet3/data/manifest.py", "\n# a comment\n"),
            )
        )
    ],
    "search code": [
        Step(append(SEARCH, MARK), ALL_DECODED, ("espnet3.inference.search.beam: code changed",), as_before=True)
    ],
    "model code, then retrained": [
        Step(
            append("espnet3/models/asr.py", MARK),
            ALL_DECODED,
            ("espnet3.models.asr: code changed", "training code changed, model kept"),
            as_before=True,
        ),
        Step(
            lambda lab: None,
            conf("train") | TRAINED,
            ("espnet3.models.asr: code changed",),
            as_before=True,
            options=("retrain",),
        ),
    ],
    "code that reads the list": [
        Step(
            append("espnet3/data/corpora/jsonl.py", MARK),
            conf("corpus") | {"corpus"},
            ("espnet3.data.corpora.jsonl: code changed",),
            as_before=True,
        )
    ],
    "code of the manifest": [
        Step(
            append("espnet3/stages/manifest.py", MARK),
            conf("manifest")
            | (FROM_TRAINING_DATA | listed("valid", "test", "other"))
            - {"corpus"}
            - {f"recordings.{s}" for s in ("train", "valid", "test", "other")},
            ("espnet3.stages.manifest: code changed",),
            as_before=True,
        )
    ],
    "a shard deleted": [
        Step(
            delete("exp/own/decode/joint/test/shard-1-of-1.jsonl"),
            decoded(JOINT[0]),
            ("shard-1-of-1.jsonl: missing",),
            True,
        )
    ],
    "the averaged model deleted": [
        Step(
            delete("exp/own/average/valid.loss.ave_2best.safetensors"),
            AVERAGED,
            ("ave_2best.safetensors: missing",),
            True,
        )
    ],
    "a slice deleted": [
        Step(
            delete("exp/own/conf/decode.joint.json"),
            conf("decode.joint") | decoded(*JOINT),
            ("exp/own/conf/decode.joint.json:", "not there"),
            True,
        )
    ],
    "hypotheses and scores deleted": [
        Step(delete("exp/own/decode/joint/other/hyp.jsonl"), scored(JOINT[1]), ("hyp.jsonl: missing",), True)
    ],
    "all provenance deleted, then an edit": [
        Step(delete(".snakemake")),
        Step(delete("data/own/files.json"), {"corpus"}, ("data/own/files.json is missing",), as_before=True),
        Step(
            both(own("beam: 2", "beam: 3"), put("own/third/third-0.wav", "own/test/test-0.wav")),
            conf("report", "pack", "decode.joint") | FROM_TEST_DATA | decoded(*JOINT),
            ("decode.beam: 2 → 3", "audio replaced: test-0"),
        ),
    ],
    "an edit whose job fails, then mended": [
        Step(
            lambda lab: (lab.root / "own/test/test-1.wav").rename(lab.root / "own/away.wav"),
            {"corpus"} | listed("test"),
            ("data/own: test: audio missing: test-1 (own/test/test-1.wav)",),
            fails=True,
        ),
        Step(
            lambda lab: (lab.root / "own/away.wav").rename(lab.root / "own/test/test-1.wav"),
            FROM_TEST_DATA,
            ("audio replaced: test-1",),
            as_before=True,
        ),
    ],
}


def test_the_matrix_is_as_large_as_promised():
    assert sum(len(steps) for steps in EDITS.values()) >= 30


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_rebuilds_what_depends_on_it_and_nothing_else(lab: Lab, name: str):
    before = lab.results()
    for number, step in enumerate(EDITS[name], 1):
        step.apply(lab)
        retrain = "retrain" in step.options
        why = lab.why("exp/own", *(["--retrain"] if retrain else []))
        missing = [fact for fact in step.why if fact not in why]
        assert not missing, f"step {number}: why does not say {missing}:\n{why}"
        if not step.jobs:
            assert not [text for text in why.splitlines() if ":" in text.replace("exp/own: nothing", "")], why
        options = ["exp/own", *(["--config", "retrain=true"] if retrain else [])]
        ran = lab.run(*options, fails=step.fails)
        assert ran == step.jobs, (
            f"step {number}: needless {sorted(ran - step.jobs)}, stale {sorted(step.jobs - ran)}\n{why}"
        )
        if not step.fails:
            assert lab.stale_audio() == []
            assert lab.run(*options) == set(), f"step {number}: a further run does something"
        if step.as_before:
            after = lab.results()
            assert [path for path in after if after[path] != before.get(path, after[path])] == []


def test_a_job_that_fails_is_not_forgotten_when_the_edit_is_taken_back(lab: Lab):
    before = lab.results()
    code = (lab.root / SEARCH).read_text()
    (lab.root / SEARCH).write_text(code + "\nraise RuntimeError('broken')\n")
    own("beam: 2", "beam: 3")(lab)
    ran = lab.run(fails=True)
    assert len([job for job in ran if job.startswith("decode.")]) == 1 and not ran & {"train", "report"}
    slices = {job for job in ran if job.startswith("conf.")}
    touched = [pair for pair in PAIRS if f"conf.decode.{pair[0]}" in slices]
    assert touched
    (lab.root / SEARCH).write_text(code)
    own("beam: 3", "beam: 2")(lab)
    assert lab.run() == slices | decoded(*touched)
    assert lab.results() == before
    assert lab.run() == set()


def test_an_edit_while_jobs_are_queued_waits_for_the_next_run(lab: Lab):
    own("beam: 2", "beam: 3")(lab)
    before = lab.started()
    command = [str(lab.python), "-m", "snakemake", "exp/own", "--cores", "1"]
    environment = {**os.environ, "PYTHONPATH": str(lab.root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=lab.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        queued = {f"decode.joint.{t}.1-of-1" for _, t in JOINT}
        # a job's log is gone from the moment that Snakemake starts it until it opens its own
        while all(lab.started().get(job) == before[job] for job in queued):
            assert running.poll() is None
            time.sleep(0.02)
        own("beam: 3", "beam: 1")(lab)
        assert running.wait() == 0
    with_three = lab.results()
    assert json.loads((lab.root / "exp/own/conf/decode.joint.json").read_text())["config"]["decode"]["beam"] == 3
    assert "decode.beam: 3 → 1" in lab.why()
    assert lab.run() == BEAM and lab.run() == set()
    own("beam: 1", "beam: 3")(lab)
    assert lab.run() == BEAM
    assert lab.results() == with_three
