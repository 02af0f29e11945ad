"""Public archives: fetching them, and unpacking only what is wanted of them, inside one folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from espnet3.errors import UserError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18
_PROGRESS_SECONDS = 5.0


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file *path*: experiments that share a download wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(url: str, path: Path, max_bytes: int, timeout: float = 30.0) -> Path:
    """Fetch *url* to *path*, by way of ``<path>.partial``, which a later call goes on with where the server allows it.

    Raises:
        UserError: no connection, an error of the server, more than *max_bytes*, or a transfer cut short.
    """
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "espnet3"} | ({"Range": f"bytes={have}-"} if have else {})
    remedy = "fetch it on another machine and set data.builder.source=PATH"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            resumed = answer.status == 206
            length = answer.headers.get("Content-Length")
            expected = int(length) + (have if resumed else 0) if length else None
            with open(partial, "ab" if resumed else "wb") as handle:
                _copy(answer, handle, url, expected, max_bytes)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # what is there already is of another file
            partial.unlink(missing_ok=True)
        raise UserError(f"{url}: the server says {error.code} {error.reason}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{url}: cannot be fetched ({reason}); {remedy}") from None
    size = partial.stat().st_size
    if expected is not None and size != expected:
        raise UserError(
            f"{url}: the transfer was cut short ({size} of {expected} bytes); run again to go on, or {remedy}"
        )
    os.replace(partial, path)
    return path


def _copy(answer, handle, url: str, expected: int | None, max_bytes: int) -> None:
    told = time.monotonic()
    while block := answer.read(_BLOCK):
        handle.write(block)
        done = handle.tell()
        if done > max_bytes:
            raise ValueError(f"more than the {max_bytes >> 20} MiB that it should have")
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            total = f" of {expected / 1e6:.1f}" if expected else ""
            logger.info("%s: %.1f%s MB", url, done / 1e6, total)


def extract_tar(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool], max_bytes: int) -> int:
    """Unpack the regular files that *wanted* picks from a tar archive (gzip, bzip2, xz or none) into a new *folder*.

    Their paths lose the archive's own top folder. Files go to a temporary folder first, so that *folder* is whole or
    absent.

    Args:
        max_bytes: of all members together, unpacked, wanted or not: an archive that swells beyond it is refused.

    Returns:
        The number of files.

    Raises:
        UserError: no such archive, a damaged one, a path that leaves the folder, a wanted link or device, or too
        many bytes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        count = _extract(archive, temporary, wanted, max_bytes)
        shutil.rmtree(folder, ignore_errors=True)
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, folder)
        return count
    except FileNotFoundError:
        raise UserError(f"{archive}: no such file (data.builder.source)") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({' '.join(str(error).split())})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool], max_bytes: int) -> int:
    count = total = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            total += member.size
            if total > max_bytes:
                raise UserError(f"{archive}: unpacks to more than the {max_bytes >> 20} MiB that it should have")
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{archive}: the member {member.name!r} would leave the folder; is this the right archive?"
                )
            inner = PurePosixPath(*path.parts[1:])
            if not wanted(inner) or member.isdir():
                continue
            if not member.isreg():
                raise UserError(f"{archive}: the member {member.name!r} is no regular file; is this the right archive?")
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "xb") as handle:
                shutil.copyfileobj(source, handle)
            count += 1
    return count


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
