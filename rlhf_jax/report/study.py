"""Loops in variants over several seeds: `study.md` and `study.png` beside their `study.json`.

What the last round of each has reached, as mean and 95 % t interval over seeds; and the difference of every two variants, seed by
seed. Intervals are one by one: of twenty differences that are nothing, one is expected to be marked.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report import rounds
from rlhf_jax.report.ablation import Interval, interval_over
from rlhf_jax.report.picture import COLORS, INK, heading, style
from rlhf_jax.report.words import NONE

STYLES = [(color, line) for line in ("-", "--") for color in (*COLORS, "#4b9b6e", "#8a63b0")]


def write_study(workdir: str | os.PathLike, found: Mapping[str, Any]) -> tuple[Path, Path]:
  text, picture = Path(workdir) / "study.md", Path(workdir) / "study.png"
  text.write_text(table(found) + "\n", encoding="utf-8")
  draw(found, picture)
  return text, picture


def table(found: Mapping[str, Any]) -> str:
  """Markdown: the variants, then what one has over another; differences whose interval excludes 0 in bold."""
  measures = _measures(found)
  heads = " | ".join(measures.values())
  lines = [f"| | seeds | labels | {heads} |", "|---" * (len(measures) + 3) + "|"]
  for name, seeds in found["variants"].items():
    labels = np.mean([done[-1]["labels"] for done in seeds.values()])
    cells = [_text(interval_over(list(_last(seeds, m).values()))) for m in measures]
    lines.append("| " + " | ".join([name, str(len(seeds)), f"{labels:.0f}", *cells]) + " |")
  lines += ["", f"| | seeds | {heads} |", "|---" * (len(measures) + 2) + "|"]
  for (name, seeds), (other, others) in itertools.combinations(found["variants"].items(), 2):
    both = [seed for seed in seeds if seed in others]
    cells = []
    for measure in measures:
      mine, theirs = _last(seeds, measure), _last(others, measure)
      change = interval_over([theirs[seed] - mine[seed] for seed in both])
      marked = change is not None and change.excludes_zero
      cells.append(f"**{_text(change)}**" if marked else _text(change))
    lines.append(f"| {other} less {name} | {len(both)} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _last(seeds: Mapping[str, list], measure: str) -> dict[str, float]:
  """What the last round has reached, by seed."""
  return {seed: done[-1][measure] for seed, done in seeds.items()}


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Each measure over the number of labels: means over seeds with their intervals."""
  measures = _measures(found)
  size = (max(4.0, 3.1 * len(measures)), 3.4)
  figure = Figure(figsize=size, dpi=140, facecolor="white", layout="constrained")
  panels = figure.subplots(1, max(len(measures), 1), squeeze=False)[0]
  for axes, (measure, called) in zip(panels, measures.items(), strict=False):
    style(axes)
    heading(axes, called)
    axes.set_xlabel("labels")
    for place, (name, seeds) in enumerate(found["variants"].items()):
      color, line = STYLES[place % len(STYLES)]
      done = list(zip(*seeds.values(), strict=True))  # round by round
      x = [np.mean([r["labels"] for r in row]) for row in done]
      shift = (place - (len(found["variants"]) - 1) / 2) * 0.015 * x[-1]  # side by side
      values = [[r[measure] for r in row] for row in done]
      for at, row in zip(x, values, strict=True):
        if (interval := interval_over(row)) is not None:
          axes.plot([at + shift] * 2, interval[1:], color=color, linewidth=1.2, alpha=0.6)
      means = [np.mean(row) for row in values]
      marks = dict(color=color, linestyle=line, marker="o", markersize=4)
      axes.plot([at + shift for at in x], means, label=name, **marks)
  drawn, names = panels[0].get_legend_handles_labels()
  figure.legend(drawn, names, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
  FigureCanvasAgg(figure).print_png(str(path))


def _measures(found: Mapping[str, Any]) -> dict[str, str]:
  every = [r for seeds in found["variants"].values() for done in seeds.values() for r in done]
  return rounds.columns(every, found["policy"])


def _text(found: Interval | None) -> str:
  """`0.61 (0.58 to 0.64)`."""
  if found is None:
    return NONE
  mean, low, high = (f"{x + 0.0:.2f}" for x in found)
  return f"{mean} ({low} to {high})".replace("-", "−")
