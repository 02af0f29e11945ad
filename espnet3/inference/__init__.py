"""Decoding: batched searches, the runner that decodes a manifest, packed models, transcription of files."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "DecodeProvider": "espnet3.inference.provider",
    "DecodeRunner": "espnet3.inference.runner",
    "LongForm": "espnet3.inference.longform",
    "Recogniser": "espnet3.inference.pretrained",
    "Result": "espnet3.inference.pretrained",
    "Segment": "espnet3.inference.longform",
    "from_pretrained": "espnet3.inference.pretrained",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'espnet3.inference' has no attribute '{name}'")
