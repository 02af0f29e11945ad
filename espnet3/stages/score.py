"""Error rates of one decoding of one test set."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import atomic_write, read_jsonl, write_json

log = logging.getLogger(__name__)


def run(
    conf: dict[str, Any], manifest: str | os.PathLike, hypotheses: str | os.PathLike, output_dir: str | os.PathLike
) -> dict[str, Any]:
    """Score *hypotheses* (``hyp.jsonl``) against the texts of *manifest*.

    Writes ``metrics.json`` (see :func:`espnet3.metrics.errors.summarise`), ``hyp.trn``, ``ref.trn`` and
    ``alignment.txt`` into *output_dir*, and returns the metrics.

    Args:
        conf: ``score.normalize``, of both sides: none or basic.

    Raises:
        UserError: the two files do not have the same utterances.
    """
    from espnet3.metrics.alignment import alignment_text, trn_line
    from espnet3.metrics.errors import normalize, score_utterances, summarise

    how = conf.get("score", {}).get("normalize", "none")
    found = {record["id"]: record["text"] for record in read_jsonl(hypotheses)}
    utterances = []
    for cut in read_jsonl(manifest):
        uid, supervisions = cut["id"], cut["supervisions"]
        if uid not in found:
            raise UserError(f"{hypotheses}: no hypothesis of utterance {uid} of {manifest}; merge the shards again")
        text = " ".join(s.get("text") or "" for s in supervisions)
        speaker = next((s["speaker"] for s in supervisions if s.get("speaker")), uid)
        utterances.append((uid, str(speaker), normalize(text, how), normalize(found.pop(uid), how)))
    if found:
        raise UserError(f"{hypotheses}: utterance {next(iter(found))} is not in {manifest}; merge the shards again")
    scored = score_utterances(utterances)
    metrics = summarise(scored) | {"normalize": how}
    output = Path(output_dir)
    for name, field in (("ref.trn", "reference"), ("hyp.trn", "hypothesis")):
        with atomic_write(output / name) as handle:
            handle.writelines(trn_line(getattr(s, field), s.speaker, s.uid) + "\n" for s in scored)
    with atomic_write(output / "alignment.txt") as handle:
        handle.writelines(line + "\n" for line in alignment_text(scored))
    write_json(output / "metrics.json", metrics)
    log.info(
        "%s: WER %.2f %%, CER %.2f %%, %d utterances, %d words",
        *(output, 100 * metrics["wer"], 100 * metrics["cer"], metrics["utterances"], metrics["words"]),
    )
    return metrics
