"""YesNo (openslr.org/1): one man says eight Hebrew words of "yes" and "no", 60 times; 8 kHz, free of licence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.data.corpora.lhotse import records_of
from espnet3.data.corpora.recipe import Archive, RecipeCorpus, call_lhotse, obtain
from espnet3.data.corpora.splits import Draw

# SHA-256 as torchaudio and TorchSharp have it
ARCHIVE = Archive(
    url="https://www.openslr.org/resources/1/waves_yesno.tar.gz",
    inner=".",
    sha256="c3f49e0cca421f96b75b41640749167b52118f232498667ca7a5f9416aef8e73",
    max_bytes=100 << 20,
)


class YesNoCorpus(RecipeCorpus):
    """YesNo by Lhotse's ``prepare_yesno``: 30 recordings for training, of which *valid* are held back, 30 for testing.

    Args:
        source: the archive or the unpacked folder ``waves_yesno``; None: fetched.
        downloads: the folder in which the archive is unpacked.
        valid: the share of the training recordings that validate. seed: another draw.
    """

    def __init__(
        self, source: str | None = None, downloads: str = "data/downloads", valid: float = 0.1, seed: int = 0
    ) -> None:
        self.source, self.downloads = Path(source) if source else None, Path(downloads)
        self.expected = {"train": 30, "test": 30}
        # nobody is named as the speaker, so each recording is one of its own, and the share is exact
        self.draw = Draw({"valid": valid}, split_by="speaker", draw_from="train", seed=seed)
        self._folder = Path()

    def prepare(self, folder: Path) -> None:
        self._folder = obtain(ARCHIVE, self.downloads / "yesno", self.source)

    def utterances(self) -> Iterator[dict[str, Any]]:
        from lhotse.recipes import prepare_yesno

        found = call_lhotse(prepare_yesno, self._folder)
        for split in ("train", "test"):
            for record in records_of(found[split]["recordings"], found[split]["supervisions"], split):
                # Lhotse's paths are absolute: in another place, the same corpus would be another one
                yield {**record, "audio": os.path.relpath(record["audio"]) if not self.source else record["audio"]}
