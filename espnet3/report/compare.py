"""``python -m espnet3 compare A B``: two scored decodings of the same utterances, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet3.errors import UserError
from espnet3.io import read_json, read_jsonl
from espnet3.metrics.alignment import read_trn
from espnet3.metrics.bootstrap import BLOCKS, intervals, paired
from espnet3.metrics.errors import UtteranceScore, score_utterances, summarise
from espnet3.metrics.normalisation import KINDS, normaliser
from espnet3.metrics.significance import matched_pairs
from espnet3.report.table import Row

ALPHA = 0.05


def main(argv: Sequence[str]) -> int:
    """Print a table for each test set that both have, and what it means; 0."""
    arguments = _parser().parse_args(argv)
    paths, results = (Path(arguments.first), Path(arguments.second)), {}
    if arguments.manifest is not None:
        pairs = {Path(arguments.manifest).name: read_hypotheses(*paths, arguments.manifest, arguments.normalize)}
    else:
        pairs = {name: read_scores(*folders) for name, folders in find_pairs(*paths).items()}
    for name, (first, second) in pairs.items():
        results[name] = compare(first, second, arguments.by, arguments.samples, arguments.seed)
    if arguments.json:
        print(json.dumps(results, indent=1, sort_keys=True))
        return 0
    print(f"A  {arguments.first}\nB  {arguments.second}")
    for name, result in results.items():
        print("\n" + format_result(name, result), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet3 compare",
        description="Compare two scored decodings: WER with confidence intervals, and whether they differ.",
    )
    where = (
        "a folder with ref.trn and hyp.trn (exp/asr/score/joint/test), its metrics.json, or a folder of such folders; "
        "hyp.jsonl with --manifest"
    )
    parser.add_argument("first", metavar="A", help=where)
    parser.add_argument("second", metavar="B", help="likewise, of the same utterances")
    parser.add_argument("--manifest", help="references, where A and B are hyp.jsonl files")
    parser.add_argument("--normalize", choices=KINDS, default="none", help="with --manifest: both sides (none)")
    parser.add_argument("--by", choices=BLOCKS, default="utterance", help="what the bootstrap draws (utterance)")
    parser.add_argument("--samples", type=int, default=1000, help="draws of the bootstrap (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--json", action="store_true", help="all figures, for a program")
    return parser


def find_pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """``{test set: (folder, folder)}`` of what both have.

    Raises:
        UserError: there is no scored test set, or none that both have.
    """
    sides = [_test_sets(path) for path in (first, second)]
    if all(list(side) == [""] for side in sides):
        return {first.name if first.is_dir() else first.parent.name: (sides[0][""], sides[1][""])}
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        raise UserError(
            f"compare: {first} has {', '.join(n or 'one test set' for n in sides[0])} but {second} has "
            f"{', '.join(n or 'one test set' for n in sides[1])}; name two folders with the same test sets"
        )
    return {name: (sides[0][name], sides[1][name]) for name in common}


def _test_sets(path: Path) -> dict[str, Path]:
    if path.name == "metrics.json":
        path = path.parent
    if (path / "hyp.trn").exists():
        return {"": path}
    found = {p.parent.name: p.parent for p in sorted(path.glob("*/hyp.trn"))}
    if not found:
        raise UserError(f"{path}: no hyp.trn here; name a folder of the score stage, such as exp/asr/score/joint/test")
    return found


def read_scores(first: Path, second: Path) -> tuple[list[UtteranceScore], list[UtteranceScore]]:
    """Both folders' utterances, in the first one's order.

    Raises:
        UserError: they are not the same utterances with the same references.
    """
    references, others = read_trn(first / "ref.trn"), read_trn(second / "ref.trn")
    odd = next((name for name in (*references, *others) if references.get(name) != others.get(name)), None)
    if odd is not None:
        raise UserError(
            f"{second / 'ref.trn'}: utterance {odd} is not as in {first / 'ref.trn'}; "
            "compare decodings of one test set that were scored with the same score.normalize"
        )
    speakers = _speakers(first)
    scored = []
    for folder in (first, second):
        hypotheses = read_trn(folder / "hyp.trn")
        missing = next((name for name in references if name not in hypotheses), None)
        if missing is not None:
            raise UserError(f"{folder / 'hyp.trn'}: no hypothesis of utterance {missing}; score the decoding again")
        rows = [(name, _speaker_of(name, speakers), text, hypotheses[name]) for name, text in references.items()]
        scored.append(score_utterances(rows))
    return scored[0], scored[1]


def read_hypotheses(
    first: Path, second: Path, manifest: str, how: str = "none"
) -> tuple[list[UtteranceScore], list[UtteranceScore]]:
    """Two ``hyp.jsonl`` against the texts of *manifest*, in its order.

    Raises:
        UserError: an utterance of the manifest has no hypothesis.
    """
    clean = normaliser(how)
    texts = [{record["id"]: record["text"] for record in read_jsonl(path)} for path in (first, second)]
    rows: tuple[list, list] = ([], [])
    for cut in read_jsonl(manifest):
        uid, supervisions = cut["id"], cut["supervisions"]
        reference = clean(" ".join(s.get("text") or "" for s in supervisions))
        speaker = str(next((s["speaker"] for s in supervisions if s.get("speaker")), uid))
        for path, found, side in zip((first, second), texts, rows, strict=True):
            if uid not in found:
                raise UserError(f"{path}: no hypothesis of utterance {uid} of {manifest}")
            side.append((uid, speaker, reference, clean(found[uid])))
    return score_utterances(rows[0]), score_utterances(rows[1])


def _speakers(folder: Path) -> set[str]:
    """Speakers as they stand in .trn names."""
    path = folder / "metrics.json"
    names = read_json(path).get("speakers") or {} if path.exists() else {}
    return {"".join("_" if c.isspace() or c in "()" else c for c in name) for name in names}


def _speaker_of(name: str, speakers: set[str]) -> str:
    cut = len(name)
    while (cut := name.rfind("-", 0, cut)) > 0:
        if name[:cut] in speakers:
            return name[:cut]
    return name


def compare(
    first: Sequence[UtteranceScore],
    second: Sequence[UtteranceScore],
    by: str = "utterance",
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Both sides' rates and intervals, their paired difference, and the matched-pairs test."""
    sides = [{**summarise(scored), "intervals": intervals(scored, by, samples, seed)} for scored in (first, second)]
    better = [
        sum(a.words.errors < b.words.errors for a, b in zip(*pair, strict=True))
        for pair in ((first, second), (second, first))
    ]
    return {
        "a": sides[0],
        "b": sides[1],
        "a_better": better[0],
        "b_better": better[1],
        "bootstrap": {"by": by, "samples": samples, "seed": seed, **asdict(paired(first, second, by, samples, seed))},
        "matched_pairs": asdict(matched_pairs(first, second)),
    }


def differences_from_best(rows: Sequence[Row]) -> list[str]:
    """For each test set, a line for each decoding but the best one: by how much it is worse, and whether that is sure.

    A folder without ``.trn`` files, or with other references, has none.
    """
    lines = []
    for test_set in dict.fromkeys(row.test_set for row in rows):
        group = [row for row in rows if row.test_set == test_set]
        best = min(group, key=lambda row: row.metrics["wer"])
        for row in group:
            if row is best or not all((r.folder / "ref.trn").exists() for r in (row, best)):
                continue
            try:
                test = matched_pairs(*read_scores(best.folder, row.folder))
            except UserError:
                continue
            more = row.metrics["wer"] - best.metrics["wer"]
            sure = "significant" if test.p < ALPHA else "not significant"
            lines.append(
                f"{test_set}: {row.decoding} is {100 * more:.2f} points of WER above {best.decoding}, {sure} "
                f"(matched pairs, {test.segments} segments, p {_p(test.p)})"
            )
    return lines


def format_result(name: str, result: dict[str, Any]) -> str:
    """The table of one test set, and one line that says which is better."""
    a, b, test, boot = result["a"], result["b"], result["matched_pairs"], result["bootstrap"]
    lines = [f"{name}: {a['utterances']:,} utterances, {a['words']:,} words"]
    lines.append(f"  {'':13} {'A':>22} {'B':>22}")
    for key in ("wer", "cer", "ser"):
        cells = [_rate(side[key], side["intervals"].get(key)) for side in (a, b)]
        lines.append(f"  {key.upper() + ' %':13} {cells[0]:>22} {cells[1]:>22}")
    for key in ("substitutions", "insertions", "deletions"):
        lines.append(f"  {key:13} {a[key]:>22,} {b[key]:>22,}")
    lines.append(f"  {'better on':13} {result['a_better']:>22,} {result['b_better']:>22,}")
    low, high = boot["interval"]
    lines += [
        f"  B - A: {100 * boot['difference']:+.2f} points of WER, 95 % interval {100 * low:+.2f} to {100 * high:+.2f} "
        f"(bootstrap by {boot['by']}, {boot['samples']} draws, p {_p(boot['p'])})",
        f"  matched pairs: {test['segments']} segments, z = {test['z']:+.2f}, p {_p(test['p'])}",
        "  " + verdict(test["p"], test["mean"]),
    ]
    return "\n".join(lines) + "\n"


def verdict(p: float, mean: float) -> str:
    """One line about the matched-pairs test at the 5 % level."""
    if p >= ALPHA:
        return f"no significant difference at the {ALPHA:.0%} level"
    return f"{'A' if mean > 0 else 'B'} is better, significant at the {ALPHA:.0%} level"


def _rate(rate: float, interval: Sequence[float] | None) -> str:
    text = f"{100 * rate:.2f}"
    return text if not interval else f"{text} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
