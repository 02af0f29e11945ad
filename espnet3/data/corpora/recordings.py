"""What a corpus was built from, and whether that has changed since: the user's own lists and audio files.

``data/<corpus>/files.json`` keeps size, time and SHA-256 of each of these files, and for each split a digest of its
records, in which the digests of their audio stand. A comparison looks at sizes and times alone and reads only the files
where these have changed: a touched file costs nothing further, a replaced one is noticed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from espnet3.config.instantiate import instantiate, locate
from espnet3.io import atomic_write, canonical_json, read_json, read_jsonl, sha256_file, write_jsonl

# bytes that a comparison reads; what is beyond counts as replaced until the corpus job has read it
READ_AT_MOST = 4 << 30
# keys of `data.builder` that name the lists which it reads: a path, or a mapping of split to path
LISTS = ("path", "dirs", "recordings", "supervisions", "dataset")
_UNREAD = "unread"
_THREADS = 16
_CHUNK = 256
_SHOWN = 3

# a file as it is known: size (bytes), time (ns), SHA-256
Entry = list[Any]
_ABSENT: Entry = [-1, 0, ""]


def index_files(builder: dict[str, Any]) -> list[str]:
    """The lists that a corpus is read from: what :data:`LISTS` of ``data.builder`` name, of folders the files in them."""
    found: list[str] = []
    for named in map(builder.get, LISTS):
        paths = named.values() if isinstance(named, dict) else [named] if isinstance(named, str) else []
        for path in map(Path, paths):
            found += sorted(map(str, filter(Path.is_file, path.iterdir()))) if path.is_dir() else [str(path)]
    return found


def remember(output: str | os.PathLike, builder: dict[str, Any]) -> None:
    """Add to the records of *output* the ``sha256`` of audio that is the user's own, and write ``files.json``.

    Only files are read that are new, or whose size or time is not that of the last ``files.json``.

    Args:
        output: ``data/<corpus>/corpus.jsonl``, just built.
        builder: the ``data.builder`` node.
    """
    index = refresh({}, index_files(builder))
    paths = {str(record["audio"]): None for record in read_jsonl(output)}
    own = [path for path in paths if path and not _is_rendered(path, output)]
    audio = refresh(_load(output).get("audio", {}), own)
    splits = split_digests(_with_digests(read_jsonl(output), audio))
    _save(output, {"audio": audio, "index": index, "rendered": len(own) < len(paths), "splits": splits})
    # last, so that a reader on another machine who sees this file sees the other one, too
    write_jsonl(output, _with_digests(read_jsonl(output), audio))


def refresh(known: dict[str, Entry], paths: Iterable[str], at_most: float = float("inf")) -> dict[str, Entry]:
    """Size, time and digest of each of *paths*; read are those whose size or time is not the known one.

    Args:
        at_most: bytes to read. Where there is more to read, nothing is, and the digests are ``"unread"``.
    """
    paths = list(dict.fromkeys(paths))
    # in chunks: to hand over one path at a time costs more than to look at it
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        different = [found for part in pool.map(functools.partial(_different, known), chunks) for found in part]
        there = [path for path, entry in different if entry != _ABSENT]
        changed = dict(different)
        unread = sum(changed[path][0] for path in there) > at_most
        digests = [_UNREAD] * len(there) if unread else list(pool.map(_digest_of, there))
    changed |= {path: [*changed[path][:2], sha] for path, sha in zip(there, digests, strict=True)}
    return {path: changed[path] if path in changed else known[path] for path in paths}


def split_digests(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{split: {"utterances", "digest"}}``; the order of a split's records counts, as it is the manifest's."""
    counts: dict[str, int] = {}
    hashes: dict[str, Any] = {}
    for record in records:
        split = record["split"]
        hashes.setdefault(split, hashlib.sha256()).update(canonical_json(record).encode() + b"\n")
        counts[split] = counts.get(split, 0) + 1
    return {split: {"utterances": counts[split], "digest": hashes[split].hexdigest()[:16]} for split in sorted(counts)}


class Recordings:
    """The records of one corpus as they were built, compared with what its files hold now.

    Args:
        output: ``data/<corpus>/corpus.jsonl``.
        builder: the ``data.builder`` node. allow: packages that it may come from.

    Attributes:
        known: whether it is known, before the corpus job runs, which recordings each split has.
        stale: whether ``corpus.jsonl`` has to be made again.
        changes: a readable line for each change, old → new.
    """

    def __init__(self, output: str | os.PathLike, builder: dict[str, Any], allow: Iterable[str] = ()) -> None:
        self.output, self.builder, self.allow = Path(output), builder, tuple(allow)
        self.known = self.stale = False
        self.changes: list[str] = []
        self._splits: dict[str, Any] = {}
        self._stamp: Any = None

    def of(self, split: str) -> dict[str, Any]:
        """``utterances`` and ``digest`` of the split's records; both None while that is not known."""
        stamp = _stamp(self.output)
        if stamp != self._stamp:
            # not compared, or the corpus job has run since
            self._splits, self._stamp = _load(self.output).get("splits", {}), stamp
        return self._splits.get(split) or {"utterances": None, "digest": None}

    def compare(self, configured: bool = True) -> None:
        """Fill in the attributes; where times have changed but no content, the new times are kept.

        Args:
            configured: whether the corpus was built by the builder of today, in configuration and code.

        Raises:
            UserError: a list that has changed cannot be read.
        """
        if not self.output.exists():
            return
        state = _load(self.output)
        self._stamp = _stamp(self.output)
        if not state:
            self._found(split_digests(read_jsonl(self.output)), [f"{_beside(self.output)} is missing"], configured)
            return
        self._splits = state["splits"]
        index = refresh(state["index"], index_files(self.builder), READ_AT_MOST)
        audio = refresh(state["audio"], state["audio"], READ_AT_MOST)
        if configured and index == state["index"] and audio == state["audio"]:
            self.known = True
            return
        foreseen = not state["rendered"] and getattr(locate(self.builder["_target_"], self.allow), "listed", False)
        self.known = configured or foreseen
        if audio and all(entry == _ABSENT for entry in audio.values()):
            self.changes = [f"none of its {len(audio)} audio files is there; what was made from them is kept"]
            return
        lists = [path for path in {**state["index"], **index} if _sha(index, path) != _sha(state["index"], path)]
        if not foreseen and (lists or not configured):
            # what the builder makes of its lists is known when it has run
            self._found({}, [f"{path}: changed" for path in lists], False)
            return
        now = list(self._plan() if lists or not configured else read_jsonl(self.output))
        audio |= refresh(audio, [path for path in map(_audio, now) if path and path not in audio], READ_AT_MOST)
        now = list(_with_digests(now, audio))
        splits = split_digests(now)
        if splits != self._splits:
            self._found(splits, list(_differences(read_jsonl(self.output), now)), True)
        elif configured:
            _save(self.output, {**state, "audio": audio, "index": index})
            self._stamp = _stamp(self.output)

    def _plan(self) -> Iterable[dict[str, Any]]:
        return instantiate(self.builder, allow=self.allow).plan(self.output.parent / "audio")

    def _found(self, splits: dict[str, Any], changes: list[str], known: bool) -> None:
        self.stale, self._splits, self.changes, self.known = True, splits, changes, known


def _beside(output: str | os.PathLike) -> Path:
    return Path(output).with_name("files.json")


def _load(output: str | os.PathLike) -> dict[str, Any]:
    path = _beside(output)
    return read_json(path) if path.exists() else {}


def _save(output: str | os.PathLike, state: dict[str, Any]) -> None:
    with atomic_write(_beside(output)) as handle:
        # compact: a large corpus has a line of it for each of its files
        json.dump(state, handle, ensure_ascii=False, separators=(",", ":"))


def _stamp(output: str | os.PathLike) -> list[tuple[str, Entry]]:
    return _different({}, [str(_beside(output))])


def _different(known: dict[str, Entry], paths: Iterable[str]) -> list[tuple[str, Entry]]:
    """Those of *paths* whose size or time is not the known one, with these."""
    found = []
    for path in paths:
        entry = known.get(path)
        try:
            now = os.stat(path)
        except (OSError, ValueError):
            # a path that holds NUL is a ValueError
            now = None
        # a pipe must not be opened
        if now is None or not stat.S_ISREG(now.st_mode):
            if entry != _ABSENT:
                found.append((path, _ABSENT))
        elif entry is None or entry[0] != now.st_size or entry[1] != now.st_mtime_ns:
            found.append((path, [now.st_size, now.st_mtime_ns, ""]))
    return found


def _digest_of(path: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        # the manifest job says what is wrong with it
        return f"unreadable: {error.strerror}"


def _sha(entries: dict[str, Entry], path: str) -> str | None:
    return entries[path][2] if path in entries else None


def _audio(record: dict[str, Any]) -> str:
    return str(record["audio"])


def _is_rendered(path: str, output: str | os.PathLike) -> bool:
    return os.path.normpath(path).startswith(os.path.normpath(Path(output).parent / "audio") + os.sep)


def _with_digests(records: Iterable[dict[str, Any]], audio: dict[str, Entry]) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {**record, "sha256": audio[_audio(record)][2]} if _audio(record) in audio else record


def _differences(before: Iterable[dict[str, Any]], now: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each kind of change in each split, with the first few utterances."""
    old, new = ({record["id"]: record for record in records} for records in (before, now))
    found: dict[tuple[str, str], list[str]] = {}
    for uid in dict.fromkeys([*old, *new]):
        was, has = old.get(uid), new.get(uid)
        if was == has:
            continue
        split = (has or was)["split"]
        if was is None or has is None:
            found.setdefault((split, "new" if was is None else "gone"), []).append(uid)
        elif {**was, "sha256": ""} == {**has, "sha256": ""}:
            kinds = {"": "audio missing", _UNREAD: "audio of another time, which the corpus job will read"}
            what = kinds.get(has["sha256"], "audio replaced")
            found.setdefault((split, what), []).append(f"{uid} ({has['audio']})")
        else:
            keys = [k for k in sorted(was.keys() | has.keys()) if was.get(k) != has.get(k) and k != "sha256"]
            what = ", ".join(f"{k}: {json.dumps(was.get(k))} → {json.dumps(has.get(k))}" for k in keys)
            found.setdefault((split, "changed"), []).append(f"{uid} ({what})")
    for (split, what), names in sorted(found.items()):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{split}: {what}: {', '.join(names[:_SHOWN])}{more}"
    if not found:
        yield "the order of the utterances has changed"
