"""Corpora that are read from files somebody else made, and how their utterances get into splits."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from espnet3.data.corpora.base import CorpusBuilder
from espnet3.errors import UserError
from espnet3.metrics.normalisation import normaliser


class SourceCorpus(CorpusBuilder):
    """A corpus that exists: a subclass yields its records, those whose split nobody has said with ``split`` None.

    ``draw`` of a subclass is set from its arguments ``fractions``, ``split_by``, ``draw_from`` and ``seed``, see
    :class:`Draw`; ``normalize`` from the argument of that name.
    """

    draw: Draw
    normalize = "none"

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        """The records, lazily. Audio that lies in no file of its own is written below *folder*."""
        raise NotImplementedError

    def plan(self, folder: Path) -> Iterable[dict[str, Any]]:
        return self.draw(self._normalized(self.read(folder)))

    def _normalized(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self.normalize not in ("none", "basic"):
            raise UserError(f"data.builder.normalize: there is no '{self.normalize}'; known: basic, none")
        function = normaliser(self.normalize)
        for record in records:
            yield {**record, "text": function(record["text"])} if isinstance(record.get("text"), str) else record


class Draw:
    """Seeded splits for records that have none.

    Args:
        fractions: the share of each split other than ``train``.
        split_by: ``id`` draws each utterance by a hash of its id, so that a longer corpus leaves the utterances that it
            already had where they were; ``speaker`` gives each split speakers of its own.
        draw_from: a given split from which they are drawn, too, such as ``train`` where a corpus has no ``valid``.
        seed: another one gives other splits.

    Raises:
        UserError: the fractions leave nothing for training, or there are too few speakers.
    """

    def __init__(
        self,
        fractions: dict[str, float] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
    ) -> None:
        self.fractions, self.split_by, self.draw_from, self.seed = dict(fractions or {}), split_by, draw_from, seed
        if split_by not in ("id", "speaker"):
            raise UserError(f"data.builder.split_by: '{split_by}' is neither 'id' nor 'speaker'")
        if any(not 0 <= share < 1 for share in self.fractions.values()) or sum(self.fractions.values()) >= 1:
            raise UserError(f"data.builder.fractions: {self.fractions} leave nothing for train")

    def __call__(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The records with their splits, in their order; lazily where speakers play no part."""
        if self.split_by == "speaker" and self.fractions:
            records = list(records)
            speakers = self._speakers([r for r in records if self._free(r)])
            for record in records:
                yield {**record, "split": speakers[_speaker(record)]} if self._free(record) else record
            return
        for record in records:
            yield {**record, "split": self._by_id(record["id"])} if self._free(record) else record

    def _free(self, record: dict[str, Any]) -> bool:
        return record.get("split") is None or (self.draw_from is not None and record["split"] == self.draw_from)

    def _hash(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256((f"{self.seed}/{name}" if self.seed else name).encode()).digest()[:8])

    def _by_id(self, uid: str) -> str:
        place = self._hash(uid) / 2**64
        for split, share in self.fractions.items():
            if place < share:
                return split
            place -= share
        return "train"

    def _speakers(self, records: list[dict[str, Any]]) -> dict[str, str]:
        counts = collections.Counter(map(_speaker, records))
        if len(counts) <= len(self.fractions):
            raise UserError(
                f"data.builder.split_by: {len(counts)} speakers cannot be shared by train and {len(self.fractions)} "
                "other splits; say split_by: id"
            )
        waiting = sorted(counts, key=self._hash)
        chosen = dict.fromkeys(counts, "train")
        for split, share in self.fractions.items():
            wanted, have = share * len(records), 0
            for speaker in list(waiting):
                # a speaker of half the corpus would take most of what training needs
                if (
                    len(waiting) > 1
                    and (have == 0 or have + counts[speaker] <= wanted)
                    and counts[speaker] <= max(2 * wanted, min(counts[s] for s in waiting))
                ):
                    chosen[speaker] = split
                    have += counts[speaker]
                    waiting.remove(speaker)
                if have >= wanted:
                    break
        return chosen


def _speaker(record: dict[str, Any]) -> str:
    # one whose speaker nobody knows is a speaker of his own
    return str(record["speaker"]) if record.get("speaker") is not None else f"\0{record['id']}"
