"""Decoding a manifest: which utterances go together, and the runner over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from espnet3.inference.decode import align_batch, describe_times, to_record
from espnet3.inference.encoded import EncodedStore, encode_batch
from espnet3.parallel import BaseRunner


class DecodeRunner(BaseRunner):
    """Decodes lists of indices; a record for each, see :func:`espnet3.inference.decode.to_record`.

    Pass ``keys`` (utterance ids), ``weights`` (durations in seconds) and ``batch_weight`` (seconds of padded audio).
    """

    @staticmethod
    @torch.inference_mode()
    def forward(
        idx: int | Sequence[int],
        dataset: Any,
        model: Any,
        search: Any,
        tokenizer: Any,
        device: Any = "cpu",
        frame_seconds: float | None = None,
        encoded: EncodedStore | None = None,
        **env: Any,
    ) -> Any:
        """One record for each index.

        Args:
            frame_seconds: what one encoder frame lasts; None: no timestamps are asked for.
            encoded: the encoder's output of these very batches, or where to keep it for another decoding.
        """
        if isinstance(idx, int):
            return DecodeRunner.forward([idx], dataset, model, search, tokenizer, device, frame_seconds, encoded)[0]
        uids = [dataset.ids[i] for i in idx]
        memory = encoded.get(uids, device) if encoded is not None else None
        if memory is None:
            memory = encode_batch([dataset[i][1]["speech"] for i in idx], model, device)
            if encoded is not None:
                encoded.put(uids, *memory)
        found = search(*memory)
        records = [to_record(uid, nbest, tokenizer) for uid, nbest in zip(uids, found, strict=True)]
        if frame_seconds is not None:
            labels = [nbest[0].tokens for nbest in found]
            alignments = align_batch(*memory, labels, model)
            for record, row, alignment in zip(records, labels, alignments, strict=True):
                record |= describe_times(row, alignment, tokenizer, frame_seconds)
        return records
