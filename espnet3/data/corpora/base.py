"""What every corpus builder offers, and the runner that renders its recordings."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from espnet3.config.instantiate import instantiate
from espnet3.errors import UserError
from espnet3.io import write_jsonl
from espnet3.parallel import BaseRunner, EnvironmentProvider

logger = logging.getLogger(__name__)


class CorpusBuilder:
    """A corpus as a list of items and a function that makes one recording from one item.

    A record is ``{"id", "split", "audio", "text", "speaker"}`` and whatever else is known of the recording;
    ``audio`` is a path relative to the working directory. One that is known to be unfit has the reason under
    ``rejected``: the manifest lists it. Items must not depend on anything but the builder's
    arguments and source, and ``make`` must not depend on what was made before it: workers plan for themselves and
    make items in any order.

    Attributes:
        listed: whether ``plan`` reads text lists and nothing else: fast, without ``prepare``, and nothing is written. The
            workflow then looks at a changed list before any job runs.
    """

    listed = False

    def prepare(self, folder: Path) -> None:
        """Fetch what ``plan`` and ``make`` need; called once, before any worker starts. *folder* is for the audio."""

    def plan(self, folder: Path) -> Iterable[dict[str, Any]]:
        """The items, in the order of the corpus; each has at least a unique ``id`` and its ``split``.

        A builder whose ``make`` does nothing may yield them, so that a long list never lies in memory.
        """
        raise NotImplementedError

    def make(self, item: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Make *item*'s recording (if it is not there as it is) and return its record; the item itself by default."""
        return item

    @property
    def renders(self) -> bool:
        """Whether ``make`` does any work; where it does not, no runner is started."""
        return type(self).make is not CorpusBuilder.make


def _environment(config: dict[str, Any]) -> dict[str, Any]:
    builder, folder = instantiate(config["builder"], allow=tuple(config["allow"])), Path(config["folder"])
    return {"builder": builder, "folder": folder, "items": list(builder.plan(folder))}


class RenderProvider(EnvironmentProvider):
    """``{"builder", "folder", "items"}`` from ``{"builder": <_target_ node>, "folder": <path>, "allow": [...]}``."""

    def build_env_local(self) -> dict[str, Any]:
        return _environment(self.config)

    def build_worker_setup_fn(self):
        return functools.partial(_environment, self.config)


class RenderRunner(BaseRunner):
    """One record for each index into the builder's plan."""

    @staticmethod
    def forward(
        idx: int, builder: CorpusBuilder, items: list[dict[str, Any]], folder: Path, **env: Any
    ) -> dict[str, Any]:
        return builder.make(items[idx], folder)


def build_corpus(
    node: dict[str, Any],
    output: str | os.PathLike,
    parallel: dict[str, Any] | None = None,
    allow: tuple[str, ...] = (),
) -> int:
    """Build the corpus of the builder that *node* (a ``_target_`` mapping) describes, and write ``corpus.jsonl``.

    Audio that is rendered lies under ``audio/`` beside *output*; files there that are no longer part of the corpus go.

    Args:
        allow: packages, besides the built-in list, that the builder may come from.

    Returns:
        The number of recordings.

    Raises:
        UserError: the source is missing, damaged or empty, or two recordings have the same id.
    """
    output = Path(output)
    folder = output.parent / "audio"
    builder: CorpusBuilder = instantiate(node, allow=allow)
    builder.prepare(folder)
    records: Iterable[dict[str, Any]] = _checked(builder.plan(folder), output)
    if builder.renders:
        records = list(records)
        for split in sorted({record["split"] for record in records}):
            (folder / split).mkdir(parents=True, exist_ok=True)
        provider = RenderProvider({"builder": node, "folder": str(folder), "allow": list(allow)})
        records = RenderRunner(provider, parallel=parallel, name="corpus")(range(len(records)))
    wanted: set[str] = set()
    count = write_jsonl(output, _rendered(records, folder, wanted))
    _remove_stale(folder, wanted)
    logger.info("%s: %d recordings", output, count)
    return count


def _checked(items: Iterable[dict[str, Any]], output: Path) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for item in items:
        if item["id"] in seen:
            raise UserError(f"{output}: two recordings have the id '{item['id']}'; ids must be unique in the corpus")
        seen.add(item["id"])
        yield item
    if not seen:
        raise UserError(f"{output}: the source has no recordings")


def _rendered(records: Iterable[dict[str, Any]], folder: Path, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Hand *records* on, and note in *wanted* which files in *folder* are theirs."""
    inside = os.path.normpath(folder) + os.sep
    for record in records:
        path = os.path.normpath(record["audio"])
        if path.startswith(inside):
            wanted.add(path)
        yield record


def _remove_stale(folder: Path, wanted: set[str]) -> None:
    for path in folder.glob("*/*"):
        if os.path.normpath(path) not in wanted and path.is_file():
            path.unlink()
