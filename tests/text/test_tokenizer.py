"""Tokenizers: ESPnet's order, round trips, the same bytes each time, errors in the user's terms."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet3.data.corpora import grammar
from espnet3.errors import UserError
from espnet3.io import write_jsonl
from espnet3.stages import tokenizer
from espnet3.text.tokenizer import Tokenizer, build_tokens

DRAWN = random.Random(0)
TEXTS = [*(grammar.sentence(DRAWN) for _ in range(300)), "garçon très gentil"]


def write_manifest(path, texts):
    write_jsonl(path, ({"id": str(i), "supervisions": [{"text": text}]} for i, text in enumerate(texts)))
    return path


@pytest.fixture
def built(tmp_path):
    def build(kind: str, size: int | None = None, texts=TEXTS, name: str = "t") -> Tokenizer:
        path = write_manifest(tmp_path / "m.jsonl.gz", texts)
        tokenizer.run({"tokenizer": {"type": kind, "vocab_size": size}}, path, tmp_path / name)
        return Tokenizer.load(tmp_path / name, kind)

    return build


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("word", None), ("bpe", 60)])
def test_what_is_encoded_is_decoded(built, kind, size):
    made = built(kind, size)
    assert (made.tokens[0], made.tokens[1], made.tokens[-1]) == ("<blank>", "<unk>", "<sos/eos>")
    assert len(set(made.tokens)) == len(made)
    assert size is None or len(made) == size
    for text in TEXTS:
        ids = made.encode(text)
        assert made.decode(ids) == text
        assert all(1 < i < made.sos for i in ids)
        # a search's output: padded, with blanks and the end of the sentence
        assert made.decode([0, *ids, made.eos, -1, -1]) == text


def test_the_order_is_by_count_and_then_by_code_point(built):
    assert built("word", texts=["b a a", "c b a d"]).tokens == ["<blank>", "<unk>", "a", "b", "c", "d", "<sos/eos>"]
    assert built("char", texts=["ba a"]).tokens == ["<blank>", "<unk>", "a", "<space>", "b", "<sos/eos>"]
    assert built("word", 5, texts=["b a a", "c b a d"]).tokens == ["<blank>", "<unk>", "a", "b", "<sos/eos>"]


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("word", None), ("bpe", 60)])
def test_the_same_text_gives_the_same_bytes(built, tmp_path, kind, size):
    for name in ("one", "two"):
        built(kind, size, name=name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == (["bpe.model", "tokens.txt"] if kind == "bpe" else ["tokens.txt"])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_type_leaves_no_model_of_the_last_one(built, tmp_path):
    built("bpe", 60)
    built("char")
    assert not (tmp_path / "t" / "bpe.model").exists()


def test_what_was_never_seen_is_unknown_and_stays_visible(built):
    char, word, bpe = built("char"), built("word"), built("bpe", 60)
    assert char.encode("lamp!")[-1] == char.unknown
    assert word.decode(word.encode("turn the lamp")) == "turn the <unk>"
    assert "<unk>" in bpe.decode(bpe.encode("light 9"))
    # a transcript must not be able to inject special tokens
    assert word.encode("<sos/eos> <blank> the")[:2] == [word.unknown, word.unknown]


def test_white_space_is_one_space(built):
    for made in (built("char"), built("word"), built("bpe", 60)):
        assert made.encode("  turn \t on\n") == made.encode("turn on")
        assert made.encode("") == []


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=20), min_size=1, max_size=5))
def test_any_text_survives_characters(texts):
    if not any(" ".join(text.split()) for text in texts):
        return
    tokens, _ = build_tokens(texts, "char")
    made = Tokenizer(tokens, "char")
    for text in texts:
        assert made.decode(made.encode(text)) == " ".join(text.split())


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 5000, r"tokenizer.vocab_size: 5000 is more than this text gives; at most \d+ .*m.jsonl.gz"),
        ("bpe", 8, r"tokenizer.vocab_size: 8 is less than the \d+ characters .* at least \d+"),
        ("bpe", None, "type 'bpe' needs it"),
        ("char", 3, "3 leaves no room"),
    ],
)
def test_impossible_sizes_are_one_line_with_the_possible_one(built, kind, size, message):
    with pytest.raises(UserError, match=message) as error:
        built(kind, size)
    assert "\n" not in str(error.value)


def test_the_sizes_that_the_messages_name_are_possible(built):
    with pytest.raises(UserError) as most:
        built("bpe", 5000)
    with pytest.raises(UserError) as least:
        built("bpe", 8)
    for error, word in ((most, "at most "), (least, "at least ")):
        size = int(str(error.value).split(word)[1].split()[0])
        assert len(built("bpe", size)) == size


def test_a_manifest_without_text_is_named(built):
    with pytest.raises(UserError, match=r"the training manifest has no text .*m.jsonl.gz"):
        built("char", texts=["", " "])


def test_what_cannot_be_loaded_is_named(built, tmp_path):
    built("char")
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "t", "bpe")
    with pytest.raises(UserError, match="did you mean 'char'"):
        Tokenizer.load(tmp_path / "t", "chars")
    (tmp_path / "t" / "tokens.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="begins with <blank>"):
        Tokenizer.load(tmp_path / "t", "char")
