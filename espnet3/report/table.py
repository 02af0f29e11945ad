"""The WER table of ``metrics.json`` files, as plain text or Markdown."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import read_json

HEADER = ("decoding", "test set", "utterances", "words", "WER %", "95 %", "CER %", "SER %", "sub", "ins", "del")


@dataclass(frozen=True)
class Row:
    """One decoding of one test set; *folder* holds its ``metrics.json``."""

    decoding: str
    test_set: str
    metrics: dict[str, Any]
    folder: Path

    @property
    def interval(self) -> str:
        """The WER's confidence interval, in percent."""
        edges = (self.metrics.get("intervals") or {}).get("wer")
        return f"{100 * edges[0]:.2f}-{100 * edges[1]:.2f}" if edges else "-"

    @property
    def cells(self) -> tuple[str, ...]:
        m = self.metrics
        counts = (m.get("utterances"), m.get("words"))
        rates = (m["wer"], m.get("cer"), m.get("ser"))
        errors = (m.get("substitutions"), m.get("insertions"), m.get("deletions"))
        cells = ["-" if r is None else f"{100 * r:.2f}" for r in rates]
        return (
            self.decoding,
            self.test_set,
            *("-" if n is None else f"{n:,}" for n in counts),
            *(cells[0], self.interval, *cells[1:]),
            *("-" if n is None else f"{n:,}" for n in errors),
        )


def read_rows(paths: Iterable[str | os.PathLike]) -> list[Row]:
    """``…/<decoding>/<test set>/metrics.json`` of each path.

    Raises:
        UserError: a file is absent, or has no WER.
    """
    rows = []
    for path in map(Path, paths):
        metrics = read_json(path)
        if not isinstance(metrics, dict) or "wer" not in metrics:
            raise UserError(f"{path}: no 'wer' in this file; score the decoding again")
        rows.append(Row(path.parent.parent.name, path.parent.name, metrics, path.parent))
    return rows


def format_table(paths: Iterable[str | os.PathLike], markdown: bool = False) -> str:
    """The table as text; each line ends with a newline."""
    lines = [HEADER, *(row.cells for row in read_rows(paths))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]

    def padded(line: Sequence[str]) -> list[str]:
        return [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]

    if markdown:
        rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in [padded(HEADER), rule, *map(padded, lines[1:])])
    rule = ["-" * w for w in widths]
    return "".join("  ".join(cells).rstrip() + "\n" for cells in [padded(HEADER), rule, *map(padded, lines[1:])])


def main(argv: Sequence[str]) -> int:
    """``python -m espnet3 table [--report FILE] metrics.json…``: print the table, and where the report lies."""
    parser = argparse.ArgumentParser(prog="python -m espnet3 table", description="Print the WER table.")
    parser.add_argument("metrics", nargs="+", help="metrics.json files, or folders such as exp/asr/score")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--report", help="a report to point to")
    arguments = parser.parse_args(argv)
    paths: list[Path] = []
    for path in map(Path, arguments.metrics):
        paths += sorted(path.glob("*/*/metrics.json")) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"{arguments.metrics[0]}: no metrics.json in this folder; `snakemake exp/<experiment>/score`")
    print(format_table(paths, arguments.markdown), end="")
    if arguments.report:
        print(f"\nreport: {Path(arguments.report).resolve()}")
    return 0
