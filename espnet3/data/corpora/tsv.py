"""A folder of audio with a table: TSV or CSV, such as Common Voice's releases and Hugging Face's audio folders."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from espnet3.data.corpora.fields import below, choose, fit
from espnet3.data.corpora.splits import Draw, SourceCorpus
from espnet3.errors import UserError


class TsvCorpus(SourceCorpus):
    """A table with a header, one recording a line; audio stays where it is.

    ``.csv`` files are separated by commas and may have quotes; all others by tabs, where a quote is a character like any
    other. Columns that are no field of a record are carried into the manifest.

    Args:
        path: the table, or a mapping of split to table.
        root: the folder that relative audio paths start from; None: each table's own folder.
        delimiter: None: by the file's name.
        header: the columns' names, of a table without a first line that says them.
        columns: the columns of fields, such as ``{text: normalized}``, where they are not the usual ones.
        fractions, split_by, draw_from, seed: see :class:`espnet3.data.corpora.splits.Draw`.
        normalize: of the transcripts: ``none``, or ``basic`` (lower case, no punctuation).

    Raises:
        UserError: a file is absent or damaged, or has no column of audio.
    """

    listed = True

    def __init__(
        self,
        path: str | dict[str, str],
        root: str | None = None,
        delimiter: str | None = None,
        header: list[str] | None = None,
        columns: dict[str, str] | None = None,
        fractions: dict[str, float] | None = None,
        split_by: Literal["id", "speaker"] = "id",
        draw_from: str | None = None,
        seed: int = 0,
        normalize: str = "none",
    ) -> None:
        self.path, self.root, self.delimiter, self.header, self.columns = path, root, delimiter, header, columns
        fractions = fractions if fractions is not None else {"valid": 0.05, "test": 0.05}
        self.draw = Draw(fractions, split_by, draw_from, seed)
        self.normalize = normalize

    def read(self, folder: Path) -> Iterator[dict[str, Any]]:
        files = self.path if isinstance(self.path, dict) else {None: self.path}
        for split, path in files.items():
            yield from self._read(Path(path), split)

    def _read(self, path: Path, split: str | None) -> Iterator[dict[str, Any]]:
        root = Path(self.root) if self.root is not None else path.parent
        rows = self._rows(path)
        names = self.header
        if names is None:
            _, names = next(rows, (0, []))
            if not names:
                raise UserError(f"{path}: the table is empty")
        if len(set(names)) != len(names):
            raise UserError(f"{path}: a column's name stands twice in the header")
        where = f"{path}{'' if self.header else ':1'}"
        try:
            chosen = choose(names, self.columns, where, needed=("audio", "text"))
        except UserError as error:
            without = "; where the table has no header, say its columns: data.builder.header=[id,audio,text]"
            raise UserError(f"{error}{'' if self.header or self.columns else without}") from None
        fields = {name: field for field, name in chosen.items()}
        for number, row in rows:
            values = {fields.get(name, name): value for name, value in zip(names, row, strict=False)}
            record = fit({key: v for key, v in values.items() if v != "" or key in ("audio", "text")}, f"line-{number}")
            if len(row) != len(names):
                record["rejected"] = f"bad line: {len(row)} fields in line {number}, {len(names)} in the header"
            yield {**record, "split": split or record.get("split"), "audio": below(root, record["audio"])}

    def _rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        delimiter = self.delimiter or ("," if path.suffix == ".csv" else "\t")
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        try:
            if path.exists() and not path.is_file():
                raise UserError(f"{path}: not a file; name the table itself, such as {path / 'train.tsv'}")
            with open(path, encoding="utf-8-sig", newline="") as lines:
                reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
                for row in reader:
                    if row:
                        yield reader.line_num, row
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except (csv.Error, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
