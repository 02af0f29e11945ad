"""Manifests of any size at 200 to 250 bytes a line: lines packed in memory, decoded when they are asked for.

A gzip file cannot be read from the middle, an unpacked copy of it may not fit the disk, and a million decoded cuts take
gigabytes. So a manifest is read once: its lines are packed again in small blocks, and ids and durations go to arrays, which
loader processes share instead of copying.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet3.errors import UserError
from espnet3.io import read_lines

if TYPE_CHECKING:
    from lhotse import CutSet

# lines a block: reading one line unpacks one block, in about 0.1 ms
BLOCK = 64
# blocks that stay unpacked, about 50 kB each: a small corpus is unpacked once
UNPACKED = 64
# decoded cuts take about 5 kB each; some of Lhotse's samplers (BucketingSampler) want them so
EAGER = 10_000
_HEAD = re.compile(r'\{"id": "((?:[^"\\]|\\.)*)", "start": [-+\d.eE]+, "duration": ([-+\d.eE]+),')
_RATE = re.compile(r'"sampling_rate": (\d+)')


def read_head(line: str, path: str | os.PathLike, number: int) -> tuple[str, float]:
    """Id and duration (s) of a manifest's line, without decoding it where it is written as this project writes it.

    Raises:
        UserError: *line*, number *number* of *path*, is no cut.
    """
    match = _HEAD.match(line)
    if match and "\\" not in match[1]:
        return match[1], float(match[2])
    try:
        cut = json.loads(line)
        uid, duration = cut["id"], float(cut["duration"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        uid, duration = None, math.nan
    if not isinstance(uid, str) or not (math.isfinite(duration) and duration >= 0):
        raise UserError(f"{path}:{number}: not a Lhotse cut (it needs 'id' and 'duration')")
    return uid, duration


class PackedLines:
    """An append-only list of lines, deflated in blocks of :data:`BLOCK`."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[str] = []
        self._unpacked: dict[int, list[str]] = {}

    def append(self, line: str) -> None:
        """Add *line*, which holds no line break."""
        self._open.append(line)
        if len(self._open) == BLOCK:
            self._blocks.append(zlib.compress("\n".join(self._open).encode(), 1))
            self._open = []

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK + len(self._open)

    def __getitem__(self, index: int) -> str:
        number, at = divmod(index, BLOCK)
        if number >= len(self._blocks):
            return self._open[at]
        lines = self._unpacked.get(number)
        if lines is None:
            if len(self._unpacked) >= UNPACKED:
                del self._unpacked[next(iter(self._unpacked))]
            lines = self._unpacked[number] = zlib.decompress(self._blocks[number]).decode().split("\n")
        return lines[at]

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpacked": {}}


class IdList(Sequence):
    """An immutable list of strings in one buffer, with a search by value."""

    def __init__(self, ids: Iterator[str] | Sequence[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q")
        for uid in ids:
            self.append(uid)

    def append(self, uid: str) -> None:
        """Add *uid*; only while the list is filled."""
        self._bytes += uid.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self._ends)
        index = int(index) + (size if index < 0 else 0)
        if not 0 <= index < size:
            raise IndexError(f"item {index} of {size}")
        return self._bytes[self._ends[index - 1] if index else 0 : self._ends[index]].decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        hashes = np.fromiter((hash(uid) for uid in self), dtype=np.int64, count=len(self))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def position(self, uid: str) -> int:
        """Where *uid* stands. Raises KeyError where it does not."""
        hashes, order = self._sorted
        at = int(np.searchsorted(hashes, hash(uid)))
        while at < len(order) and hashes[at] == hash(uid):
            if self[order[at]] == uid:
                return int(order[at])
            at += 1
        raise KeyError(uid)

    def first_duplicate(self) -> tuple[int, int] | None:
        """Positions of the first two equal strings that are found; None: there are none."""
        hashes, order = self._sorted
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            if self[order[at]] == self[order[at + 1]]:
                return int(order[at]), int(order[at + 1])
        return None

    def __getstate__(self) -> dict[str, Any]:
        # each process has hashes of its own
        return {key: value for key, value in self.__dict__.items() if key != "_sorted"}


class Manifest(Sequence):
    """A manifest file of Lhotse cuts: ``manifest[i]`` is a cut's dictionary, ``cuts()`` a CutSet.

    Attributes:
        ids: utterance ids. durations: float64 (N,), in seconds. rates: int32 (N,), Hz; 0 where the line names none.

    Raises:
        UserError: the file is absent or damaged, or a line is no cut.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        self.ids, self._lines = IdList(), PackedLines()
        durations, rates = array("d"), array("i")
        for number, line in read_lines(path):
            uid, duration = read_head(line, path, number)
            rate = _RATE.search(line)
            self.ids.append(uid)
            durations.append(duration)
            rates.append(int(rate[1]) if rate else 0)
            self._lines.append(line.rstrip("\n"))
        self.durations = np.frombuffer(durations, dtype=np.float64)
        self.rates = np.frombuffer(rates, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return json.loads(self._lines[index])
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path}:{index + 1}: not valid JSON ({error.msg})") from None

    def cuts(self, eager: int = EAGER) -> CutSet:
        """The cuts: decoded once where there are at most *eager*, otherwise lazily, anew in each pass."""
        from lhotse import CutSet

        cuts = _LazyCuts(self)
        return CutSet.from_cuts(cuts) if len(self) <= eager else CutSet(cuts)


class _LazyCuts:
    """What a lazy CutSet iterates."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, int):
            raise TypeError(index)
        return self._cut(range(len(self))[index])

    def __iter__(self) -> Iterator[Any]:
        return (self._cut(index) for index in range(len(self)))

    def _cut(self, index: int) -> Any:
        from lhotse.serialization import deserialize_item

        return deserialize_item(self.manifest[index])
