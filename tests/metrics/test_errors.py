"""Error counts, and the files of the score stage."""

import random

import pytest

from espnet3.errors import UserError
from espnet3.io import read_json, write_jsonl
from espnet3.metrics.alignment import alignment_lines, read_trn
from espnet3.metrics.errors import align, score_utterances, summarise
from espnet3.metrics.normalisation import normalize
from espnet3.stages import score


def distance(a, b):
    """Levenshtein's distance, plainly."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_counts_of_a_known_pair():
    (scored,) = score_utterances([("u", "s", "the cat sat down", "the dog sat down now")])
    assert [(p[0], p[1], p[2]) for p in scored.alignment] == [
        ("C", "the", "the"),
        ("S", "cat", "dog"),
        ("C", "sat", "sat"),
        ("C", "down", "down"),
        ("I", "", "now"),
    ]
    metrics = summarise([scored])
    assert metrics["wer"] == 0.5 and metrics["ser"] == 1.0
    assert (metrics["substitutions"], metrics["insertions"], metrics["deletions"], metrics["hits"]) == (1, 1, 0, 3)
    # "the cat sat down" has 16 characters with its spaces; " now" and c→d, a→o, t→g
    assert metrics["characters"] == 16 and metrics["cer"] == 7 / 16


def test_random_texts_against_a_plain_distance():
    generator = random.Random(0)

    def text():
        return " ".join(generator.choice(["a", "b", "ab", "ba"]) for _ in range(generator.randint(0, 8)))

    pairs = [(f"u{i}", "s", text(), text()) for i in range(200)]
    scored = score_utterances(pairs)
    for s in scored:
        assert s.words.errors == distance(s.reference.split(), s.hypothesis.split())
        assert s.characters.errors == distance(s.reference, s.hypothesis)
        assert [r for k, r, _ in s.alignment if k != "I"] == s.reference.split()
        assert [h for k, _, h in s.alignment if k != "D"] == s.hypothesis.split()
    metrics = summarise(scored)
    assert metrics["words"] == sum(len(p[2].split()) for p in pairs)
    assert metrics["wer"] == pytest.approx(sum(s.words.errors for s in scored) / metrics["words"], abs=1e-6)


def test_empty_references():
    metrics = summarise(score_utterances([("a", "s", "", ""), ("b", "s", "", "noise"), ("c", "s", "two words", "")]))
    assert (metrics["insertions"], metrics["deletions"], metrics["words"], metrics["wer"]) == (1, 2, 2, 1.5)
    assert metrics["empty_references"] == 2 and metrics["utterances_with_errors"] == 2
    assert summarise(score_utterances([("a", "s", "", "")]))["wer"] == 0.0
    assert summarise(score_utterances([("a", "s", "", "x")]))["wer"] == 1.0
    assert summarise([])["wer"] == 0.0


def test_normalisation():
    assert normalize("  Two\twords ") == "Two words"
    assert normalize("Well-known, “it’s” - 5 o'clock!", "basic") == "well-known it's 5 o'clock"


def test_alignment_columns_fit_wide_characters():
    lines = alignment_lines(align("你好 a b", "你 a c b"))
    assert lines == ("REF:  你好 a * b", "HYP:  你   a c b", "EVAL: S      I")


def cut(uid, text, speaker):
    return {"id": uid, "duration": 1.0, "supervisions": [{"id": uid, "text": text, "speaker": speaker}]}


def test_the_score_stage_writes_its_files(tmp_path):
    write_jsonl(tmp_path / "test.jsonl.gz", [cut("u1", "a b c", "ann"), cut("u2", "d", "bob"), cut("u3", "e f", None)])
    hypotheses = [{"id": "u3", "text": "e"}, {"id": "u1", "text": "a  x c y"}, {"id": "u2", "text": "d"}]
    write_jsonl(tmp_path / "hyp.jsonl", hypotheses)
    score.run({"score": {"normalize": "none"}}, tmp_path / "test.jsonl.gz", tmp_path / "hyp.jsonl", tmp_path / "out")
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["wer"] == 0.5 and metrics["utterances"] == 3 and metrics["words"] == 6
    assert (tmp_path / "out/ref.trn").read_text() == "a b c (ann-u1)\nd (bob-u2)\ne f (u3-u3)\n"
    assert read_trn(tmp_path / "out/hyp.trn") == {"ann-u1": "a x c y", "bob-u2": "d", "u3-u3": "e"}
    alignment = (tmp_path / "out/alignment.txt").read_text()
    assert alignment.startswith("2 of 3 utterances have errors")
    assert alignment.index("u1  speaker ann") < alignment.index("u3  speaker u3")
    assert "REF:  a b c *\nHYP:  a x c y\nEVAL:   S   I\n" in alignment


def test_the_score_stage_names_the_utterance_that_does_not_fit(tmp_path):
    write_jsonl(tmp_path / "test.jsonl.gz", [cut("u1", "a", "s"), cut("u2", "b", "s")])
    write_jsonl(tmp_path / "hyp.jsonl", [{"id": "u1", "text": "a"}])
    with pytest.raises(UserError, match="no hypothesis of utterance u2"):
        score.run({}, tmp_path / "test.jsonl.gz", tmp_path / "hyp.jsonl", tmp_path / "out")
    write_jsonl(tmp_path / "hyp.jsonl", [{"id": u, "text": "a"} for u in ("u1", "u2", "u9")])
    with pytest.raises(UserError, match="u9 is not in"):
        score.run({}, tmp_path / "test.jsonl.gz", tmp_path / "hyp.jsonl", tmp_path / "out")
