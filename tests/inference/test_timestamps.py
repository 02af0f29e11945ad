"""CTC alignment against its definition, and words from tokens."""

import itertools

import numpy as np
import pytest
import torch
from speech_task import JOINT, MODEL, TOKENS, make_task, read_lines, slice_of

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.inference.timestamps import ctc_align, frame_samples, token_times, word_of_token, words_of
from espnet3.stages import decode
from espnet3.text.tokenizer import Tokenizer, build_tokens


def best_path(log_probs, labels):
    """The most likely path that collapses to *labels*, of all paths."""
    frames, vocabulary = log_probs.shape
    best, found = -np.inf, None
    for path in itertools.product(range(vocabulary), repeat=frames):
        if [k for k, _ in itertools.groupby(path) if k] == labels:
            score = sum(log_probs[t, k] for t, k in enumerate(path))
            if score > best:
                best, found = score, path
    return found


def spans(path):
    """[first, last] of each label of a path."""
    found, at = [], 0
    for label, run in itertools.groupby(path):
        length = len(list(run))
        found += [(at, at + length - 1)] if label else []
        at += length
    return found


def test_the_alignment_is_the_best_of_all_paths():
    generator = np.random.default_rng(0)
    checked = impossible = 0
    for _ in range(60):
        lengths = generator.integers(1, 7, 3).tolist()
        labels = [generator.integers(1, 3, generator.integers(0, 4)).tolist() for _ in range(3)]
        log_probs = torch.tensor(generator.standard_normal((3, 6, 3))).log_softmax(-1)
        for b, alignment in enumerate(ctc_align(log_probs, lengths, labels)):
            path = best_path(log_probs[b, : lengths[b]].numpy(), labels[b])
            if path is None:
                assert alignment is None
                impossible += 1
                continue
            assert list(zip(alignment.first.tolist(), alignment.last.tolist(), strict=True)) == spans(path)
            emitted = [np.mean([log_probs[b, t, path[t]] for t in range(a, z + 1)]) for a, z in spans(path)]
            assert alignment.score == pytest.approx(emitted, abs=1e-5)
            checked += 1
    assert checked > 100 and impossible > 5


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_tokens_go_to_their_words(kind):
    texts = ["a bad cab", "fade a face", "dad fed a cab"] * 20
    tokens, model = build_tokens(texts, kind, 13 if kind == "bpe" else None)
    tokenizer = Tokenizer(tokens, kind, model)
    labels = tokenizer.encode("dad fed a cab")
    owner = word_of_token(labels, tokenizer)
    words = ["".join(tokenizer.tokens[t] for t, o in zip(labels, owner, strict=True) if o == n) for n in range(4)]
    assert [word.replace("▁", "") for word in words] == ["dad", "fed", "a", "cab"]
    # one frame a label, and one before it
    log_probs = torch.full((1, 2 * len(labels), len(tokens)), -9.0)
    log_probs[0, 0::2, 0] = 0.0
    log_probs[0, range(1, 2 * len(labels), 2), labels] = 0.0
    alignment = ctc_align(log_probs, [2 * len(labels)], [labels])[0]
    timed = words_of(labels, alignment, tokenizer, 0.04, offset=10.0)
    assert [w.word for w in timed] == ["dad", "fed", "a", "cab"]
    assert timed[0].start == pytest.approx(10.04 if kind != "bpe" else timed[0].start)
    assert all(a.end <= b.start for a, b in itertools.pairwise(timed))
    assert timed[-1].end == pytest.approx(10.0 + 0.04 * 2 * len(labels))
    assert token_times(alignment, 0.04)[0] == [0.04, 0.08]


def test_frames_have_the_length_that_the_model_gives_them():
    model = instantiate(MODEL, vocab_size=len(TOKENS))
    assert frame_samples(model) == 640
    model.ctc_weight = 0.0
    with pytest.raises(UserError, match="aligns by CTC, which this model lacks"):
        frame_samples(model)


def test_records_have_times_where_they_are_asked_for(tmp_path):
    torch.set_num_threads(1)
    task = make_task(tmp_path / "task", utterances=9)
    runs = {}
    for name, settings in (("with", {**JOINT, "timestamps": True}), ("without", JOINT)):
        path = tmp_path / f"{name}.jsonl"
        decode.run_shard(slice_of(settings), shard=1, of=1, output=path, execution={"accelerator": "cpu"}, **task)
        runs[name] = read_lines(path)
    for timed, plain in zip(runs["with"], runs["without"], strict=True):
        assert {k: v for k, v in timed.items() if k not in ("times", "words")} == plain
        if timed["times"] is None:
            assert timed["words"] == []
            continue
        assert len(timed["times"]) == len(timed["tokens"])
        assert [w["word"] for w in timed["words"]] == timed["text"].split()
        assert all(0 <= w["start"] < w["end"] <= 1.7 and 0 <= w["confidence"] <= 1 for w in timed["words"])
    assert sum(record["times"] is not None for record in runs["with"]) > 4
