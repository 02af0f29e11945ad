"""Texts made comparable before their words are compared."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from espnet3.errors import UserError, did_you_mean

KINDS = ("none", "basic", "whisper")


def normaliser(how: str = "none") -> Callable[[str], str]:
    """A function from text to text.

    ``none``: white space alone is made single. ``basic``: also NFKC, lower case, and no punctuation but the apostrophes
    and hyphens inside words. ``whisper``: Whisper's normaliser of English (Radford et al. 2022, appendix C: spelling,
    numbers, contractions, fillers), by the package whisper-normalizer.

    Raises:
        UserError: there is no such normalisation, or its package is not installed.
    """
    if how not in KINDS:
        raise UserError(f"score.normalize: there is no '{how}'{did_you_mean(how, KINDS)}")
    if how == "whisper":
        return _whisper()
    return _basic if how == "basic" else _spaces


def normalize(text: str, how: str = "none") -> str:
    """*text* by :func:`normaliser`."""
    return normaliser(how)(text)


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = re.sub(r"(?<!\w)['-]|['-](?!\w)", " ", text)
    return _spaces("".join(" " if unicodedata.category(c)[0] in "PS" and c not in "'-" else c for c in text))


@functools.cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ModuleNotFoundError:
        raise UserError(
            "score.normalize: 'whisper' needs the package whisper-normalizer; pip install whisper-normalizer, or use basic"
        ) from None
    english = EnglishTextNormalizer()
    return lambda text: _spaces(english(text))
