"""Stage ``corpus``: fetch or render the recordings, and list them."""

from __future__ import annotations

import os
from typing import Any


def run(conf: dict[str, Any], output: str | os.PathLike, parallel: dict[str, Any] | None = None) -> None:
    """Build the corpus that ``data.builder`` describes; *output* is ``data/<corpus>/corpus.jsonl``.

    Raises:
        UserError: the source is missing, damaged or empty.
    """
    from espnet3.data.corpora.base import build_corpus

    build_corpus(conf["data"]["builder"], output, parallel, tuple(conf.get("allow", ())))
