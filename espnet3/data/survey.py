"""What is in a corpus, and what looks wrong with it."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from espnet3.data.names import id_problem, text_problem
from espnet3.data.wavheader import BadAudio, read_header
from espnet3.errors import UserError
from espnet3.parallel import BaseRunner, EnvironmentProvider

_BINS = (0, 1, 2, 5, 10, 15, 20, 30, 60, math.inf)
_BAR = 40
_SHORTEST, _LONGEST = 0.1, 30.0
# Latin letters a second; speech has 10 to 20
_FAST = 35.0


class HeaderProvider(EnvironmentProvider):
    """``{"records"}`` of the configuration."""

    def build_env_local(self) -> dict[str, Any]:
        return {"records": self.config["records"]}

    def build_worker_setup_fn(self):
        return functools.partial(dict, records=list(self.config["records"]))


class HeaderRunner(BaseRunner):
    """For each record ``{"seconds", "rate", "channels"}``, or ``{"reason"}``."""

    @staticmethod
    def forward(idx: int, records: list[dict[str, Any]], **env: Any) -> dict[str, Any]:
        record = records[idx]
        text = " ".join(str(record.get("text") or "").split())
        try:
            if problem := record.get("rejected") or id_problem(record["id"]) or text_problem(text):
                raise BadAudio(problem)
            header = read_header(record["audio"])
            whole = header.num_samples / header.sampling_rate
            start = record.get("start")
            seconds = whole - (start or 0.0) if start is None or record.get("duration") is None else record["duration"]
            if start is not None and (start < 0 or seconds <= 0 or start + seconds > whole + 0.05):
                raise BadAudio(f"duration mismatch: {start:.3f} s + {seconds:.3f} s stated, {whole:.3f} s in the file")
            if header.channels > 1 and record.get("channel") is None:
                raise BadAudio(f"not mono: {header.channels} channels")
        except BadAudio as error:
            return {"reason": str(error)}
        return {"seconds": seconds, "rate": header.sampling_rate, "channels": header.channels}


def measure(records: list[dict[str, Any]], parallel: dict[str, Any]) -> list[dict[str, Any]]:
    """The records, each with what :class:`HeaderRunner` found."""
    keys = ("id", "audio", "text", "start", "duration", "channel", "rejected")
    slim = [{key: record[key] for key in keys if key in record} for record in records]
    found = HeaderRunner(HeaderProvider({"records": slim}), parallel=parallel, name="headers")(range(len(slim)))
    return [{**record, **facts} for record, facts in zip(records, found, strict=True)]


def check_usable(records: list[dict[str, Any]]) -> None:
    """Raises UserError where all of *records* are unfit."""
    if all("reason" in record for record in records):
        first = records[0]
        raise UserError(f"no usable utterance: {first['id']} ({first['audio']}): {first['reason']}, and so on")


@dataclass
class Survey:
    """What :func:`survey` found; durations in seconds, rates in Hz."""

    headline: str
    sampling_rate: int
    max_duration: float
    max_rejected: float
    train_seconds: float
    longest: float
    pieces: bool
    splits: list[str] = field(default_factory=list)
    histogram: list[str] = field(default_factory=list)
    vocabulary: str = ""
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a terminal."""
        return [*self.splits, self.vocabulary, "seconds:", *self.histogram]


def survey(records: list[dict[str, Any]], choice: dict[str, Any], sampling_rate: int | None = None) -> Survey:
    """What is in *records*, which :func:`measure` has looked at.

    Args:
        choice: ``train``, ``valid`` (names of splits) and ``test`` (a list of them).
        sampling_rate: Hz; None: the commonest, but 16,000 at most.

    Raises:
        UserError: there is nothing usable.
    """
    good = [record for record in records if "reason" not in record]
    bad = [record for record in records if "reason" in record]
    check_usable(records)
    rates = collections.Counter(record["rate"] for record in good)
    longest = max(record["seconds"] for record in good)
    train = [record for record in good if record["split"] == choice["train"]]
    words = collections.Counter(word for record in train for word in record["text"].split())
    characters = collections.Counter("".join(record["text"] for record in train).replace(" ", ""))
    speakers = {record.get("speaker") for record in good} - {None}
    seconds = sum(record["seconds"] for record in good)
    found = Survey(
        headline=f"{len(good)} utterances, {_hours(seconds)}, {len(speakers) or 'unknown'} speakers, "
        f"{', '.join(f'{rate} Hz' for rate, _ in rates.most_common(3))}",
        sampling_rate=sampling_rate or min(16000, rates.most_common(1)[0][0]),
        max_duration=min(_LONGEST, math.ceil(longest)) if longest < _LONGEST else _LONGEST,
        max_rejected=_allowed(bad, records),
        train_seconds=sum(record["seconds"] for record in train),
        longest=min(longest, _LONGEST),
        # below a few thousand words, units longer than a letter are seen too seldom
        pieces=sum(words.values()) > 50_000 and len(characters) < 200,
        vocabulary=f"train: {sum(words.values())} words, {len(words)} different; {len(characters)} characters: "
        + "".join(sorted(characters))[:80],
    )
    for split in dict.fromkeys(record["split"] for record in records):
        own = [record for record in good if record["split"] == split]
        people = {record.get("speaker") for record in own} - {None}
        found.splits.append(
            f"  {split}: {len(own)} utterances, {_hours(sum(r['seconds'] for r in own))}, {len(people) or 'unknown'} speakers"
        )
    found.histogram = _histogram([record["seconds"] for record in good])
    found.problems = _problems(records, good, bad, train, choice, rates, characters)
    return found


def _allowed(bad: list, records: list) -> float:
    # what is known now may be left out; more is news
    return round(min(1.0, math.ceil(100 * len(bad) / len(records)) / 100), 2) if bad else 0.0


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _histogram(seconds: list[float]) -> list[str]:
    counts = [sum(low <= s < high for s in seconds) for low, high in itertools.pairwise(_BINS)]
    most = max(counts)
    names = [f"{low}-{high}" if high < math.inf else f"over {low}" for low, high in itertools.pairwise(_BINS)]
    lines = [
        f"  {name:>8} {count:8d} {'#' * math.ceil(_BAR * count / most)}"
        for name, count in zip(names, counts, strict=True)
    ]
    while lines and counts[-1] == 0:
        lines.pop()
        counts.pop()
    return lines


def _problems(records, good, bad, train, choice, rates, characters) -> list[str]:
    problems = []
    reasons = collections.Counter(record["reason"].split(":")[0] for record in bad)
    for reason, count in reasons.most_common():
        example = next(record for record in bad if record["reason"].startswith(reason))
        problems.append(
            f"{count} of {len(records)} unfit: {reason} ({example['id']}: {example['reason']}, {example['audio']})"
        )
    if len(rates) > 1:
        problems.append(f"mixed sampling rates: {', '.join(f'{rate} Hz ({n})' for rate, n in rates.most_common())}")
    if min(rates) < 8000:
        problems.append(f"{min(rates)} Hz is too little for speech")
    if long := sum(record["seconds"] > _LONGEST for record in good):
        problems.append(
            f"{long} utterances of more than {_LONGEST:g} s will be left out: cut them, or raise data.max_duration"
        )
    if short := sum(record["seconds"] < _SHORTEST for record in good):
        problems.append(f"{short} utterances of less than {_SHORTEST:g} s will be left out")
    if fast := [r for r in good if len(r["text"]) / r["seconds"] > _FAST]:
        problems.append(
            f"{len(fast)} transcripts are too long for their audio, such as {fast[0]['id']}: cut off, or swapped?"
        )
    problems += _repeats(good)
    if any(c.isupper() for c in characters) and any(c.islower() for c in characters):
        problems.append("upper and lower case both: data.builder.normalize=basic makes the transcripts lower case")
    marks = [c for c in characters if not c.isalnum() and c not in "'-"]
    if marks:
        problems.append(
            f"punctuation in the transcripts ({''.join(sorted(marks))[:20]}): data.builder.normalize=basic drops it"
        )
    if rare := [c for c, n in characters.items() if n < 3 and c.isalnum()]:
        problems.append(f"{len(rare)} characters occur once or twice in training: {''.join(sorted(rare))[:40]}")
    problems += _leaks(good, train, choice)
    if not any(record.get("speaker") for record in good):
        problems.append("no speakers are known")
    if sum(r["seconds"] for r in train) < 600:
        problems.append("less than ten minutes to train on")
    return problems


def _repeats(good: list[dict[str, Any]]) -> list[str]:
    places = collections.defaultdict(list)
    for record in good:
        key = (record["audio"], record.get("start"), record.get("duration"), record.get("channel"))
        places[key].append(record["id"])
    twice = [ids for ids in places.values() if len(ids) > 1]
    return [f"{len(twice)} recordings are there more than once, such as {' and '.join(twice[0][:2])}"] if twice else []


def _leaks(good: list[dict[str, Any]], train: list[dict[str, Any]], choice: dict[str, Any]) -> list[str]:
    problems = []
    texts, people = {r["text"] for r in train}, {r.get("speaker") for r in train} - {None}
    for split in (choice["valid"], *choice["test"]):
        own = [record for record in good if record["split"] == split]
        if not own:
            problems.append(f"'{split}' has no usable utterance")
            continue
        same = sum(record["text"] in texts for record in own)
        if same > 0.2 * len(own):
            problems.append(f"{same} of {len(own)} sentences of '{split}' are in '{choice['train']}', too")
        shared = {record.get("speaker") for record in own} & people
        if shared:
            problems.append(f"{len(shared)} speakers of '{split}' are in '{choice['train']}', too")
    return problems
