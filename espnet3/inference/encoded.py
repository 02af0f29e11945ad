"""Encoder output that several decodings of one model share: a file beside the results, and no output of any rule.

A decoding that finds its shard encoded reads it; one that does not encodes, and leaves the file for the next. What the
file holds are the very tensors of the same batches, so a result has the same bytes with and without it. A file made of
other weights, audio, code or batches has another key and is replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet3.errors import UserError
from espnet3.io import atomic_write, digest

log = logging.getLogger(__name__)

# a shard whose encoder output is larger is not kept: it is held in memory until the shard is complete
MAX_BYTES = 1 << 30


@torch.inference_mode()
def encode_batch(
    waveforms: Sequence[np.ndarray], model: Any, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Encoder output (B, T, D) and its lengths (B,) of waveforms, float32 (samples,) at the model's sampling rate."""
    tensors = [torch.as_tensor(np.asarray(w, dtype=np.float32)) for w in waveforms]
    lengths = torch.tensor([t.numel() for t in tensors])
    speech = pad_sequence(tensors, batch_first=True)
    return model.encode(speech.to(device), lengths.to(device))


class EncodedStore:
    """The encoder output of one shard's batches.

    Args:
        path: safetensors.
        key: of all that the tensors depend on; a file of another key is not read.
        expected: how many utterances the shard has; only a complete store is written.
    """

    def __init__(self, path: str | os.PathLike, key: str, expected: int):
        self.path, self.key, self.expected = Path(path), key, expected
        self._file = self._open()
        self._new: dict[str, Tensor] | None = None if self._file else {}
        self._utterances = self._bytes = 0

    @property
    def found(self) -> bool:
        """Whether another decoding has left this shard's encoder output."""
        return self._file is not None

    def get(self, uids: Sequence[str], device: Any = "cpu") -> tuple[Tensor, Tensor] | None:
        """Encoder output (B, T, D) and lengths (B,) of the batch of these utterances, or None."""
        name = _name(uids)
        if self._file is None or name not in self._file.keys():  # noqa: SIM118
            return None
        return tuple(self._file.get_tensor(n).to(device) for n in (name, f"{name}.lengths"))

    def put(self, uids: Sequence[str], encoded: Tensor, lengths: Tensor) -> None:
        """Remember a batch that was encoded here."""
        if self._new is None:
            return
        self._bytes += encoded.nbytes
        if self._bytes > MAX_BYTES:
            log.info("%s: more than %d MB of encoder output, not shared", self.path, MAX_BYTES >> 20)
            self._new = None
            return
        name = _name(uids)
        self._new[name] = encoded.detach().cpu().contiguous()
        self._new[f"{name}.lengths"] = lengths.detach().cpu().contiguous()
        self._utterances += len(uids)

    def close(self) -> None:
        """Write what was remembered, where it is the whole shard; a full disk costs nothing but the file."""
        new, self._new, self._file = self._new, None, None
        if not new or self._utterances != self.expected:
            return
        try:
            with atomic_write(self.path, "wb") as handle:
                handle.write(save(new, metadata={"key": self.key}))
        except OSError as error:
            log.warning("%s: encoder output is not kept (%s)", self.path, error.strerror or error)

    def _open(self) -> Any:
        try:
            file = safe_open(self.path, framework="pt")
        except (FileNotFoundError, SafetensorError, OSError):
            return None
        return file if (file.metadata() or {}).get("key") == self.key else None


def encoded_key(
    weights: str, conf: dict[str, Any], cuts: Sequence[dict[str, Any]], batch_seconds: float, device: Any
) -> str:
    """What the encoder output of *cuts* (the manifest's entries of one shard, in order) depends on.

    Args:
        weights: digest of the weights.
        conf: the slice's ``model``, ``data`` and ``allow``.
    """
    from espnet3.config.fingerprint import code_digests

    parts = {k: conf[k] for k in ("model", "data", "allow") if k in conf}
    code = code_digests(["espnet3.data.dataset", __name__], parts)
    audio = [[cut["id"], cut.get("start"), cut.get("duration"), _files(cut)] for cut in cuts]
    machine = [torch.__version__, str(device), torch.get_num_threads()]
    return digest([weights, parts, code, audio, batch_seconds, machine], 32)


def _files(cut: dict[str, Any]) -> list:
    found = []
    for source in (cut.get("recording") or {}).get("sources") or []:
        if source.get("type") == "file":
            try:
                facts = os.stat(source["source"])
            except OSError as error:
                raise UserError(f"utterance {cut['id']}: {source['source']}: {error.strerror}") from None
            found.append([source["source"], facts.st_size, facts.st_mtime_ns])
        else:
            found.append(source.get("source") if isinstance(source.get("source"), str) else None)
    return found


def _name(uids: Sequence[str]) -> str:
    return digest(list(uids))
