"""A model that ESPnet2 trained, as a folder that :func:`espnet3.from_pretrained` loads."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from espnet3.errors import UserError

log = logging.getLogger(__name__)

DECODE: dict[str, Any] = {
    "method": "joint",
    "beam": 10,
    "ctc_weight": 0.3,
    "length_bonus": 0.0,
    "maxlenratio": 0.0,
    "minlenratio": 0.0,
    "batch_seconds": 60.0,
    "nbest": 1,
    "shards": 1,
    "variants": {"joint": {}, "greedy": {"method": "ctc_greedy"}},
}
"""How a recipe of ESPnet2 decodes; any of it can be set anew in ``from_pretrained``."""


def run(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    task: str = "espnet2.tasks.asr.ASRTask",
) -> None:
    """Write ``model.safetensors``, ``config.json`` and the tokenizer's files.

    Args:
        config: the ``config.yaml`` that ESPnet2's trainer wrote.
        checkpoint: ``*epoch.pth`` or ``*.ave_*best.pth``; read without running any code that may be in it.

    Raises:
        UserError: a file is absent, or they do not belong together.
    """
    import yaml
    from safetensors.torch import save

    from espnet3 import __version__
    from espnet3.config.tasks import TARGET, hertz, read_espnet2
    from espnet3.io import atomic_write, write_json
    from espnet3.models.espnet2 import build
    from espnet3.trainer.finetune import read_weights

    section = {"_target_": TARGET, "task": task, "config": read_espnet2(config)}
    model = build(task, section["config"])
    weights = read_weights(checkpoint)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        odd = (missing or unexpected)[0]
        raise UserError(f"{checkpoint}: not a checkpoint of the model in {config}: tensor '{odd}' is not in both")
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    kind = content.get("token_type", "char")
    if kind not in ("char", "word", "bpe"):
        raise UserError(f"{config}: token_type {kind} is none of char, word, bpe")
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if kind == "bpe":
        try:
            shutil.copyfile(content["bpemodel"], output / "bpe.model")
        except (OSError, TypeError) as error:
            raise UserError(f"{config}: bpemodel: {error}") from None
    (output / "tokens.txt").write_text("\n".join(model.token_list) + "\n", encoding="utf-8")
    with atomic_write(output / "model.safetensors", "wb") as handle:
        handle.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    rate = hertz((section["config"].get("frontend_conf") or {}).get("fs", 16000))
    kept = {"model": section, "tokenizer": {"type": kind}, "data": {"sampling_rate": rate}, "decode": DECODE}
    write_json(output / "config.json", {"espnet3": __version__, "decoding": "joint", **kept})
    log.info("%s: packed %s, %d tokens, %d Hz", output, checkpoint, len(model.token_list), rate)


def main(arguments: list[str] | None = None) -> int:
    """``python -m espnet3 import-espnet2 config.yaml valid.acc.ave_10best.pth FOLDER``."""
    parser = argparse.ArgumentParser(prog="python -m espnet3 import-espnet2", description=__doc__)
    parser.add_argument("config", help="config.yaml of the ESPnet2 experiment")
    parser.add_argument("checkpoint", help="*epoch.pth or *.ave_*best.pth of it")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--task", default="espnet2.tasks.asr.ASRTask")
    given = parser.parse_args(arguments)
    run(given.config, given.checkpoint, given.output, given.task)
    return 0
