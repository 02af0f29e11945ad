"""Files that are either whole or absent: atomic writes, JSON, JSONL, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from espnet3.errors import UserError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing that free space mends."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside *path*; on success fsync it and rename it to *path*, on any error remove it.

    A reader sees the old file or the whole new one, never a part. *mode* is ``"w"`` (UTF-8) or ``"wb"``.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old file is then intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _open_temporary(path)
    try:
        with os.fdopen(descriptor, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as handle:
            try:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
                os.replace(temporary, path)
            except BaseException:
                # while it is locked: afterwards it may be another writer's
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    fsync_dir(path.parent)


def _open_temporary(path: Path) -> tuple[int, str]:
    """A file beside *path*: always the same one, so that a writer that was killed leaves one at the most; another one
    where a living writer holds it."""
    name = str(path.with_name(f".{path.name}.tmp"))
    with contextlib.suppress(PermissionError):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _locks(descriptor, name):
                if os.fstat(descriptor).st_size:
                    os.ftruncate(descriptor, 0)
                return descriptor, name
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    # mkstemp makes private files; a shared file system needs what the umask allows
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(descriptor, 0o666 & ~umask)
    return descriptor, name


def _locks(descriptor: int, name: str) -> bool:
    """Whether this process now holds the lock on the file *name*, and that still is the one behind *descriptor*."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.stat(name).st_ino == os.fstat(descriptor).st_ino
    except OSError:
        # held by a living writer, renamed by its last owner, or on a file system without locks
        return False


def require_space(path: str | os.PathLike, needed: int, what: str) -> None:
    """Look whether the file system of *path* (a folder, or a file to come) has *needed* bytes free for *what*.

    Raises:
        UserError: it has not.
    """
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path}: {what} may write {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free there; free some, or move the folder"
            " to a larger disk and leave a link"
        )


def fsync_dir(path: str | os.PathLike) -> None:
    """Make a rename in *path* survive a power cut, where the file system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_gzip(path: str | os.PathLike) -> Iterator[IO[str]]:
    """Like :func:`atomic_write`, for UTF-8 text in gzip; the same text gives the same bytes (no time, no name inside)."""
    with atomic_write(path, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
            with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text:
                yield text


def canonical_json(value: Any) -> str:
    """Sorted, compact JSON: equal values give equal text. Refuses NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Sorted, indented JSON, written atomically."""
    with atomic_write(path) as handle:
        json.dump(value, handle, sort_keys=True, ensure_ascii=False, indent=1)
        handle.write("\n")


def read_json(path: str | os.PathLike) -> Any:
    """Raises UserError with the place where *path* is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_jsonl(path: str | os.PathLike, records: Iterable[dict]) -> int:
    """One compact JSON object a line, written atomically (gzip where the name ends in .gz); the number of lines."""
    count = 0
    with atomic_gzip(path) if str(path).endswith(".gz") else atomic_write(path) as handle:
        for record in records:
            handle.write(json.dumps(record, ensure_ascii=False, separators=(", ", ": ")) + "\n")
            count += 1
    return count


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """``(number, line)`` of a UTF-8 text, lazily (gzip where the name ends in .gz); numbers from 1.

    Raises:
        UserError: the file is absent, cut short or not UTF-8.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if str(path).endswith(".gz")
            else open(path, encoding="utf-8") as lines
        ):
            yield from enumerate(lines, 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged file ({error})") from None


def read_jsonl(path: str | os.PathLike) -> Iterator[dict]:
    """Each line's object, lazily. Raises UserError naming the line that is not JSON, or a file that is cut short."""
    for number, line in read_lines(path):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any, length: int = 16) -> str:
    """First *length* hex digits of the SHA-256 of *value*'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]
