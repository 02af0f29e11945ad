"""A trained model as a folder that :func:`espnet3.from_pretrained` loads."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet3 import __version__
from espnet3.config.decoding import PACKED_LM, resolve_variants
from espnet3.errors import UserError
from espnet3.io import atomic_write, write_json

log = logging.getLogger(__name__)

CARD = """# {experiment}

A speech recogniser made with espnet3 {version}: audio at {rate} Hz in, text out ({tokens} {type} tokens).

## Results

{table}
WER, CER and SER in percent; CER counts the spaces between words.

## Use

```python
import espnet3

recognise = espnet3.from_pretrained("{folder}")
print(recognise("audio.wav").text)
```

or `python -m espnet3 transcribe {folder} audio.wav`.

## Files

- `model.safetensors`: the averaged weights, feature normalisation included
- `config.json`: model, tokenizer and decoding
- `tokens.txt`{bpe}: the tokenizer
- `metrics.json`: the results above, with all counts
{further}"""


def run(
    conf: dict[str, Any],
    weights: str | os.PathLike,
    tokens: str | os.PathLike,
    metrics: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike,
    experiment: str,
    train: str | os.PathLike | None = None,
    lm: str | os.PathLike | None = None,
) -> None:
    """Write the folder.

    Args:
        conf: ``model``, ``tokenizer``, ``data.sampling_rate`` and ``decode``, and ``lm`` where a decoding has an ``lm_weight``.
        weights: averaged model, safetensors.
        tokens: the tokenizer's folder.
        metrics: ``score/<decoding>/<test set>/metrics.json``, for the model card; the first one's decoding is the one
            that a user gets who names none.
        train: training manifest; how long its utterances are is how long a window of a long recording is.
        lm: weights of the language model, safetensors. The ARPA files that decodings name are copied, too.

    Raises:
        UserError: an input is absent.
    """
    from espnet3.report.table import format_table, read_rows

    output, kind = Path(output_dir), conf["tokenizer"]["type"]
    files = ["tokens.txt"] + ["bpe.model"] * (kind == "bpe")
    _copy(Path(weights), output / "model.safetensors")
    for name in files:
        _copy(Path(tokens, name), output / name)
    extra = _language_models(conf, lm, output)
    results: dict[str, dict[str, Any]] = {}
    for row in read_rows(metrics):
        results.setdefault(row.decoding, {})[row.test_set] = row.metrics
    # sorted JSON does not keep which decoding came first
    default = next(iter(results), next(iter(resolve_variants(conf["decode"]))))
    kept = {key: conf[key] for key in ("model", "tokenizer", "data", "decode", "lm") if key in conf}
    if train is not None:
        kept["durations"] = _durations(train)
    write_json(output / "config.json", {"espnet3": __version__, "experiment": experiment, "decoding": default, **kept})
    write_json(output / "metrics.json", results)
    with open(output / "tokens.txt", encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    with atomic_write(output / "README.md") as handle:
        handle.write(
            CARD.format(
                experiment=experiment,
                version=__version__,
                rate=conf["data"]["sampling_rate"],
                tokens=count,
                type=kind,
                table=format_table(metrics, markdown=True),
                folder=output.name,
                bpe=", `bpe.model`" if kind == "bpe" else "",
                further="".join(f"- `{name}`: {what}\n" for name, what in extra.items()),
            )
        )
    log.info("%s: packed", output)


def _language_models(conf: dict[str, Any], lm: str | os.PathLike | None, output: Path) -> dict[str, str]:
    """Copy what decodings score text with, under names that do not depend on where it was; ``{name: what it is}``."""
    found = {}
    if lm is not None:
        _copy(Path(lm), output / PACKED_LM)
        found[PACKED_LM] = "the language model that `lm_weight` weighs"
    else:
        (output / PACKED_LM).unlink(missing_ok=True)
    paths = {str(v["ngram"]) for v in resolve_variants(conf["decode"]).values() if v.get("ngram")}
    for path in map(Path, sorted(paths)):
        if path.name in found:
            raise UserError(f"decode.ngram: two different files are called {path.name}; a pack needs a name for each")
        _copy(path, output / path.name)
        found[path.name] = "the n-gram model that `ngram_weight` weighs"
    return found


def _durations(train: str | os.PathLike) -> dict[str, float]:
    from espnet3.data.manifest import read_durations

    _, seconds = read_durations(train)
    return {"mean": round(sum(seconds) / len(seconds), 3), "max": round(max(seconds), 3)} if seconds else {}


def _copy(source: Path, target: Path) -> None:
    try:
        with open(source, "rb") as reader, atomic_write(target, "wb") as writer:
            shutil.copyfileobj(reader, writer)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
