"""Decoding a manifest: which utterances go together, and the runner over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espnet3.inference.decode import decode_batch, to_record
from espnet3.parallel import BaseRunner


class DecodeRunner(BaseRunner):
    """Decodes lists of indices; a record for each, see :func:`espnet3.inference.decode.to_record`.

    Pass ``keys`` (utterance ids), ``weights`` (durations in seconds) and ``batch_weight`` (seconds of padded audio).
    """

    @staticmethod
    def forward(
        idx: int | Sequence[int], dataset: Any, model: Any, search: Any, tokenizer: Any, device: Any = "cpu", **env: Any
    ) -> Any:
        """One record for each index."""
        if isinstance(idx, int):
            return DecodeRunner.forward([idx], dataset, model, search, tokenizer, device)[0]
        items = [dataset[i] for i in idx]
        found = decode_batch([fields["speech"] for _, fields in items], model, search, device)
        return [to_record(uid, nbest, tokenizer) for (uid, _), nbest in zip(items, found, strict=True)]
