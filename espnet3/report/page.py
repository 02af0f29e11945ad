"""The report: one HTML page without any outside resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espnet3.report.costs import Kind, duration, megabytes
from espnet3.report.style import STYLE
from espnet3.report.table import Row
from espnet3.report.worst import Worst

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ experiment }}: recognition report</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">Recognition report</p>
  <h1>{{ experiment }}</h1>
  <dl class="tiles">
  {%- for tile in tiles %}
    <div class="tile"><dt>{{ tile.label }}</dt><dd>{{ tile.value }}<small>{{ tile.unit }}</small></dd>
      <p>{{ tile.note }}</p></div>
  {%- endfor %}
  </dl>
</header>

<section>
  <h2>Error rates</h2>
  <div class="scroll"><table>
    <thead><tr><th>Test set</th><th>Decoding</th><th class="n">WER %</th><th class="n">95 %</th><th></th>
      <th class="n">CER %</th>{% if ter %}<th class="n">TER %</th>{% endif %}
      <th class="n">SER %</th><th class="n">Sub</th><th class="n">Ins</th><th class="n">Del</th>
      <th class="n">Words</th><th class="n">Utterances</th></tr></thead>
    {%- for test_set, group in groups %}
    <tbody>
    {%- for row in group.rows %}
    {%- set m = row.metrics %}
    <tr{% if row is sameas group.best %} class="best"{% endif %}>
      <th scope="row">{{ test_set if loop.first else "" }}</th><td>{{ row.decoding }}</td>
      <td class="n wer">{{ percent(m.wer) }}</td><td class="n">{{ row.interval }}</td>
      <td class="bar" aria-hidden="true"><i style="width:{{ '%.1f' % (100 * m.wer / top) }}%"></i></td>
      <td class="n">{{ percent(m.cer) }}</td>
      {%- if ter %}<td class="n">{{ percent(m.ter) }}</td>{% endif %}<td class="n">{{ percent(m.ser) }}</td>
      <td class="n">{{ whole(m.substitutions) }}</td><td class="n">{{ whole(m.insertions) }}</td>
      <td class="n">{{ whole(m.deletions) }}</td><td class="n">{{ whole(m.words) }}</td>
      <td class="n">{{ whole(m.utterances) }}</td>
    </tr>
    {%- endfor %}
    </tbody>
    {%- endfor %}
  </table></div>
  <p class="note">WER: substitutions, insertions and deletions for each reference word. CER counts the spaces between
  words. SER: share of utterances with an error.{% if normalized %} Both sides normalised ({{ normalized }}).{% endif %}
  The best decoding of each test set is in bold.{% if bootstrap %} 95 %: the WER's confidence interval (bootstrap by
  {{ bootstrap.by }}, {{ bootstrap.samples }} draws).{% endif %}{% if ter %} TER counts the tokenizer's tokens.{% endif %}</p>
  {%- if differences %}
  <ul class="note">
  {%- for line in differences %}
    <li>{{ line }}</li>
  {%- endfor %}
  </ul>
  {%- endif %}
</section>

{%- for row in rows if row.metrics.speakers %}
{%- if loop.first %}
<section>
  <h2>By speaker</h2>
{%- endif %}
  <details><summary>{{ row.decoding }}, {{ row.test_set }}: {{ row.metrics.speakers | length }} speakers</summary>
  <div class="scroll"><table class="speakers">
    <thead><tr><th>Speaker</th><th class="n">WER %</th><th class="n">CER %</th><th class="n">SER %</th>
      <th class="n">Sub</th><th class="n">Ins</th><th class="n">Del</th><th class="n">Words</th>
      <th class="n">Utterances</th></tr></thead>
    <tbody>
    {%- for name, m in worst_speakers(row.metrics.speakers) %}
    <tr><th scope="row">{{ name }}</th><td class="n">{{ percent(m.wer) }}</td><td class="n">{{ percent(m.cer) }}</td>
      <td class="n">{{ percent(m.ser) }}</td><td class="n">{{ whole(m.substitutions) }}</td>
      <td class="n">{{ whole(m.insertions) }}</td><td class="n">{{ whole(m.deletions) }}</td>
      <td class="n">{{ whole(m.words) }}</td><td class="n">{{ whole(m.utterances) }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div></details>
{%- if loop.last %}
</section>
{%- endif %}
{%- endfor %}

{%- if curves %}
<section>
  <h2>Learning curves</h2>
  <div class="charts">
  {%- for title, svg in curves %}
    <figure class="chart"><figcaption>{{ title }}</figcaption>{{ svg | safe }}</figure>
  {%- endfor %}
  </div>
</section>
{%- endif %}

{%- for decoding, utterances in worst %}
{%- if loop.first %}
<section>
  <h2>Worst utterances</h2>
  <p class="legend"><span class="S">substitution</span><span class="I">insertion</span><span class="D">deletion</span>
  <em>reference above, hypothesis below</em></p>
{%- endif %}
  <details{% if loop.first %} open{% endif %}><summary>{{ decoding }}</summary>
  {%- if not utterances %}<p>No utterance has an error.</p>{% endif %}
  <ol class="worst">
  {%- for w in utterances %}
    <li>
      <p class="name"><b>{{ w.score.words.errors }}</b>
      error{{ "" if w.score.words.errors == 1 else "s" }} in {{ w.score.words.length }} words
      <span>{{ w.test_set }}</span> <code>{{ w.score.uid }}</code></p>
      <p class="aligned">
      {%- for kind, ref, hyp in w.score.alignment -%}
        <span class="{{ kind }}"><span class="ref">{{ ref or "\\u00a0" }}</span>
        {%- if true %}<span class="hyp">{{ hyp or "\\u00a0" }}</span>{% endif %}
        {%- if kind != "C" %}<span class="kind">{{ kind }}</span>{% endif %}</span>
      {% endfor -%}
      </p>
    </li>
  {%- endfor %}
  </ol></details>
{%- if loop.last %}
</section>
{%- endif %}
{%- endfor %}

{%- if costs %}
<section>
  <h2>Cost</h2>
  <div class="scroll"><table>
    <thead><tr><th>Job</th><th class="n">Jobs</th><th class="n">Time, all</th><th class="n">Longest</th>
      <th class="n">CPU time</th><th class="n">Peak memory</th></tr></thead>
    <tbody>
    {%- for kind in costs %}
    <tr><th scope="row">{{ kind.name }}</th><td class="n">{{ kind.jobs | length }}</td>
      <td class="n">{{ duration(kind.wall) }}</td><td class="n">{{ duration(kind.longest) }}</td>
      <td class="n">{{ duration(kind.cpu) }}</td><td class="n">{{ megabytes(kind.memory) }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div>
  <details><summary>Every job</summary><div class="scroll"><table>
    <thead><tr><th>Job</th><th class="n">Time</th><th class="n">CPU time</th><th class="n">Peak memory</th></tr></thead>
    <tbody>
    {%- for kind in costs %}{% for job in kind.jobs %}
    <tr><td>{{ job.name }}</td><td class="n">{{ duration(job.wall) }}</td><td class="n">{{ duration(job.cpu) }}</td>
      <td class="n">{{ megabytes(job.memory) }}</td></tr>
    {%- endfor %}{% endfor %}
    </tbody>
  </table></div></details>
</section>
{%- endif %}

{%- if configuration %}
<section>
  <h2>Configuration</h2>
  <details><summary>What this experiment was made with</summary><pre>{{ configuration }}</pre></details>
</section>
{%- endif %}
</main>
</body>
</html>
"""


def render(
    experiment: str,
    rows: Sequence[Row],
    curves: Sequence[tuple[str, str]] = (),
    worst: Sequence[tuple[str, Sequence[Worst]]] = (),
    costs: Sequence[Kind] = (),
    index: Mapping[str, Any] | None = None,
    configuration: str = "",
    differences: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        curves: (title, SVG).
        worst: for each decoding its worst utterances.
        index: ``checkpoints.json``.
        configuration: shown as it is.
        differences: a line for each test of a decoding against the best of its test set.
    """
    import jinja2

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.test_set, []).append(row)
    best = {name: min(group, key=lambda row: row.metrics["wer"]) for name, group in groups.items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    environment.globals |= {"percent": _percent, "whole": _whole, "duration": duration, "megabytes": megabytes}
    environment.globals["worst_speakers"] = _worst_speakers
    return environment.from_string(TEMPLATE).render(
        experiment=experiment,
        style=STYLE,
        rows=rows,
        differences=differences,
        ter=any("ter" in row.metrics and row.metrics["ter"] != row.metrics.get("cer") for row in rows),
        bootstrap=next((i for row in rows if (i := row.metrics.get("intervals"))), None),
        tiles=_tiles(best, costs, index or {}),
        groups=[(name, {"rows": group, "best": best[name]}) for name, group in groups.items()],
        top=max((row.metrics["wer"] for row in rows), default=0) or 1.0,
        normalized=next((n for row in rows if (n := row.metrics.get("normalize")) not in (None, "none")), ""),
        curves=curves,
        worst=worst,
        costs=costs,
        configuration=configuration,
    )


def _tiles(best: Mapping[str, Row], costs: Sequence[Kind], index: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = [
        {
            "label": f"WER, {name}",
            "value": f"{100 * row.metrics['wer']:.2f}",
            "unit": " %",
            "note": f"{row.decoding}, {_whole(row.metrics.get('words'))} words",
        }
        for name, row in best.items()
    ]
    history = index.get("history") or []
    if history:
        last = history[-1]
        steps = f"{_whole(last['step'])} steps" if isinstance(last.get("step"), int) else ""
        tiles.append({"label": "Training", "value": str(len(history)), "unit": " epochs", "note": steps})
    if costs:
        cpu = [kind.cpu for kind in costs if kind.cpu is not None]
        total = sum(cpu) if cpu else sum(kind.wall for kind in costs)
        jobs = sum(len(kind.jobs) for kind in costs)
        tiles.append(
            {"label": "CPU time" if cpu else "Time", "value": duration(total), "unit": "", "note": f"{jobs} jobs"}
        )
    return tiles


def _worst_speakers(speakers: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(speakers.items(), key=lambda item: (-item[1]["wer"], item[0]))


def _percent(rate: Any) -> str:
    return f"{100 * rate:.2f}" if isinstance(rate, (int, float)) else "-"


def _whole(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else "-"
