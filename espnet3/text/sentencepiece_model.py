"""SentencePiece: deterministic training in memory, and errors in the user's terms."""

from __future__ import annotations

import io
import re
from typing import Any

from espnet3.errors import UserError

_SPECIAL = ("<unk>", "<s>", "</s>")
_WORD_START = "▁"


def train(texts: list[str], vocab_size: int | None) -> tuple[list[str], bytes]:
    """The pieces (without special ones) and the serialised unigram model of *vocab_size* pieces for *texts*.

    One thread and no sampling: equal texts give equal bytes.

    Raises:
        UserError: *vocab_size* is absent, or too small or too large for the text.
    """
    import sentencepiece

    if vocab_size is None:
        raise UserError("tokenizer.vocab_size: type 'bpe' needs it")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            num_threads=1,
            input_sentence_size=0,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"tokenizer.vocab_size: {_explain(str(error), vocab_size, texts)}") from None
    processor = load(model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    return [piece for piece in pieces if piece not in _SPECIAL], model.getvalue()


def _explain(message: str, vocab_size: int, texts: list[str]) -> str:
    if found := re.search(r"value <= (\d+)", message):
        return f"{vocab_size} is more than this text gives; at most {found[1]}"
    characters = len({character for text in texts for character in text if character != " "})
    if "required_chars" in message or vocab_size < characters + 4:
        return (
            f"{vocab_size} is less than the {characters} characters and special pieces need; at least {characters + 4}"
        )
    return f"SentencePiece refuses {vocab_size} ({' '.join(message.split())})"


def load(model: bytes) -> Any:
    """A processor for the serialised *model*. Raises UserError if it is none."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, TypeError):
        raise UserError("bpe.model: not a SentencePiece model; run the tokenizer stage again") from None


def join(pieces: list[str]) -> str:
    """Text of *pieces*. An unknown piece stays visible, where SentencePiece would print a question mark."""
    return "".join(pieces).replace(_WORD_START, " ").strip()
