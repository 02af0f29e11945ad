"""What lies at a path: the ``data.builder`` node of a corpus that somebody names by its format and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espnet3.errors import UserError, did_you_mean

TARGETS = {
    "kaldi": "espnet3.data.corpora.kaldi.KaldiCorpus",
    "jsonl": "espnet3.data.corpora.jsonl.JsonlCorpus",
    "lhotse": "espnet3.data.corpora.lhotse.LhotseCorpus",
    "hf": "espnet3.data.corpora.huggingface.HuggingFaceCorpus",
    "tsv": "espnet3.data.corpora.tsv.TsvCorpus",
}
_VALID = ("dev", "validation", "val", "valid", "eval")
# Common Voice's further tables: other choices of the same clips
_NOT_SPLITS = ("validated", "invalidated", "other", "reported", "unvalidated_sentences", "validated_sentences")
_NOT_SPLITS += ("clip_durations", "times", "rejected")


def builder_node(kind: str, path: str) -> dict[str, Any]:
    """A ``_target_`` node for the corpus of format *kind* at *path*; a folder's parts become its splits.

    Raises:
        UserError: no such format, or nothing of it is there.
    """
    if kind not in TARGETS:
        raise UserError(f"--from: there is no format '{kind}'{did_you_mean(kind, TARGETS)}")
    node: dict[str, Any] = {"_target_": TARGETS[kind]}
    if kind == "hf":
        return node | {"dataset": path}
    place = Path(path)
    if not place.exists():
        raise UserError(f"{path}: no such file or folder")
    return node | {"kaldi": _kaldi, "jsonl": _jsonl, "lhotse": _lhotse, "tsv": _tsv}[kind](place)


def split_name(name: str, taken: Any = ()) -> str:
    """The name of our split for a part called *name*: ``valid`` for ``dev`` and the like."""
    return "valid" if name in _VALID and "valid" not in taken else name


def _named(files: dict[str, Path]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, path in files.items():
        names[split_name(name, files.keys() - {name})] = str(path)
    return names


def _kaldi(place: Path) -> dict[str, Any]:
    if (place / "wav.scp").is_file():
        return {"dirs": str(place)}
    found = {path.parent.name: path.parent for path in sorted(place.glob("*/wav.scp"))}
    if not found:
        raise UserError(f"{place}: no Kaldi directory: neither wav.scp nor folders that have one")
    return {"dirs": _named(found)}


def _files(place: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    found = {}
    for path in sorted(place.iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
        if suffix and path.is_file() and path.name.removesuffix(suffix) not in _NOT_SPLITS:
            found.setdefault(path.name.removesuffix(suffix), path)
    if not found:
        raise UserError(f"{place}: no {what} there ({', '.join(suffixes)})")
    return found


def _jsonl(place: Path) -> dict[str, Any]:
    if place.is_file():
        return {"path": str(place)}
    return {"path": _named(_files(place, (".jsonl", ".jsonl.gz", ".json"), "JSON or JSONL file"))}


def _tsv(place: Path) -> dict[str, Any]:
    if place.is_file():
        return {"path": str(place)}
    folders = {path.parent.name: path for path in sorted(place.glob("*/metadata.[ct]sv"))}
    if folders:
        return {"path": _named(folders)}
    files = _files(place, (".tsv", ".csv"), "table")
    if set(files) == {"metadata"}:
        return {"path": str(files["metadata"])}
    # Common Voice keeps the audio of all tables in one folder beside them
    return {"path": _named(files)} | ({"root": str(place / "clips")} if (place / "clips").is_dir() else {})


def _lhotse(place: Path) -> dict[str, Any]:
    if place.is_file() or any(place.glob("cuts.*.jsonl*")):
        return {"path": str(place)}
    folders = {path.parent.name: path.parent for path in sorted(place.glob("*/cuts.*.jsonl*"))}
    if folders:
        return {"path": _named(folders)}
    files = _files(place, (".jsonl.gz", ".jsonl"), "Lhotse manifest")
    pairs: dict[str, dict[str, Path]] = {"recordings": {}, "supervisions": {}}
    for name, path in files.items():
        for kind, found in pairs.items():
            prefix, mark, split = name.partition(kind)
            if mark:
                found[split.strip("_-") or prefix.strip("_-") or "train"] = path
    if pairs["recordings"] and pairs["recordings"].keys() == pairs["supervisions"].keys():
        return {kind: _named(found) for kind, found in pairs.items()}
    return {"path": _named(files)}
