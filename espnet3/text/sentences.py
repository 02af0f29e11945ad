"""Sentences as a data set: what a language model is trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet3.data.collate import Collate
from espnet3.errors import UserError
from espnet3.io import read_jsonl
from espnet3.text.tokenizer import Tokenizer


class SentenceDataset(torch.utils.data.Dataset):
    """Items ``(id, {"text": int64 (L,)})``.

    Args:
        sentences: texts; empty ones are left out.
        tokenizer: makes the ids.
        name: what the ids begin with.

    Raises:
        UserError: there is no sentence.
    """

    def __init__(self, sentences: Sequence[str], tokenizer: Tokenizer, name: str = "sentence"):
        encoded = [np.array(tokenizer.encode(text), dtype=np.int64) for text in sentences]
        self._encoded = [labels for labels in encoded if labels.size]
        if not self._encoded:
            raise UserError(f"lm: {name} has no text")
        self.ids = [f"{name}-{number}" for number in range(len(self._encoded))]
        self.collate = Collate()

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, number: int) -> tuple[str, dict[str, Any]]:
        return self.ids[number], {"text": self._encoded[number]}


def transcripts(manifest: str | os.PathLike) -> list[str]:
    """The texts of a manifest's utterances."""
    return [supervision.get("text") or "" for cut in read_jsonl(manifest) for supervision in cut["supervisions"]]


def lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, one sentence each.

    Raises:
        UserError: it is absent, or not UTF-8.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (lm.text)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
