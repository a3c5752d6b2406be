"""How variants of one experiment learn: `curves.png`, the score on held-out prompts over the optimizer's updates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report.picture import INK, MUTED, heading, style
from rlhf_jax.report.run import Series, read_run

SCORE, KL, UPDATES = "eval/score", "eval/kl_exact", "eval/updates"
COLORS = (
  "#2f6fb0",
  "#c8632b",
  "#3a8f5c",
  "#8e5bb5",
  "#b8952c",
  "#c0436b",
  "#3b9aa8",
  "#6f6f6f",
  "#7a5238",
  "#9fb83f",
)
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # once through the colours, a line each


def write_curves(
  workdir: str | os.PathLike,
  runs: Sequence[Mapping[str, Mapping[str, float]]],
  folders: Sequence[str | os.PathLike],
) -> Path | None:
  """Draws the variants that logged `eval/score`, the best first; None where none did.

  Lines are means over seeds, bands reach from the lowest to the highest. All begin at SFT's level.
  """
  names = [name for name in set.intersection(*map(set, runs)) if name != "sft"]
  scores = {name: read_curves(folders, name, SCORE) for name in names}
  scores = {name: of for name, of in scores.items() if of}
  if not scores:
    return None
  order = sorted(scores, key=lambda name: (-mean_curve(scores[name]).values[-1], name))
  costs = {name: read_curves(folders, name, KL) for name in order}
  sft = [run["sft"]["score"] for run in runs if "score" in run.get("sft", {})]
  beginning = float(np.mean(sft)) if sft else None

  panels = 2 if any(costs.values()) else 1
  figure = Figure(figsize=(5.6 * panels + 2, 4.2), dpi=140, facecolor="white", layout="constrained")
  left, *right = figure.subplots(1, panels, squeeze=False)[0]
  _score_panel(left, {name: scores[name] for name in order}, beginning)
  for axes in right:
    _cost_panel(axes, scores, costs, beginning)
  figure.legend(
    *left.get_legend_handles_labels(), loc="outside right center", frameon=False, labelcolor=INK
  )
  path = Path(workdir) / "curves.png"
  FigureCanvasAgg(figure).print_png(str(path))
  return path


def read_curves(folders: Sequence[str | os.PathLike], name: str, metric: str) -> list[Series]:
  """Of each seed that logged it, `metric` over the optimizer's updates."""
  found = []
  for folder in folders:
    variant = Path(folder) / "variants" / name
    stages = read_run(variant).metrics.values() if variant.is_dir() else ()
    for metrics in stages:
      if metric in metrics and UPDATES in metrics:
        found.append(Series(metrics[UPDATES].values, metrics[metric].values))
  return found


def mean_curve(seeds: Sequence[Series]) -> Series:
  """The mean over seeds, as far as all have come."""
  size = min(len(series.values) for series in seeds)
  return Series(seeds[0].steps[:size], np.mean([s.values[:size] for s in seeds], axis=0))


def _score_panel(
  axes: Axes, curves: Mapping[str, Sequence[Series]], beginning: float | None
) -> None:
  style(axes)
  for look, (name, seeds) in zip(_looks(len(curves)), curves.items(), strict=True):
    line = _from(mean_curve(seeds), beginning)
    size = len(line.values) - (beginning is not None)
    values = np.stack([s.values[:size] for s in seeds])
    axes.plot(line.steps, line.values, label=name, linewidth=1.8, **look)
    steps = line.steps[-size:]
    axes.fill_between(
      steps, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.13, linewidth=0
    )
  if beginning is not None:
    axes.axhline(
      beginning, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="SFT", zorder=1
    )
  several = max(len(seeds) for seeds in curves.values())
  heading(axes, "Score on the held-out prompts, by the task's own check")
  spread = f"; mean and range of {several} seeds" if several > 1 else ""
  axes.set_xlabel(f"optimizer updates{spread}")


def _cost_panel(axes: Axes, scores, costs, beginning: float | None) -> None:
  """Score against KL, from SFT on; a dot where training ended."""
  style(axes)
  for look, name in zip(_looks(len(costs)), costs, strict=True):
    if costs[name]:
      x, y = mean_curve(costs[name]).values, mean_curve(scores[name]).values
      size = min(len(x), len(y))
      start = [] if beginning is None else [(0.0, beginning)]
      points = np.asarray([*start, *zip(x[:size], y[:size], strict=True)])
      axes.plot(points[:, 0], points[:, 1], linewidth=1.4, **look)
      axes.plot(*points[-1], "o", color=look["color"], markersize=5)
  if beginning is not None:
    axes.axhline(beginning, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
  heading(axes, "… against the KL from SFT")
  axes.set_xlabel("exact KL of the policy's own answers, nats a response")


def _from(line: Series, beginning: float | None) -> Series:
  if beginning is None:
    return line
  return Series(np.concatenate([[0], line.steps]), np.concatenate([[beginning], line.values]))


def _looks(count: int) -> list[dict]:
  return [
    dict(color=COLORS[i % len(COLORS)], linestyle=LINES[i // len(COLORS) % len(LINES)])
    for i in range(count)
  ]
