"""One's own corpus as a JSONL file: one recording a line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from espnet3.data.corpora.base import CorpusBuilder
from espnet3.errors import UserError
from espnet3.io import read_jsonl


class JsonlCorpus(CorpusBuilder):
    """Lines of ``{"id", "audio", "text"}`` and, as they are known, ``speaker``, ``split``, ``start``, ``duration``,
    ``channel``.

    Audio stays where it is; it may be any file that libsndfile reads. Further keys are carried into the manifest.

    Args:
        path: the file (``.jsonl`` or ``.jsonl.gz``), or a mapping of split to file, such as ``{train: a.jsonl, test:
            b.jsonl}``.
        root: the folder that relative audio paths start from; None: each JSONL file's own folder.
        fractions: for lines without ``split``: the share of each split other than ``train``, drawn by a hash of the
            id, so that a longer file leaves the utterances it already had where they were.

    Raises:
        UserError: a file is absent or damaged, or a line lacks ``id`` or ``audio``.
    """

    def __init__(
        self, path: str | dict[str, str], root: str | None = None, fractions: dict[str, float] | None = None
    ) -> None:
        self.path, self.root = path, root
        self.fractions = dict(fractions) if fractions is not None else {"valid": 0.05, "test": 0.05}
        if sum(self.fractions.values()) >= 1:
            raise UserError(f"data.builder.fractions: {self.fractions} leave nothing for train")

    def plan(self, folder: Path) -> list[dict[str, Any]]:
        files = self.path if isinstance(self.path, dict) else {None: self.path}
        return [record for split, path in files.items() for record in self._read(Path(path), split)]

    def _read(self, path: Path, split: str | None) -> list[dict[str, Any]]:
        root = Path(self.root) if self.root is not None else path.parent
        records = []
        for number, line in enumerate(read_jsonl(path), 1):
            for key in ("id", "audio"):
                if not isinstance(line, dict) or not line.get(key):
                    raise UserError(f"{path}:{number}: the line has no '{key}'")
            own = split or line.get("split") or self._draw(str(line["id"]))
            records.append({**line, "id": str(line["id"]), "split": own, "audio": str(root / str(line["audio"]))})
        return records

    def _draw(self, uid: str) -> str:
        place = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8]) / 2**64
        for split, share in self.fractions.items():
            if place < share:
                return split
            place -= share
        return "train"
