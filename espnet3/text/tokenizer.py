"""Characters, words or SentencePiece units, in ESPnet's token order.

``tokens.txt`` holds one token a line: ``<blank>`` (id 0), ``<unk>`` (id 1), the units, and ``<sos/eos>`` last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet3.errors import UserError, did_you_mean
from espnet3.text import sentencepiece_model as spm

BLANK, UNKNOWN, SPACE, SOS_EOS = "<blank>", "<unk>", "<space>", "<sos/eos>"
TYPES = ("char", "word", "bpe")


class Tokenizer:
    """Text to ids and back.

    Args:
        tokens: all tokens in the order of their ids.
        type: ``char``, ``word`` or ``bpe``.
        model: the serialised SentencePiece model, for ``bpe``.
    """

    blank = 0
    unknown = 1

    def __init__(self, tokens: Sequence[str], type: str, model: bytes | None = None) -> None:
        self.tokens = list(tokens)
        self.type = type
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        # a word of the text that reads like a special token is an unknown word
        for special in (BLANK, UNKNOWN, SOS_EOS):
            self._ids.pop(special, None)
        self._processor = spm.load(model) if type == "bpe" else None

    @classmethod
    def load(cls, folder: str | os.PathLike, type: str) -> Tokenizer:
        """Read ``tokens.txt``, and ``bpe.model`` where *type* is ``bpe``.

        Raises:
            UserError: unknown type, a missing file, or a list that is not in ESPnet's order.
        """
        if type not in TYPES:
            raise UserError(f"tokenizer.type: there is no '{type}'{did_you_mean(type, TYPES)}")
        path = Path(folder) / "tokens.txt"
        try:
            tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            model = (Path(folder) / "bpe.model").read_bytes() if type == "bpe" else None
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no such file; the tokenizer stage writes it") from None
        if len(tokens) < 3 or tokens[0] != BLANK or tokens[-1] != SOS_EOS:
            raise UserError(f"{path}: a token list begins with {BLANK} and ends with {SOS_EOS}")
        return cls(tokens, type, model)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sos(self) -> int:
        """Id of ``<sos/eos>``, which both begins and ends a sentence."""
        return len(self.tokens) - 1

    eos = sos

    def text_to_tokens(self, text: str) -> list[str]:
        """The units of *text*, before unknown ones are replaced."""
        words = text.split()
        if self.type == "word":
            return words
        if self.type == "char":
            return [SPACE if character == " " else character for character in " ".join(words)]
        return self._processor.encode(" ".join(words), out_type=str)

    def encode(self, text: str) -> list[int]:
        """Ids of *text*, without ``<sos/eos>``; a unit that is not in the list is ``<unk>``."""
        return [self._ids.get(token, self.unknown) for token in self.text_to_tokens(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of *ids*; blank, ``<sos/eos>`` and padding (negative ids) are left out."""
        tokens = [self.tokens[i] for i in map(int, ids) if 0 < i < self.sos]
        if self.type == "word":
            return " ".join(tokens)
        if self.type == "char":
            return "".join(" " if token == SPACE else token for token in tokens)
        return spm.join(tokens)


def build_tokens(texts: Iterable[str], type: str, vocab_size: int | None = None) -> tuple[list[str], bytes | None]:
    """The token list for *texts*, and the SentencePiece model where *type* is ``bpe``.

    Characters and words come by falling count, then by code point. *vocab_size* counts all tokens, special ones
    included; characters and words beyond it are left out, the rarest first. SentencePiece's unit is the unigram
    model, as in ESPnet.

    Raises:
        UserError: there is no text, or *vocab_size* is not possible with it.
    """
    texts = [" ".join(text.split()) for text in texts]
    if not any(texts):
        raise UserError("tokenizer: the training manifest has no text")
    if type == "bpe":
        pieces, model = spm.train(texts, vocab_size)
        return [BLANK, UNKNOWN, *pieces, SOS_EOS], model
    counts: dict[str, int] = {}
    for text in texts:
        for unit in text.split() if type == "word" else text:
            unit = SPACE if unit == " " else unit
            counts[unit] = counts.get(unit, 0) + 1
    units = sorted(counts.keys() - {BLANK, UNKNOWN, SOS_EOS}, key=lambda unit: (-counts[unit], unit))
    if vocab_size is not None:
        if vocab_size < 4:
            raise UserError(f"tokenizer.vocab_size: {vocab_size} leaves no room beside the three special tokens")
        units = units[: vocab_size - 3]
    return [BLANK, UNKNOWN, *units, SOS_EOS], None
