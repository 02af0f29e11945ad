"""AN4 (Acero, Carnegie Mellon, 1991): names, addresses and numbers, said and spelt; 16 kHz, free for any use.

Lhotse has no recipe for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.data.corpora.recipe import Archive, RecipeCorpus, obtain
from espnet3.data.corpora.splits import Draw
from espnet3.errors import UserError
from espnet3.io import read_lines

# the archive's copy that NeMo's tutorials fetch; neither CMU nor NVIDIA publishes a checksum
ARCHIVE = Archive(
    url="https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz",
    inner="etc",
    sha256=None,
    max_bytes=400 << 20,
)
COUNTS = {"train": 948, "test": 130}
_LINE = re.compile(r"(?P<text>.*)\((?P<id>[^()\s]+)\)")


class An4Corpus(RecipeCorpus):
    """AN4 with its own test set; validation takes speakers out of the training part.

    Args:
        source: the archive (``an4_sphere.tar.gz``) or the unpacked folder ``an4``; None: fetched.
        downloads: the folder in which the archive is unpacked.
        sha256: of the archive, where you know it.
        valid: the share of the training part that validates. seed: another draw.
        check: whether all 948 and 130 utterances must be there.
    """

    def __init__(
        self,
        source: str | None = None,
        downloads: str = "data/downloads",
        sha256: str | None = None,
        valid: float = 0.1,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        self.source, self.downloads = Path(source) if source else None, Path(downloads)
        self.archive = Archive(ARCHIVE.url, ARCHIVE.inner, sha256, ARCHIVE.max_bytes)
        self.expected = dict(COUNTS) if check else None
        self.draw = Draw({"valid": valid}, split_by="speaker", draw_from="train", seed=seed)
        self._folder = Path()

    def prepare(self, folder: Path) -> None:
        self._folder = obtain(self.archive, self.downloads / "an4", self.source)

    def utterances(self) -> Iterator[dict[str, Any]]:
        files = {path.stem: path for path in sorted(self._folder.glob("wav/*/*/*.sph"))}
        for split in ("train", "test"):
            path = self._folder / "etc" / f"an4_{split}.transcription"
            for number, line in read_lines(path):
                match = _LINE.fullmatch(line.strip())
                if not match:
                    raise UserError(f"{path}:{number}: not '<text> (<utterance>)'")
                uid = match["id"]
                text = " ".join(word for word in match["text"].split() if word not in ("<s>", "</s>"))
                # an251-fash-b: what is said, by whom, in which session
                record = {"id": uid, "split": split, "text": text, "speaker": uid.split("-")[1] if "-" in uid else uid}
                yield {**record, "audio": str(files.get(uid, self._folder / "wav" / f"{uid}.sph"))}
