"""One shard on disk: streamed to a temporary name, resumable after its last complete batch, renamed when whole.

Beside a shard ``P`` there may be, while it is being made, ``P.partial`` (the records so far), ``P.partial.json`` (what
they depend on), ``P.lock`` (its owner holds a lock on it) and ``P.failed.jsonl.partial``; afterwards, only where
records were quarantined, ``P.failed.jsonl``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import FULL_DISK, fsync_dir, read_json, read_jsonl

logger = logging.getLogger("espnet3.parallel")


def beside(path: Path, suffix: str) -> Path:
    """``shard-1-of-2.jsonl`` -> ``shard-1-of-2.jsonl<suffix>``."""
    return path.with_name(path.name + suffix)


def failed_path(path: str | os.PathLike) -> Path:
    """Where a shard's quarantined records are listed; absent when there are none."""
    return beside(Path(path), ".failed.jsonl")


def read_failures(path: str | os.PathLike) -> list[dict]:
    """A complete shard's quarantined records: ``{"index", "key", "error", "traceback"}``."""
    failed = failed_path(path)
    return list(read_jsonl(failed)) if failed.exists() else []


def to_json(value: Any) -> str:
    """One line of JSON; arrays and scalars of numpy or torch become lists and numbers, paths strings."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a result of type {type(value).__name__} is no JSON: return plain values or override write_record")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into one line that says where; what is complete stays, and a rerun resumes after it."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            message = f"{path}: {os.strerror(error.errno).lower()}; free some space and run again, it resumes"
            raise UserError(message) from error
        raise


class ShardLock:
    """At most one process makes a shard, even where a scheduler has started it twice."""

    def __init__(self, path: Path):
        self.path = beside(path, ".lock")
        self._descriptor = -1

    def __enter__(self) -> ShardLock:
        told = 0.0
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                if time.monotonic() - told > 10:
                    logger.info("%s: another process is making this shard; waiting for it", self.path)
                    told = time.monotonic()
                time.sleep(0.2)
                continue
            except OSError as error:
                # some network file systems have no locks; names and renames still keep the result whole
                logger.debug("%s: no lock (%s)", self.path, error)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(descriptor).st_ino:
                    self._descriptor = descriptor
                    return self
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._descriptor)


class _Appender:
    """Whole lines at the end of a file: a write that fails half-way is taken back."""

    def __init__(self, path: Path, size: int):
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        self.size = size

    def write(self, data: bytes) -> None:
        with disk_errors(self.path):
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except BaseException:
                os.ftruncate(self._descriptor, self.size)
                os.lseek(self._descriptor, self.size, os.SEEK_SET)
                raise
        self.size += len(data)

    def sync(self) -> None:
        with disk_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _whole_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """``(end offset, value)`` of each complete JSON line, up to the first that is torn."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as lines:
        for line in lines:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield end, value


class ShardFile:
    """A shard as one JSONL file, one line a record.

    Args:
        path: the finished file.
        batches: the shard's batches of indices, in the order in which they are written.
        fingerprint: what the records depend on; an unfinished file of another fingerprint is thrown away.
        fsync_seconds: how much work a power cut may cost.
    """

    def __init__(self, path: Path, batches: list[list[int]], fingerprint: str, fsync_seconds: float = 5.0):
        self.path, self.batches, self.fingerprint, self.fsync_seconds = path, batches, fingerprint, fsync_seconds
        self.partial = beside(path, ".partial")
        self.journal = beside(path, ".partial.json")
        self.failed_partial = beside(failed_path(path), ".partial")
        self.failed = 0
        self.first_error: str | None = None
        self._journal: dict[str, Any] = {}

    def open(self) -> int:
        """Cut a torn tail and return the number of batches that are complete."""
        if not self._journal_matches():
            self._discard()
            self._write_journal({"fingerprint": self.fingerprint})
        failures = list(_whole_lines(self.failed_partial))
        bad = {failure["index"] for _, failure in failures}
        ends = [0, *(end for end, _ in _whole_lines(self.partial))]
        # failures are written before the records of their batch, so a batch whose lines are all there is whole
        done = lines = 0
        for batch in self.batches:
            good = sum(index not in bad for index in batch)
            if lines + good > len(ends) - 1:
                break
            done, lines = done + 1, lines + good
        complete = {index for batch in self.batches[:done] for index in batch}
        kept = 0
        for end, failure in failures:
            if failure["index"] not in complete:
                break
            kept = end
            self._count(failure)
        self._records = _Appender(self.partial, ends[lines])
        self._failures = _Appender(self.failed_partial, kept) if failures else None
        self._synced = time.monotonic()
        return done

    def write(self, records: list[tuple[int, str]], failures: list[dict]) -> None:
        """Add a batch: a line of JSON for each index, and what was quarantined."""
        self._write_failures(failures)
        self._records.write("".join([f"{line}\n" for _, line in records]).encode())
        if time.monotonic() - self._synced > self.fsync_seconds:
            self._records.sync()
            self._synced = time.monotonic()

    def encode(self, result: Any) -> str:
        """A result as it will stand in the file; an error here is the record's, one in :meth:`write` the disk's."""
        return to_json(result)

    def finish(self) -> None:
        """Rename to the final names."""
        self._records.sync()
        self._finish_failures()
        os.replace(self.partial, self.path)
        self.journal.unlink(missing_ok=True)
        fsync_dir(self.path.parent)

    def close(self) -> None:
        """Let go of the files, finished or not."""
        self._records.close()
        if self._failures:
            self._failures.close()

    def _journal_matches(self) -> bool:
        with contextlib.suppress(UserError):
            return self.journal.exists() and self._read_journal(read_json(self.journal))
        return False

    def _read_journal(self, journal: dict) -> bool:
        self._journal = journal
        if journal.get("fingerprint") != self.fingerprint:
            return False
        if journal.get("finishing") and not self.failed_partial.exists() and failed_path(self.path).exists():
            # it died between the two renames at its end
            os.replace(failed_path(self.path), self.failed_partial)
        return True

    def _write_journal(self, journal: dict) -> None:
        # not synced: one that a power cut damages costs a fresh start of this shard and nothing else
        self._journal = journal
        text = json.dumps(journal)
        temporary = beside(self.journal, ".tmp")
        with disk_errors(self.journal):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.journal)

    def _discard(self) -> None:
        for path in (self.journal, self.failed_partial):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.partial) if self.partial.is_dir() else self.partial.unlink(missing_ok=True)

    def _count(self, failure: dict) -> None:
        self.failed += 1
        self.first_error = self.first_error or f"{failure['key']}: {failure['error']}"

    def _write_failures(self, failures: list[dict]) -> None:
        if not failures:
            return
        self._failures = self._failures or _Appender(self.failed_partial, 0)
        self._failures.write("".join([f"{to_json(failure)}\n" for failure in failures]).encode())
        self._failures.sync()
        for failure in failures:
            self._count(failure)

    def _finish_failures(self) -> None:
        if self._failures and self.failed:
            self._write_journal({**self._journal, "finishing": True})
            os.replace(self.failed_partial, failed_path(self.path))
        else:
            self.failed_partial.unlink(missing_ok=True)
            failed_path(self.path).unlink(missing_ok=True)


class ShardFolder(ShardFile):
    """A shard as a folder that a runner's own writer hooks fill.

    Now and then the sizes of all its files are noted; a resume cuts them back to the last note and opens the writers
    again, so the hooks must open files for appending. Where that is impossible (a file is shorter than its note, or the
    hooks' state is not JSON) the shard starts anew.

    Args:
        hooks: the runner.
        env: passed to the hooks.
    """

    def __init__(self, path: Path, batches: list, fingerprint: str, fsync_seconds: float, hooks: Any, env: dict):
        super().__init__(path, batches, fingerprint, fsync_seconds)
        self.hooks, self.env = hooks, env
        self.state: dict[str, Any] = {"count": 0}
        self._failures: _Appender | None = None
        self._noted: dict[str, Any] = {}
        self._done = 0

    def open(self) -> int:
        """Restore the last note and open the writers; the number of batches that are complete."""
        if not (self._journal_matches() and self._restore()):
            self._fresh()
        self.writers = self.hooks.open_writers(self.partial, **self.env)
        if any(self._size(name) < size for name, size in self._noted.get("files", {}).items()):
            self.hooks.close_writers(self.writers, self.state, **self.env)
            self._fresh()
            self.writers = self.hooks.open_writers(self.partial, **self.env)
        self._synced = time.monotonic()
        return self._done

    def encode(self, result: Any) -> Any:
        """Results reach the hooks as they are."""
        return result

    def write(self, records: list[tuple[int, Any]], failures: list[dict]) -> None:
        """Pass a batch to the ``write_record`` hook."""
        self._write_failures(failures)
        with disk_errors(self.partial):
            for index, result in records:
                self.state["index"] = index
                self.hooks.write_record(self.writers, result, self.state, **self.env)
                self.state["count"] += 1
        self._done += 1
        if time.monotonic() - self._synced > self.fsync_seconds:
            self._note()

    def finish(self) -> None:
        """Close the writers and rename the folder."""
        with disk_errors(self.partial):
            self.hooks.close_writers(self.writers, self.state, **self.env)
            for name in self._files():
                descriptor = os.open(self.partial / name, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        self._finish_failures()
        if self.path.is_dir():
            shutil.rmtree(self.path)
        os.replace(self.partial, self.path)
        self.journal.unlink(missing_ok=True)
        fsync_dir(self.path.parent)

    def close(self) -> None:
        """Let go of the list of failures; the writers belong to the hooks."""
        if self._failures:
            self._failures.close()

    def _fresh(self) -> None:
        if self._failures:
            self._failures.close()
        self._discard()
        self.partial.mkdir(parents=True)
        self.state, self._noted, self._done = {"count": 0}, {}, 0
        self._failures, self.failed, self.first_error = None, 0, None

    def _read_journal(self, journal: dict) -> bool:
        self._noted = journal
        return super()._read_journal(journal)

    def _restore(self) -> bool:
        noted = self._noted
        if "done" not in noted or not self.partial.is_dir():
            return False
        for name in self._files():
            if name not in noted["files"]:
                (self.partial / name).unlink()
        for name, size in noted["files"].items():
            if self._size(name) < size:
                return False
            os.truncate(self.partial / name, size)
        self._done, self.state = noted["done"], noted["state"]
        if noted["failed_size"]:
            self._failures = _Appender(self.failed_partial, noted["failed_size"])
            for _, failure in _whole_lines(self.failed_partial):
                self._count(failure)
        return True

    def _note(self) -> None:
        self._synced = time.monotonic()
        handles = self.writers.values() if isinstance(self.writers, dict) else [self.writers]
        for handle in handles:
            if hasattr(handle, "flush"):
                handle.flush()
        note = {
            "fingerprint": self.fingerprint,
            "done": self._done,
            "state": self.state,
            "failed_size": self._failures.size if self._failures else 0,
            "files": {name: self._size(name) for name in self._files()},
        }
        with contextlib.suppress(TypeError):  # a state that is not JSON: this shard cannot be resumed
            self._write_journal(note)

    def _files(self) -> list[str]:
        return [str(p.relative_to(self.partial)) for p in sorted(self.partial.rglob("*")) if p.is_file()]

    def _size(self, name: str) -> int:
        path = self.partial / name
        return path.stat().st_size if path.exists() else -1
