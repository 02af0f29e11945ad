"""Records that kill their process: found over the attempts at one shard, and then set aside."""

from __future__ import annotations

import json
import os
from pathlib import Path

from espnet3.errors import UserError
from espnet3.io import read_json
from espnet3.parallel.shardfile import beside

PATIENCE = 2


class Attempts:
    """Counts the processes that died at the same place of a shard without unwinding (SIGKILL, a crash in C code).

    After :data:`PATIENCE` such deaths the batch at that place is run record by record, each noted before it is begun;
    a record during which the process dies again is *deadly*, and the next attempt leaves it out.

    Args:
        path: the shard.
        fingerprint: of the shard; notes of another are ignored.
        start: the number of its batches that are complete.
    """

    def __init__(self, path: Path, fingerprint: str, start: int):
        self.path = beside(path, ".attempts.json")
        self._note = {"fingerprint": fingerprint, "start": start, "deaths": 0, "at": None, "deadly": []}
        try:
            old = read_json(self.path) if self.path.exists() else {}
        except UserError:
            old = {}
        if isinstance(old, dict) and (old.get("fingerprint"), old.get("start")) == (fingerprint, start):
            self._note.update(deaths=old["deaths"] + 1, deadly=old["deadly"])
            if old["at"] is not None:
                self._note["deadly"] = [*old["deadly"], old["at"]]
        self._open = True
        self._write()

    @property
    def careful(self) -> bool:
        """Whether the next batch is to be run record by record."""
        return self._open and self._note["deaths"] >= PATIENCE

    @property
    def deadly(self) -> list[int]:
        """The indices that kill their process."""
        return self._note["deadly"]

    def at(self, index: int) -> None:
        """Note that this record is about to be begun."""
        self._note["at"] = index
        self._write()

    def over(self) -> None:
        """The batch is done, or the process unwinds: nobody has died."""
        if self._open:
            self._open = False
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        temporary = beside(self.path, ".tmp")
        temporary.write_text(json.dumps(self._note), encoding="utf-8")
        os.replace(temporary, self.path)
