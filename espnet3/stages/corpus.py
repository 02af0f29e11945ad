"""Stage ``corpus``: fetch or render the recordings, and list them."""

from __future__ import annotations

import os
from typing import Any


def run(conf: dict[str, Any], output: str | os.PathLike, parallel: dict[str, Any] | None = None) -> None:
    """Build the corpus that ``data.builder`` describes; *output* is ``data/<corpus>/corpus.jsonl``.

    ``files.json`` beside it says which files it was built from, for :mod:`espnet3.data.corpora.recordings`.

    Raises:
        UserError: the source is missing, damaged or empty.
    """
    from espnet3.data.corpora.base import build_corpus
    from espnet3.data.corpora.recordings import remember

    build_corpus(conf["data"]["builder"], output, parallel, tuple(conf.get("allow", ())))
    remember(output, conf["data"]["builder"])
