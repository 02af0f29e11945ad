"""What recipes of public corpora share: archives by checksum, a local source in their place, expected sizes."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from espnet3.data.corpora.archive import download, exclusive, extract_tar
from espnet3.data.corpora.splits import SourceCorpus
from espnet3.errors import UserError
from espnet3.io import sha256_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A public tar archive.

    Attributes:
        url: where it is. inner: what must lie in its top folder, such as ``etc``.
        sha256: of its bytes; None where nobody has published one: then only the number of utterances is checked.
        max_bytes: more than it has, packed or unpacked.
    """

    url: str
    inner: str
    sha256: str | None
    max_bytes: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def check_archive(path: Path, archive: Archive) -> None:
    """Raises UserError where *path* is not *archive*, byte by byte."""
    if archive.sha256 is None:
        logger.warning("%s: nobody has published a checksum of it; its utterances are counted", path)
    elif (found := sha256_file(path)) != archive.sha256:
        raise UserError(
            f"{path}: wrong checksum ({found[:16]}, not {archive.sha256[:16]}): damaged, or another version; delete it and "
            "fetch it anew"
        )


def obtain(archive: Archive, folder: Path, source: Path | None) -> Path:
    """The folder with the content of *archive*'s top folder.

    Args:
        folder: unpacked into, if need be; whole or absent. An archive that was fetched goes afterwards.
        source: the archive, the folder with it, or its unpacked content, on this machine; None: fetched.

    Raises:
        UserError: there is no such source, the archive cannot be fetched, or its checksum is another.
    """
    if source is not None and not source.exists():
        raise UserError(f"{source}: no such file or folder (data.builder.source)")
    if source is not None and source.is_dir():
        for place in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
            if (place / archive.inner).exists() or (archive.inner == "." and any(place.glob("*.wav"))):
                return place
        if not (source / archive.name).is_file():
            raise UserError(
                f"{source}: has neither {archive.inner} nor {archive.name}; is this the right folder (data.builder.source)?"
            )
        source = source / archive.name
    with exclusive(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        path = source or download(archive.url, folder.with_name(archive.name), archive.max_bytes)
        check_archive(path, archive)
        extract_tar(path, folder, _is_content, archive.max_bytes)
        if not (folder / archive.inner).exists():
            raise UserError(f"{path}: there is no {archive.inner} in it; is this the archive of {archive.url}?")
        if source is None:
            path.unlink()
    return folder


def _is_content(path: PurePosixPath) -> bool:
    return bool(path.parts) and not path.name.startswith("._")


class RecipeCorpus(SourceCorpus):
    """A public corpus: ``source`` takes the place of the download, ``expected`` says how many utterances there are.

    ``splits`` of a subclass's arguments maps our splits to the corpus's parts.
    """

    source: Path | None
    downloads: Path
    expected: dict[str | None, int] | None

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        counts: collections.Counter = collections.Counter()
        for record in self.utterances():
            counts[record["split"]] += 1
            yield record
        for split, count in (self.expected or {}).items():
            if counts[split] != count:
                raise UserError(
                    f"{self.source or self.downloads}: {counts[split]} utterances{f' in {split!r}' if split else ''} where "
                    f"{count} belong: the copy is not whole; for a part of it set data.builder.check=false"
                )

    def utterances(self) -> Iterator[dict[str, Any]]:
        """The records with the corpus's own splits."""
        raise NotImplementedError


def call_lhotse(function: Any, *arguments: Any, **keys: Any) -> Any:
    """What one of Lhotse's recipes returns. Raises UserError where the files are not what it expects."""
    try:
        return function(*arguments, **keys)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{arguments[0]}: Lhotse's {function.__name__} cannot read it ({told}); is this the right folder "
            "(data.builder.source)?"
        ) from None
