"""Variants of one experiment side by side: `comparison.md` and `comparison.png` beside their `comparison.json`.

Where answers were checked, variants are ordered by their score, else by how often they win against SFT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report import curves
from rlhf_jax.report.picture import COLORS, INK, MUTED, heading, style
from rlhf_jax.report.words import interval, number, percent_interval

Results = Mapping[str, Mapping[str, float]]  # variant -> what was measured

COLUMNS = {  # of the table, where any variant has it
  "score": "score",
  "reward": "reward",
  "cost": "cost",
  "kl_exact": "KL from SFT, nats",
  "win_rate": "wins against SFT, judge",
  "vader_win_rate": "wins, VADER",
  "length": "tokens",
  "distinct_2": "distinct-2",
}
RATES = ("win_rate", "vader_win_rate")


def write_comparison(
  workdir: str | os.PathLike,
  found: Results | Sequence[Results],
  folders: Sequence[str | os.PathLike] = (),
) -> list[Path]:
  """The table and the picture of `found`, or of several seeds' results; and the curves of what was measured while training.

  `folders` are those of the seeds, `workdir` itself where there is one.
  """
  runs = [found] if isinstance(found, Mapping) else list(found)
  text, picture = Path(workdir) / "comparison.md", Path(workdir) / "comparison.png"
  text.write_text(table(runs) + "\n", encoding="utf-8")
  draw(runs, picture)
  drawn = curves.write_curves(workdir, runs, folders or [workdir])
  return [text, picture, *([drawn] if drawn else [])]


def read_comparison(workdir: str | os.PathLike) -> Results:
  """What `rlhf-jax compare` has measured in `workdir` so far."""
  path = Path(workdir) / "comparison.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist; run rlhf-jax compare with this --workdir first."
    )
  return json.loads(path.read_text(encoding="utf-8"))


def table(runs: Sequence[Results]) -> str:
  """Markdown, the best first: with one run 95 % intervals of scores, costs and rates, with several the mean and the range."""
  names = _ordered(runs)
  columns = [c for c in COLUMNS if any(mean(runs, name, c) is not None for name in names)]
  lines = [
    "| " + " | ".join(["variant", *(COLUMNS[c] for c in columns)]) + " |",
    "|---" * (1 + len(columns)) + "|",
  ]
  for name in names:
    cells = [name, *(_cell(runs, name, column) for column in columns)]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(runs: Sequence[Results], path: Path) -> None:
  """Scores or win rates with their intervals, numbered from the best; and, by these numbers, the KL that they cost."""
  measure = measure_of(runs)
  unit, even = (100, 50) if measure == "win_rate" else (1, mean(runs, "sft", measure))
  names = [n for n in _ordered(runs) if mean(runs, n, measure) is not None]
  height = max(3.2, 0.24 * len(names) + 1.2)
  figure = Figure(figsize=(12, height), dpi=140, facecolor="white", layout="constrained")
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
  for axes in (left, right):
    style(axes)
  for place, name in enumerate(names, start=1):
    value, low, high = (unit * bound for bound in _bounds(runs, name, measure))
    left.plot([low, high], [place, place], color=COLORS[0], linewidth=1.6)
    left.plot(value, place, "o", color=COLORS[0], markersize=5)
    kl = mean(runs, name, "kl_exact")
    if kl is not None:
      right.plot(kl, value, "o", color=COLORS[0], markersize=4)
      above = dict(xytext=(3, 3), textcoords="offset points", fontsize=8, color=INK)
      right.annotate(str(place), (kl, value), **above)
  if even is not None:
    dashed = dict(color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    left.axvline(even, **dashed)
    right.axhline(even, **dashed)
  left.set_yticks(
    range(1, len(names) + 1), [f"{n}  {i}" for i, n in enumerate(names, start=1)], fontsize=8
  )
  left.set_ylim(len(names) + 0.7, 0.3)
  right.set_xscale("log")
  right.xaxis.set_major_formatter("{x:g}")
  right.tick_params(which="minor", length=0)
  heading(left, HEADINGS[measure])
  heading(right, "… against the KL from SFT")
  right.set_xlabel("exact KL of the policy's own answers, nats a response")
  FigureCanvasAgg(figure).print_png(str(path))


HEADINGS = {
  "score": "Score by the task's own check, SFT's dashed",
  "win_rate": "Wins against SFT by the TF-IDF judge, % of prompts",
}


def measure_of(runs: Sequence[Results]) -> str:
  """What variants are ordered by."""
  scored = any("score" in row for run in runs for row in run.values())
  return "score" if scored else "win_rate"


def _ordered(runs: Sequence[Results]) -> list[str]:
  """The variants that all runs have, SFT first, then the best."""
  measure = measure_of(runs)
  order = lambda name: (name != "sft", -(mean(runs, name, measure) or 0.0), name)
  return sorted(set.intersection(*(set(run) for run in runs)), key=order)


def mean(runs: Sequence[Results], name: str, column: str) -> float | None:
  """Over the runs that have it, None where none has."""
  values = [run[name][column] for run in runs if column in run.get(name, {})]
  return sum(values) / len(values) if values else None


def _bounds(runs: Sequence[Results], name: str, column: str) -> tuple[float, float, float]:
  if len(runs) == 1:
    row = runs[0][name]
    return row[column], row[f"{column}_low"], row[f"{column}_high"]
  values = [run[name][column] for run in runs]
  return sum(values) / len(values), min(values), max(values)


def _cell(runs: Sequence[Results], name: str, column: str) -> str:
  value = mean(runs, name, column)
  if value is not None and column in RATES:
    return percent_interval(*_bounds(runs, name, column))
  if value is not None and column in ("score", "cost"):
    return interval(*_bounds(runs, name, column))
  return number(value)
