"""One's own corpus as a JSON or JSONL file: one recording an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from espnet3.data.corpora.fields import ALIASES, below, choose, fit
from espnet3.data.corpora.splits import Draw, SourceCorpus
from espnet3.errors import UserError
from espnet3.io import read_json, read_jsonl


class JsonlCorpus(SourceCorpus):
    """Objects of ``{"id", "audio", "text"}`` and, as they are known, ``speaker``, ``split``, ``start``, ``duration``,
    ``channel``.

    A ``.jsonl`` file (or ``.jsonl.gz``) holds one a line, as NeMo's manifests do; a ``.json`` file holds a list of them,
    or a mapping of ids to them. Audio stays where it is; it may be any file that libsndfile reads. Further keys are
    carried into the manifest.

    Args:
        path: the file, or a mapping of split to file, such as ``{train: a.jsonl, test: b.jsonl}``.
        root: the folder that relative audio paths start from; None: each file's own folder.
        fractions: for lines without ``split``: the share of each split other than ``train``.
        columns: the keys of fields, such as ``{text: normalized}``, where they are not the usual ones.
        split_by, draw_from, seed: see :class:`espnet3.data.corpora.splits.Draw`.
        normalize: of the transcripts: ``none``, or ``basic`` (lower case, no punctuation).

    Raises:
        UserError: a file is absent or damaged, or a line lacks the audio.
    """

    listed = True

    def __init__(
        self,
        path: str | dict[str, str],
        root: str | None = None,
        fractions: dict[str, float] | None = None,
        columns: dict[str, str] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
        normalize: str = "none",
    ) -> None:
        self.path, self.root, self.columns = path, root, dict(columns or {})
        fractions = fractions if fractions is not None else {"valid": 0.05, "test": 0.05}
        self.draw = Draw(fractions, split_by, draw_from, seed)
        self.normalize = normalize

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        files = self.path if isinstance(self.path, dict) else {None: self.path}
        for split, path in files.items():
            yield from self._read(Path(path), split)

    def _read(self, path: Path, split: str | None) -> Iterator[dict[str, Any]]:
        root = Path(self.root) if self.root is not None else path.parent
        known: dict[tuple, dict[str, str]] = {}
        for where, line in _objects(path):
            if not isinstance(line, dict):
                raise UserError(f"{path}:{where}: not an object, but {type(line).__name__}")
            keys = tuple(line)
            if keys not in known:
                if not self.columns and not any(name in line for name in ALIASES["audio"]):
                    raise UserError(f"{path}:{where}: the line has no 'audio'")
                known[keys] = choose(keys, self.columns, f"{path}:{where}")
            fields = {name: field for field, name in known[keys].items()}
            record = fit({fields.get(key, key): value for key, value in line.items()}, f"line-{where}")
            yield {**record, "split": split or record.get("split"), "audio": below(root, record["audio"])}


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    """``(number, object)`` of each recording in a JSON or JSONL file."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; name the list itself, such as {path / 'train.jsonl'}")
    try:
        yield from _read_objects(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    if path.name.endswith(".json") and not _is_lines(path):
        content = read_json(path)
        if isinstance(content, dict):
            content = [{"id": uid, **value} if isinstance(value, dict) else value for uid, value in content.items()]
        if not isinstance(content, list):
            raise UserError(f"{path}: neither a list of recordings nor a mapping of ids to them")
        yield from enumerate(content, 1)
    else:
        yield from enumerate(read_jsonl(path), 1)


def _is_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds one object a line, as NeMo names such files."""
    try:
        with open(path, encoding="utf-8") as lines:
            first = next(lines, "")
            return isinstance(json.loads(first), dict) and bool(next(lines, ""))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
