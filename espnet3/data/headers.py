"""Headers that were read before, by the file's path, size and time of change."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from espnet3.data import wavheader
from espnet3.data.wavheader import AudioHeader, BadAudio, read_header
from espnet3.io import sha256_file

log = logging.getLogger(__name__)

# a file that changes twice within the clock's grain keeps its time: too fresh a file is read again
SETTLED_SECONDS = 2.0
# a writer that was killed leaves its copy
ABANDONED_SECONDS = 3600.0
_COLUMNS = (
    "audio TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, rate INTEGER, samples INTEGER, channels INTEGER, bad TEXT"
)
Entry = tuple[str, int, int, int, int, int, str | None]


class Headers:
    """Reads headers, or what the cache at *path* (None: no cache) says of them.

    Attributes:
        fresh: entries that the cache does not have yet, for :class:`CacheWriter`; whoever takes them empties the list.
        hits: how many came from the cache.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self.fresh: list[Entry] = []
        self.hits = 0
        self._caching = path is not None
        self._old = _open(path) if path is not None else None

    def read(self, audio: str | os.PathLike) -> AudioHeader:
        """The header of the file *audio*. Raises BadAudio as :func:`read_header` does."""
        if not self._caching:
            return read_header(audio)
        try:
            stat = os.stat(audio)
        except (OSError, ValueError):
            return read_header(audio)
        key = (os.fspath(audio), stat.st_size, stat.st_mtime_ns)
        if self._old is not None:
            row = self._old.execute(
                "SELECT rate, samples, channels, bad FROM headers WHERE audio = ? AND size = ? AND mtime = ?", key
            ).fetchone()
            if row is not None:
                self.hits += 1
                if row[3] is not None:
                    raise BadAudio(row[3])
                return AudioHeader(*row[:3])
        header, problem = AudioHeader(0, 0, 0), None
        try:
            header = read_header(audio)
        except BadAudio as error:
            problem = str(error)
        if time.time() - stat.st_mtime > SETTLED_SECONDS:
            self.fresh.append((*key, header.sampling_rate, header.num_samples, header.channels, problem))
        if problem is not None:
            raise BadAudio(problem)
        return header


class CacheWriter:
    """Adds entries to a copy of the cache at *path*, and puts the copy in its place at the end, if any were added.

    A cache that cannot be written costs a second look next time, and a warning; never the job.
    """

    def __init__(self, path: str | os.PathLike | None) -> None:
        self.path = Path(path) if path is not None else None
        self._temporary: str | None = None
        self._connection: Any = None

    def __enter__(self) -> CacheWriter:
        return self

    def add(self, entries: Iterable[Entry]) -> None:
        """Note *entries*."""
        entries = list(entries)
        if self.path is None or not entries:
            return
        try:
            if self._connection is None:
                self._begin()
            self._connection.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?, ?, ?)", entries)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("%s: the headers are not remembered (%s)", self.path, error)
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
        self.path = self._connection = None

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()
        descriptor, self._temporary = tempfile.mkstemp(
            prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent
        )
        os.close(descriptor)
        if (old := _open(self.path)) is not None:
            old.close()
            shutil.copyfile(self.path, self._temporary)
        self._connection = sqlite3.connect(self._temporary)
        # a cache that is lost costs a second look, no more
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS headers ({_COLUMNS}) WITHOUT ROWID")
        self._connection.execute("CREATE TABLE IF NOT EXISTS code (digest TEXT)")
        self._connection.execute("DELETE FROM code")
        self._connection.execute("INSERT INTO code VALUES (?)", (_code(),))

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._connection is None:
            return
        try:
            self._connection.commit()
            self._connection.close()
        except sqlite3.Error as error:
            self._give_up(error)
            return
        with contextlib.suppress(OSError):
            if kind is None:
                os.replace(self._temporary, self.path)
            else:
                os.unlink(self._temporary)


def _code() -> str:
    return sha256_file(wavheader.__file__)


def _open(path: str | os.PathLike) -> Any:
    """The cache as a read-only connection; None where there is none, or one that other code has written."""
    if not os.path.isfile(path):
        return None
    try:
        # immutable: nobody writes to a cache that is in place, and network file systems need no locks
        connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        if connection.execute("SELECT digest FROM code").fetchone() == (_code(),):
            return connection
        connection.close()
    except sqlite3.Error:
        pass
    return None
