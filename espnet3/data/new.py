"""``python -m espnet3 new``: look at a corpus, say what is in it, and write an experiment that runs as it is."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from espnet3.config.compose import load_config
from espnet3.config.instantiate import instantiate
from espnet3.data.corpora.base import build_corpus
from espnet3.data.corpora.guess import TARGETS, builder_node, split_name
from espnet3.data.corpora.splits import Draw
from espnet3.data.survey import Survey, check_usable, measure, survey
from espnet3.errors import UserError
from espnet3.io import atomic_write, read_jsonl

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_SHARE = 0.05
# seconds of speech below which the smallest of the models is enough
_SMALL, _MEDIUM = 3 * 3600.0, 30 * 3600.0


def look(node: dict[str, Any], workers: int = 1) -> list[dict[str, Any]]:
    """The records of the corpus that *node* describes, with the splits of its own; audio in containers is measured in a
    temporary folder.
    """
    parallel = {"env": "multiprocessing" if workers > 1 else "local", "n_workers": workers}
    with tempfile.TemporaryDirectory(prefix="espnet3-new-") as temporary:
        listing = Path(temporary, "corpus.jsonl")
        build_corpus(node | {"fractions": {}}, listing, parallel)
        return measure(list(read_jsonl(listing)), parallel)


def decide(
    node: dict[str, Any], records: list[dict[str, Any]], seed: int
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """How the corpus is split.

    Returns:
        The builder with the keys that say so; ``train``, ``valid`` and ``test`` of the data section; and why, in a line.
    """
    found = list(dict.fromkeys(record["split"] for record in records))
    hours = {split: sum(r.get("seconds", 0) for r in records if r["split"] == split) for split in found}
    train = "train" if "train" in found else max(found, key=lambda split: hours[split])
    rest = [split for split in found if split != train]
    valid = next((s for s in rest if split_name(s) == "valid" or "dev" in s or "valid" in s), None)
    tests = [split for split in rest if split != valid]
    draw: dict[str, float] = {} if valid else {"valid": _SHARE}
    if not tests:
        draw["test"] = _SHARE
    choice = {"train": "train" if draw else train, "valid": valid or "valid", "test": tests or ["test"]}
    if not draw:
        return node, choice, f"the splits are the corpus's own: {', '.join(found)}"
    free = [record for record in records if record["split"] == train]
    speakers = {record.get("speaker") for record in free} - {None}
    # with fewer, a split by speaker would take too much, or too little, of the corpus
    by = "speaker" if len(speakers) >= 5 * len(draw) and all(r.get("speaker") for r in free) else "id"
    counts = _drawn(free, draw, by, train, seed)
    empty = [split for split in draw if not counts.get(split)]
    if empty:
        raise UserError(
            f"{len(free)} utterances in '{train}' are too few to draw {' and '.join(empty)} from: add a split of their own"
        )
    keys = {"fractions": draw, "split_by": by, "draw_from": train, "seed": seed}
    why = f"{' and '.join(draw)} drawn from '{train}' (seed {seed}), " + (
        f"with speakers of their own ({len(speakers)} in all)"
        if by == "speaker"
        else f"by utterance: the same speakers are in all of them ({len(speakers) or 'unknown'} speakers)"
    )
    return node | keys, choice, why


def _drawn(free: list[dict[str, Any]], draw: dict[str, float], by: str, train: str, seed: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in Draw(draw, by, train, seed)(dict(r) for r in free):
        counts[record["split"]] = counts.get(record["split"], 0) + 1
    return counts


def apply_splits(node: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the splits that *node* will give them."""
    keys = {key: node[key] for key in ("fractions", "split_by", "draw_from", "seed") if key in node}
    return list(Draw(**keys)(records)) if node.get("draw_from") else records


def write_experiment(
    name: str, node: dict[str, Any], choice: dict[str, Any], found: Survey, config_dir: Path
) -> list[Path]:
    """Write ``data/<name>.yaml`` and ``<name>.yaml`` below *config_dir*."""
    files = [config_dir / "data" / f"{name}.yaml", config_dir / f"{name}.yaml"]
    data = {
        "corpus": name, "builder": node, **choice, "sampling_rate": found.sampling_rate,
        "min_duration": 0.1, "max_duration": found.max_duration, "max_rejected": found.max_rejected,
    }  # fmt: skip
    with atomic_write(files[0]) as handle:
        handle.write(f"# {found.headline}\n")
        yaml.safe_dump(data, handle, sort_keys=False, allow_unicode=True, width=120)
    with atomic_write(files[1]) as handle:
        handle.write(f"# Written by `python -m espnet3 new {name}`: a first guess at sizes, by the hours of speech.\n")
        handle.write(_experiment(name, found))
    return files


def _experiment(name: str, found: Survey) -> str:
    tokenizer, size = ("bpe", 500 if found.train_seconds < 100 * 3600 else 5000) if found.pieces else ("char", None)
    text = "defaults:\n" + "".join(
        f"  - {entry}\n"
        for entry in (
            "recipe: base", f"data: {name}", f"tokenizer: {tokenizer}", "model: conformer_small", "trainer: small",
            "decode: joint", "parallel: processes", "_self_",
        )
    )  # fmt: skip
    if size:
        text += f"tokenizer: {{vocab_size: {size}}}\n"
    seconds = 25.0 if found.train_seconds < _SMALL else 200.0
    # a batch must hold the longest utterance
    seconds = max(seconds, 10 * round(found.longest / 10 + 0.5))
    steps = max(1, round(found.train_seconds / seconds))
    epochs = min(80, max(8, round(2500 / steps))) if found.train_seconds < _SMALL else 50
    text += f"trainer: {{max_epochs: {epochs}}}\n"
    text += f"scheduler: {{warmup_steps: {min(4000, max(20, epochs * steps // 10))}, steps: {epochs * steps}}}\n"
    text += f"dataloader:\n  train: {{sampler: {{max_duration: {seconds}}}}}\n"
    if seconds > 100:
        text += f"  valid: {{sampler: {{max_duration: {seconds}}}}}\n"
    if found.train_seconds > _MEDIUM:
        text += "model:\n  encoder: {blocks: 12, output_size: 256, hidden: 1024, dropout: 0.1}\n"
        text += "  decoder: {blocks: 6, hidden: 1024, dropout: 0.1}\nstats: {shards: 8}\nexecution: {num_workers: 4}\n"
    else:
        text += "model:\n  encoder: {dropout: 0.1}\n  decoder: {dropout: 0.1}\n"
    return text


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 new",
        description="Look at a corpus, say what is in it and what looks wrong, and write an experiment for it.",
    )
    parser.add_argument("name", help="of the experiment and of its corpus")
    parser.add_argument(
        "--from", dest="source", nargs=2, required=True, metavar=("FORMAT", "PATH"), help=", ".join(TARGETS)
    )
    parser.add_argument("--config-dir", default="config", help="default: config")
    parser.add_argument("--sampling-rate", type=int, default=None, help="Hz; default: the commonest, at most 16000")
    parser.add_argument("--seed", type=int, default=0, help="of the splits that are drawn")
    parser.add_argument("--workers", type=int, default=1, help="processes that read headers")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    print(create(arguments.name, *arguments.source, **_options(arguments)))
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("config_dir", "sampling_rate", "seed", "workers", "dry_run")
    return {name: getattr(arguments, name) for name in names}


def create(
    name: str,
    kind: str,
    path: str,
    config_dir: str = "config",
    sampling_rate: int | None = None,
    seed: int = 0,
    workers: int = 1,
    dry_run: bool = False,
) -> str:
    """Write the experiment *name* for the corpus of format *kind* at *path*; what is to be told of it.

    Raises:
        UserError: the name is unfit or taken, or there is no such corpus, or no usable utterance in it.
    """
    if not re.fullmatch(_NAME, name):
        raise UserError(f"'{name}': an experiment's name may hold letters, digits, '_' and '-' only")
    place = Path(config_dir)
    if not (place / "recipe" / "base.yaml").is_file():
        raise UserError(f"{config_dir}: no folder of experiments; run in the repository, or say --config-dir")
    for taken in (place / f"{name}.yaml", place / "data" / f"{name}.yaml"):
        if taken.exists():
            raise UserError(f"{taken}: is there already; choose another name, or remove it")
    for other in sorted((place / "data").glob("*.yaml")):
        if re.search(rf"^corpus: {re.escape(name)}\s*$", other.read_text(encoding="utf-8"), re.MULTILINE):
            raise UserError(f"{other}: has the corpus '{name}' already; choose another name")
    node = builder_node(kind, path)
    instantiate(node)
    records = look(node, workers)
    check_usable(records)
    node, choice, why = decide(node, records, seed)
    found = survey(apply_splits(node, records), choice, sampling_rate)
    lines = [found.headline, f"splits: {why}", *found.lines(), *(f"look at: {problem}" for problem in found.problems)]
    if dry_run:
        return "\n".join(lines)
    files = write_experiment(name, node, choice, found, place)
    load_config(name, config_dir=place)
    lines += [f"wrote {file}" for file in files]
    return "\n".join([*lines, f"next: snakemake --profile local exp/{name}/manifests, then exp/{name}/decode"])
