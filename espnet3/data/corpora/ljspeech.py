"""LJ Speech (Ito and Johnson, 2017): one speaker reads seven books, 24 h, 22.05 kHz, public domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.data.corpora.lhotse import records_of
from espnet3.data.corpora.recipe import Archive, RecipeCorpus, call_lhotse, obtain
from espnet3.data.corpora.splits import Draw

# SHA-256 as torchaudio and Homebrew have it
ARCHIVE = Archive(
    url="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    inner="metadata.csv",
    sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    max_bytes=8 << 30,
)
UTTERANCES = 13100


class LjSpeechCorpus(RecipeCorpus):
    """LJ Speech by Lhotse's ``prepare_ljspeech``. It has no splits of its own.

    Args:
        source: the archive or the unpacked folder ``LJSpeech-1.1``; None: fetched.
        downloads: the folder in which the archive is unpacked.
        fractions: the share of each split other than ``train``, drawn by a hash of the id. seed: another draw.
        normalized: the transcript with numbers and abbreviations written out, in place of the book's.
        check: whether all 13,100 utterances must be there.
        normalize: ``basic`` for lower case without punctuation.
    """

    def __init__(
        self,
        source: str | None = None,
        downloads: str = "data/downloads",
        fractions: dict[str, float] | None = None,
        seed: int = 0,
        normalized: bool = True,
        check: bool = True,
        normalize: str = "none",
    ) -> None:
        self.source, self.downloads, self.normalized = Path(source) if source else None, Path(downloads), normalized
        self.expected = {None: UTTERANCES} if check else None
        self.draw = Draw(fractions if fractions is not None else {"valid": 0.02, "test": 0.02}, seed=seed)
        self.normalize = normalize
        self._folder = Path()

    def prepare(self, folder: Path) -> None:
        self._folder = obtain(ARCHIVE, self.downloads / "ljspeech", self.source)

    def utterances(self) -> Iterator[dict[str, Any]]:
        from lhotse.recipes import prepare_ljspeech

        found = call_lhotse(prepare_ljspeech, self._folder)
        for record in records_of(found["recordings"], found["supervisions"], None):
            normalized = record.pop("normalized_text", None)
            yield {**record, "speaker": "lj", "text": normalized if self.normalized and normalized else record["text"]}
