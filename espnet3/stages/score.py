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
    conf: dict[str, Any],
    manifest: str | os.PathLike,
    hypotheses: str | os.PathLike,
    output_dir: str | os.PathLike,
    tokens: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Score *hypotheses* (``hyp.jsonl``) against the texts of *manifest*.

    Writes ``metrics.json`` (:func:`espnet3.metrics.errors.summarise`, confidence intervals, and a table by speaker),
    ``hyp.trn``, ``ref.trn`` and ``alignment.txt`` into *output_dir*, and returns the metrics.

    Args:
        conf: ``score``: ``normalize``, of both sides: none, basic or whisper; ``bootstrap``: what confidence intervals
            draw, utterance, speaker or none; ``bootstrap_samples``. ``tokenizer.type``, where *tokens* is given.
        tokens: the tokenizer's folder, for the token error rate; None: there is none.

    Raises:
        UserError: the two files do not have the same utterances, or a package for the normalisation is not installed.
    """
    from espnet3.metrics.alignment import alignment_text, trn_line
    from espnet3.metrics.bootstrap import describe
    from espnet3.metrics.errors import by_speaker, score_utterances, summarise
    from espnet3.metrics.normalisation import normaliser

    section = conf.get("score", {})
    how, by = section.get("normalize", "none"), section.get("bootstrap", "utterance")
    normalize = normaliser(how)
    found = {record["id"]: record["text"] for record in read_jsonl(hypotheses)}
    utterances = []
    for cut in read_jsonl(manifest):
        uid, supervisions = cut["id"], cut["supervisions"]
        if uid not in found:
            raise UserError(f"{hypotheses}: no hypothesis of utterance {uid} of {manifest}; merge the shards again")
        text = " ".join(s.get("text") or "" for s in supervisions)
        speaker = next((s["speaker"] for s in supervisions if s.get("speaker")), uid)
        utterances.append((uid, str(speaker), normalize(text), normalize(found.pop(uid))))
    if found:
        raise UserError(f"{hypotheses}: utterance {next(iter(found))} is not in {manifest}; merge the shards again")
    tokenize = None
    if tokens is not None:
        from espnet3.text.tokenizer import Tokenizer

        tokenize = Tokenizer.load(tokens, conf["tokenizer"]["type"]).text_to_tokens
    scored = score_utterances(utterances, tokenize)
    metrics = summarise(scored) | {"normalize": how, "speakers": by_speaker(scored)}
    if by != "none":
        metrics["intervals"] = describe(scored, by, section.get("bootstrap_samples", 1000))
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
