"""LibriSpeech (Panayotov et al., ICASSP 2015): read English from audio books, 16 kHz, CC BY 4.0, openslr.org/12."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.data.corpora.lhotse import records_of
from espnet3.data.corpora.recipe import Archive, RecipeCorpus, call_lhotse, obtain
from espnet3.data.corpora.splits import Draw
from espnet3.errors import UserError, did_you_mean

_URL = "https://www.openslr.org/resources/12/{}.tar.gz"
# utterances, and SHA-256 of the archive as torchaudio has it
PARTS = {
    "dev-clean": (2703, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (2864, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (2620, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (2939, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": (28539, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (104014, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (148688, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}
_MAX_BYTES = 40 << 30


class LibriSpeechCorpus(RecipeCorpus):
    """LibriSpeech by Lhotse's ``prepare_librispeech``; audio stays where it was unpacked.

    Args:
        splits: our split to parts, such as ``{train: [train-clean-100], valid: [dev-clean]}``.
        source: the unpacked folder ``LibriSpeech``, or a folder with the archives; None: fetched from openslr.org.
        downloads: the folder in which archives are unpacked, shared by experiments.
        check: whether each part must have the number of utterances that it is known to have.
        jobs: threads that read headers.

    Raises:
        UserError: there is no such part, or a copy is not whole.
    """

    def __init__(
        self,
        splits: dict[str, list[str]],
        source: str | None = None,
        downloads: str = "data/downloads",
        check: bool = True,
        jobs: int = 4,
    ) -> None:
        for split, parts in splits.items():
            for part in [parts] if isinstance(parts, str) else parts:
                if part not in PARTS:
                    raise UserError(
                        f"data.builder.splits.{split}: there is no part '{part}'{did_you_mean(part, PARTS)}"
                    )
        self.splits = {split: [parts] if isinstance(parts, str) else list(parts) for split, parts in splits.items()}
        self.source, self.downloads, self.jobs = Path(source) if source else None, Path(downloads), jobs
        self.expected = {s: sum(PARTS[p][0] for p in parts) for s, parts in self.splits.items()} if check else None
        self.draw = Draw()
        self._folders: dict[str, Path] = {}

    def prepare(self, folder: Path) -> None:
        for part in (part for parts in self.splits.values() for part in parts):
            archive = Archive(_URL.format(part), part, PARTS[part][1], _MAX_BYTES)
            self._folders[part] = obtain(archive, self.downloads / "librispeech" / part, self.source)

    def utterances(self) -> Iterator[dict[str, Any]]:
        from lhotse.recipes import prepare_librispeech

        for split, parts in self.splits.items():
            for part in parts:
                place = self._folders[part]
                found = call_lhotse(prepare_librispeech, place, dataset_parts=[part], num_jobs=self.jobs)[part]
                # Lhotse lists chapters as the file system does
                ordered = sorted(found["supervisions"], key=lambda supervision: supervision.id)
                yield from records_of(found["recordings"], ordered, split)
