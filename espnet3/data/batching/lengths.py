"""Lengths that batches are made by: from ESPnet2's shape files, or from what a data set knows of its utterances."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet3.errors import UserError


@dataclass
class Lengths:
    """Shapes of the utterances of a data set.

    Attributes:
        positions: int64 (N,), where each utterance stands in the data set; in the order of the first shape file.
        shapes: for each shape file int64 (N, D): length and further dimensions.
    """

    positions: np.ndarray
    shapes: list[np.ndarray]

    @classmethod
    def of(cls, dataset: Any, shape_files: Sequence[str | os.PathLike] = ()) -> Lengths:
        """Of *shape_files*, or without any the samples (T,) of *dataset*'s utterances, which no audio is read for.

        Raises:
            UserError: a file's ids are not the data set's, or the data set knows no lengths.
        """
        if not shape_files:
            samples = np.asarray(dataset.num_samples, dtype=np.int64)
            return cls(np.arange(len(samples)), [samples[:, None]])
        found = [read_shape_file(path) for path in shape_files]
        ids, shapes = found[0][0], [found[0][1]]
        for path, (others, shape) in zip(shape_files[1:], found[1:], strict=True):
            if others != ids:
                shape = shape[_permutation(others, ids, path, shape_files[0])]
            shapes.append(shape)
        known = dataset.ids
        if known == ids:
            return cls(np.arange(len(ids)), shapes)
        return cls(_permutation(known, ids, "the data set", shape_files[0]), shapes)


def _permutation(others: Sequence[str], ids: Sequence[str], name: Any, first: Any) -> np.ndarray:
    """Where in *others* each of *ids* stands."""
    where = {uid: index for index, uid in enumerate(others)}
    missing = [uid for uid in ids if uid not in where]
    if missing or len(where) != len(ids):
        extra = next(iter(set(where).difference(ids)), None)
        uid, lacks = (missing[0], name) if missing else (extra, first)
        raise UserError(
            f"{first}: {len(ids)} utterances, and {len(where)} in {name}: they must be the same ('{uid}' is not in "
            f"{lacks}); make the shape files of this data anew"
        )
    return np.fromiter((where[uid] for uid in ids), dtype=np.int64, count=len(ids))


def read_shape_file(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Ids and shapes, int64 (N, D), of lines such as ``utterance_id_a 1330,80``.

    Raises:
        UserError: the file is absent or empty, or a line has no whole numbers, other dimensions or an id seen before.
    """
    try:
        data = Path(path).read_bytes()
        words = data.decode("utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a shape file ({error})") from None
    if not words:
        raise UserError(f"{path}: no lines")
    ids, values = words[::2], words[1::2]
    dimensions = values[0].count(",") + 1 if values else 0
    shapes = np.empty(0, dtype=np.int64)
    if len(words) % 2 == 0 and _regular(data, len(ids), dimensions):
        with warnings.catch_warnings():
            # of text that is no number it reads what is before it, and the size tells
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                shapes = np.fromstring(",".join(values), dtype=np.int64, sep=",")
            except ValueError:
                shapes = shapes[:0]
    if not dimensions or shapes.size != len(ids) * dimensions:
        ids, shapes = _read_carefully(path, data.decode("utf-8"))
        dimensions = shapes.shape[1]
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(uid for uid in ids if uid in seen or seen.add(uid))
        raise UserError(f"{path}: utterance {twice} is there twice")
    return ids, shapes.reshape(len(ids), dimensions)


def _regular(data: bytes, lines: int, dimensions: int) -> bool:
    """Whether there are *lines* lines, each of which has as many commas as *dimensions* need."""
    characters = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8)
    commas = np.cumsum(characters == ord(","))[np.flatnonzero(characters == ord("\n"))]
    return len(commas) == lines and bool((np.diff(commas, prepend=0) == dimensions - 1).all())


def _read_carefully(path: str | os.PathLike, text: str) -> tuple[list[str], np.ndarray]:
    """Line by line, to name the one that is wrong."""
    ids: list[str] = []
    shapes: list[list[int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        uid, _, value = line.strip().partition(" ")
        if not uid:
            continue
        try:
            shape = [int(part) for part in value.split(",")]
        except ValueError:
            raise UserError(f"{path}:{number}: '{value.strip()}' is no shape such as 1330,80") from None
        if shapes and len(shape) != len(shapes[0]):
            raise UserError(f"{path}:{number}: {len(shape)} dimensions, the lines before have {len(shapes[0])}")
        ids.append(uid)
        shapes.append(shape)
    return ids, np.array(shapes, dtype=np.int64)
