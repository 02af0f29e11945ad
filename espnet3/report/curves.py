"""Learning curves as SVG whose colours follow the page's theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOT_METRICS = {"epoch", "step", "seconds", "skipped"}
FIRST = ("loss", "acc", "loss_ctc", "loss_att")
PANELS = 6
SPLITS = ("train", "valid")
# matplotlib wants colours, the page wants variables: these stand for them
INK, MUTED, SERIES = "#010203", "#010204", ("#010205", "#010206", "#010207")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--line)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES, 1)}


def learning_curves(index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, SVG) for each metric of the ``history`` of ``checkpoints.json``, training and validation in one panel.

    An entry's metrics are its own keys, or lie under its key ``metrics``. Kept checkpoints are marked on the validation
    curves. What is no finite number is left out.
    """
    history = [{**entry, **(entry.get("metrics") or {})} for entry in index.get("history") or []]
    history = [entry for entry in history if _finite(entry.get("epoch"))]
    kept = {c.get("epoch") for c in index.get("checkpoints") or []}
    names = {key for entry in history for key, value in entry.items() if key not in NOT_METRICS and _finite(value)}
    metrics = {name.rpartition("/")[2] for name in names}
    order = [m for m in FIRST if m in metrics] + sorted(metrics - set(FIRST), key=lambda m: (m.startswith("lr"), m))
    panels = []
    for metric in order[:PANELS]:
        curves = {}
        for name in sorted(n for n in names if n.rpartition("/")[2] == metric):
            points = [(e["epoch"], float(e[name])) for e in history if _finite(e.get(name))]
            curves[name.rpartition("/")[0] or metric] = points
        panels.append((metric, _plot(metric, curves, kept)))
    return panels


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plot(metric: str, curves: Mapping[str, Sequence[tuple[float, float]]], kept: set) -> str:
    import matplotlib

    matplotlib.use("svg", force=False)
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": metric, "font.size": 11}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(sorted(curves.items(), key=lambda c: (c[0] not in SPLITS, c[0]))):
            colour = SERIES[SPLITS.index(name) if name in SPLITS else min(number, 2)]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, linewidth=2, label=name, marker="o" if len(x) == 1 else None)
            if name == "valid":
                dots = [p for p in points if p[0] in kept]
                axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=6, label="kept") if dots else None
        values = [v for points in curves.values() for _, v in points]
        if metric.startswith("loss") and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=MUTED, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(MUTED)
        axes.legend(frameon=False, labelcolor=INK, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderpad=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    # names that several pictures in one page must not share
    svg = re.sub(r'(id="|#)(?=[\w-])', rf"\g<1>{re.sub(r'[^a-zA-Z0-9]', '-', metric)}-", _coloured(svg))
    return svg.strip()


def _coloured(svg: str) -> str:
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
