"""Stage ``tokenizer``: the token list of the training text, and the SentencePiece model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def run(conf: dict[str, Any], manifest: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """Write ``tokens.txt`` (ESPnet's order), and ``bpe.model`` where ``tokenizer.type`` is ``bpe``.

    Raises:
        UserError: the manifest has no text, or ``tokenizer.vocab_size`` is not possible with it.
    """
    from espnet3.errors import UserError
    from espnet3.io import atomic_write, read_jsonl
    from espnet3.text.tokenizer import build_tokens

    section = conf["tokenizer"]
    texts = (supervision.get("text") or "" for cut in read_jsonl(manifest) for supervision in cut["supervisions"])
    try:
        tokens, model = build_tokens(texts, section["type"], section.get("vocab_size"))
    except UserError as error:
        raise UserError(f"{error} ({manifest})") from None
    output_dir = Path(output_dir)
    if model is not None:
        with atomic_write(output_dir / "bpe.model", "wb") as handle:
            handle.write(model)
    else:
        (output_dir / "bpe.model").unlink(missing_ok=True)
    with atomic_write(output_dir / "tokens.txt") as handle:
        handle.writelines(f"{token}\n" for token in tokens)
    logger.info("%s: %d tokens", output_dir / "tokens.txt", len(tokens))
