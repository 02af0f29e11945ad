"""``python -m espnet3 convert``: a corpus from one format to another."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3.data.convert_formats import FORMATS, Utterance
from espnet3.data.corpora.base import build_corpus
from espnet3.data.corpora.guess import TARGETS, builder_node
from espnet3.data.corpora.wav import encode_part, write_encoded
from espnet3.data.manifest import make_cut
from espnet3.data.names import file_name
from espnet3.data.wavheader import BadAudio, read_header
from espnet3.errors import UserError, did_you_mean
from espnet3.io import read_jsonl, write_jsonl

logger = logging.getLogger(__name__)

# formats that hold audio themselves, and so need no files beside them
_EMBEDDING = ("hf", "hf-disk", "shar")


def convert(
    source: dict[str, Any] | tuple[str, str],
    kind: str,
    output: str,
    copy: bool = False,
    parallel: dict[str, Any] | None = None,
) -> dict[str, int]:
    """Write the corpus *source* to the new folder *output* in the format *kind*.

    Args:
        source: a ``data.builder`` node, or a format and a path.
        kind: ``kaldi``, ``jsonl``, ``tsv``, ``lhotse`` (one CutSet a split), ``shar``, ``hf`` (parquet) or ``hf-disk``
            (``save_to_disk``). The last three hold the audio; the others point to it.
        copy: each utterance's audio to a file of its own in *output*.
        parallel: where audio that lies in a container is taken out of it.

    Returns:
        The number of utterances in each split. What is unfit is listed in ``rejected.jsonl``.

    Raises:
        UserError: *output* has something in it, or the source is missing, damaged or empty.
    """
    if kind not in FORMATS:
        raise UserError(f"--to: there is no format '{kind}'{did_you_mean(kind, FORMATS)}")
    place = Path(output)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{output}: there is something already; name a new folder")
    node = dict(source) if isinstance(source, dict) else builder_node(*source) | {"fractions": {}}
    place.mkdir(parents=True, exist_ok=True)
    try:
        splits, rejected = _write(node, kind, place, copy, parallel)
    except BaseException:
        # what is there is a part, and would be in the way of the next try
        shutil.rmtree(place, ignore_errors=True)
        raise
    if rejected:
        write_jsonl(place / "rejected.jsonl", rejected)
        logger.warning("%s: %d utterances are left out, see rejected.jsonl", output, len(rejected))
    counts = {split: len(utterances) for split, utterances in splits.items()}
    logger.info("%s: %s", output, ", ".join(f"{split} {count}" for split, count in counts.items()))
    return counts


def _write(
    node: dict[str, Any], kind: str, place: Path, copy: bool, parallel: dict[str, Any] | None
) -> tuple[dict[str, list[Utterance]], list[dict[str, Any]]]:
    """The utterances of each split, which are written now, and what is rejected."""
    with tempfile.TemporaryDirectory(prefix=".espnet3-", dir=place) as temporary:
        work = Path(temporary) if kind in _EMBEDDING or copy else place
        listing = work / "corpus.jsonl"
        build_corpus(node, listing, parallel)
        splits: dict[str, list[Utterance]] = {}
        rejected: list[dict[str, Any]] = []
        for utterance in _utterances(listing, rejected, place if copy and kind not in _EMBEDDING else None):
            splits.setdefault(utterance.record["split"], []).append(utterance)
        if not splits:
            first = rejected[0]
            raise UserError(
                f"{place}: nothing to write: {first['id']} ({first['audio']}): {first['reason']}, and so on"
            )
        for split, utterances in splits.items():
            FORMATS[kind](split, utterances, place)
        listing.unlink()
    return splits, rejected


def _utterances(listing: Path, rejected: list[dict[str, Any]], copies: Path | None) -> Iterator[Utterance]:
    for record in read_jsonl(listing):
        try:
            if record.get("rejected"):
                raise BadAudio(record["rejected"])
            rate = read_header(record["audio"]).sampling_rate
            cut = make_cut(record, rate, 0.0, float("inf"))
        except BadAudio as error:
            rejected.append({"id": record["id"], "audio": record["audio"], "reason": str(error)})
            continue
        if copies is not None:
            data = encode_part(record["audio"], record.get("start"), cut["duration"], record.get("channel"))
            stem = copies / "audio" / record["split"] / file_name(record["id"])
            plain = {key: v for key, v in record.items() if key not in ("start", "duration", "channel")}
            record = {**plain, **write_encoded(stem, data)}
            cut = make_cut(record, rate, 0.0, float("inf"))
        yield Utterance(record, cut)


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 convert",
        description="Write a corpus in another format; parts of recordings stay parts.",
    )
    parser.add_argument(
        "--from", dest="source", nargs=2, required=True, metavar=("FORMAT", "PATH"), help=", ".join(TARGETS)
    )
    parser.add_argument("--to", nargs=2, required=True, metavar=("FORMAT", "OUT"), help=", ".join(FORMATS))
    parser.add_argument("--copy", action="store_true", help="each utterance's audio to a file of its own in OUT")
    parser.add_argument("--workers", type=int, default=1, help="processes that take audio out of arks")
    arguments = parser.parse_args(argv)
    parallel = {"env": "multiprocessing" if arguments.workers > 1 else "local", "n_workers": arguments.workers}
    convert(tuple(arguments.source), *arguments.to, copy=arguments.copy, parallel=parallel)
    return 0
