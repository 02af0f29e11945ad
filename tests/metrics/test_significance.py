"""Confidence intervals and the matched-pairs test, against plain reckoning and known cases."""

import math
import random

import numpy as np
import pytest

from espnet3.errors import UserError
from espnet3.metrics.bootstrap import intervals, paired
from espnet3.metrics.errors import align, by_speaker, score_utterances, summarise
from espnet3.metrics.normalisation import normaliser
from espnet3.metrics.significance import matched_pairs, segment_differences, slot_errors


def corpus(count, rate, seed, speakers=10):
    """*count* utterances of eight words; each word is wrong with probability *rate*."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        words = [f"w{i}.{n}" for n in range(8)]
        heard = [word if generator.random() > rate else "wrong" for word in words]
        rows.append((f"u{i}", f"s{i % speakers}", " ".join(words), " ".join(heard)))
    return score_utterances(rows)


def test_slots_hold_an_utterances_errors():
    assert slot_errors(align("a b c", "a x c")).tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert slot_errors(align("a b c", "y a b c d")).tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert slot_errors(align("a b", "")).tolist() == [0, 1, 0, 1, 0]
    assert slot_errors(align("", "a b")).tolist() == [2]


def test_segments_end_where_both_have_two_words_right():
    def differences(reference, first, second):
        a, b = (score_utterances([("u", "s", reference, h)]) for h in (first, second))
        return segment_differences(a, b).tolist()

    text = "a b c d e f g h"
    assert differences(text, text, text) == []
    # one word between two errors joins them, two part them
    assert differences(text, "x b y d e f g h", text) == [-2.0]
    assert differences(text, "x b c y e f g h", text) == [-1.0, -1.0]
    assert differences(text, "x b c d e f g h", "a b c y e f g h") == [-1.0, 1.0]
    assert differences(text, "x b c d e f g h", "a y c d e f g h") == [0.0]
    # an insertion between two right words parts them
    assert differences(text, "x b and c y e f g h", text) == [-3.0]


def test_utterances_are_segments_of_their_own():
    rows = [("u", "s", "a b", "a x"), ("v", "s", "c d", "y d")]
    first = score_utterances(rows)
    second = score_utterances([(u, s, r, r) for u, s, r, _ in rows])
    assert segment_differences(first, second).tolist() == [-1.0, -1.0]


def test_the_statistic_is_that_of_the_definition():
    first, second = corpus(200, 0.10, 1), corpus(200, 0.16, 2)
    differences = segment_differences(first, second)
    result = matched_pairs(first, second)
    z = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    assert result.z == pytest.approx(z) and result.segments == len(differences)
    assert result.p == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert differences.sum() == sum(s.words.errors for s in second) - sum(s.words.errors for s in first)
    back = matched_pairs(second, first)
    assert (back.z, back.p) == (pytest.approx(-result.z), pytest.approx(result.p))


def test_equal_systems_seldom_differ_and_unequal_ones_do():
    false_alarms = sum(matched_pairs(corpus(120, 0.1, 2 * i), corpus(120, 0.1, 2 * i + 1)).p < 0.05 for i in range(60))
    assert 0 <= false_alarms <= 9
    assert all(matched_pairs(corpus(120, 0.05, i), corpus(120, 0.2, i + 99)).p < 0.01 for i in range(5))
    same = corpus(30, 0.1, 5)
    assert matched_pairs(same, same).p == 1.0 and matched_pairs([], []).p == 1.0


def test_intervals_hold_the_true_rate_as_often_as_they_say():
    inside = 0
    for seed in range(80):
        low, high = intervals(corpus(100, 0.1, seed), samples=400)["wer"]
        inside += low <= 0.1 <= high
    assert 68 <= inside <= 80
    scored = corpus(100, 0.1, 0)
    assert intervals(scored) == intervals(scored) != intervals(scored, seed=1)
    assert intervals(scored[:1]) == {}


def test_intervals_by_speaker_allow_for_their_likeness():
    generator = np.random.default_rng(0)
    rows = []
    for speaker in range(12):
        rate = generator.uniform(0, 0.5)
        for i in range(40):
            heard = ["x" if generator.random() < rate else w for w in ["a", "b", "c", "d"]]
            rows.append((f"{speaker}-{i}", f"s{speaker}", "a b c d", " ".join(heard)))
    scored = score_utterances(rows)
    widths = {by: np.diff(intervals(scored, by)["wer"])[0] for by in ("utterance", "speaker")}
    assert widths["speaker"] > 2 * widths["utterance"]


def test_the_paired_difference():
    first, second = corpus(150, 0.10, 3), corpus(150, 0.14, 4)
    result = paired(first, second)
    difference = summarise(second)["wer"] - summarise(first)["wer"]
    assert result.difference == pytest.approx(difference, abs=1e-6)
    assert result.interval[0] < difference < result.interval[1]
    assert (result.p < 0.05) == (result.interval[0] > 0 or result.interval[1] < 0)
    assert paired(first, first).p == 1.0


def test_speakers_and_tokens():
    scored = score_utterances(
        [("a", "ann", "one two", "one"), ("b", "ann", "one", "one"), ("c", "bob", "two", "tow")], lambda t: list(t[::2])
    )
    table = by_speaker(scored)
    assert table["ann"]["wer"] == pytest.approx(1 / 3, abs=1e-6) and table["bob"]["wer"] == 1.0
    assert table["ann"]["utterances"] == 2 and list(table) == ["ann", "bob"]
    assert by_speaker(scored[1:]) == {}
    assert summarise(scored)["tokens"] == sum(len(t[::2].replace(" ", "")) for t in ("one two", "one", "two"))
    assert "ter" not in summarise(score_utterances([("a", "s", "x", "x")]))


def test_whispers_normalisation_or_how_to_get_it(monkeypatch):
    pytest.importorskip("whisper_normalizer")
    clean = normaliser("whisper")
    assert clean("Mr. Smith's colour, um, isn't twenty-one!") == clean("mister smith's color is not 21")
    with pytest.raises(UserError, match="there is no 'wisper'; did you mean 'whisper'"):
        normaliser("wisper")
