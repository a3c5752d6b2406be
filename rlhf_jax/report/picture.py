"""One PNG of a run for a README: reward and KL while training, and the win rates with their intervals."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report import charts, intervals, tables
from rlhf_jax.report.run import Run, Series, read_run
from rlhf_jax.report.words import title

INK, MUTED, GRID = "#1f2430", "#667085", "#e4e7ec"
COLORS = ("#2f6fb0", "#c8632b")


def write_picture(workdir: str | os.PathLike, path: str | os.PathLike) -> Path:
  """Draws what the run has: reward and KL of its last stage that logged a reward, and its win rates.

  Raises ValueError when it has none of them.
  """
  run = read_run(workdir)
  panels = [panel for panel in (_reward(run), _kl(run), _wins(run)) if panel]
  if not panels:
    raise ValueError(
      f"{workdir} has no reward, KL or win rate to draw; train a policy there first."
    )
  figure = Figure(
    figsize=(4.0 * len(panels), 3.1), dpi=160, facecolor="white", layout="constrained"
  )
  figure.get_layout_engine().set(wspace=0.06, w_pad=0.08, h_pad=0.08)
  for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
    style(axes)
    draw(axes)
  FigureCanvasAgg(figure).print_png(str(path))
  return Path(path)


def _online_stage(run: Run) -> str | None:
  return next((s for s in reversed(run.metrics) if "rewards/mean" in run.metrics[s]), None)


def _reward(run: Run):
  stage = _online_stage(run)
  if stage is None:
    return None

  def draw(axes: Axes):
    _line(axes, run.metrics[stage]["rewards/mean"], COLORS[0], None)
    heading(axes, f"{title(stage)}: reward of its samples")
    axes.set_xlabel("step")

  return draw


def _kl(run: Run):
  stage = _online_stage(run)
  kinds = [("policy/kl_exact", "exact"), ("policy/kl_k1", "k1 estimate")]
  found = [
    (run.metrics[stage][n], label) for n, label in kinds if stage and n in run.metrics[stage]
  ]
  if not found:
    return None

  def draw(axes: Axes):
    for color, (series, label) in zip(COLORS, found, strict=False):
      _line(axes, series, color, label)
    heading(axes, f"{title(stage)}: KL from SFT, nats a response")
    axes.set_xlabel("step")
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)

  return draw


def _wins(run: Run):
  r = run.results
  policies = [p for p in tables.policies_of(r) if f"{p}/win_rate" in r]
  if not policies:
    return None

  def draw(axes: Axes):
    for shift, color, (name, judge) in zip((-0.19, 0.19), COLORS, intervals.JUDGES, strict=True):
      places = [i + shift for i, p in enumerate(policies) if f"{p}/{name}" in r]
      names = [f"{p}/{name}" for p in policies if f"{p}/{name}" in r]
      rates = [100 * r[n] for n in names]
      below = [100 * (r[n] - r.get(f"{n}_low", r[n])) for n in names]
      above = [100 * (r.get(f"{n}_high", r[n]) - r[n]) for n in names]
      axes.bar(places, rates, 0.34, color=color, label=judge)
      axes.errorbar(places, rates, [below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=3)
      for place, rate, up in zip(places, rates, above, strict=True):
        axes.text(place, rate + up + 2, f"{rate:.0f}", ha="center", color=INK, fontsize=9)
    axes.axhline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(policies)), [title(p) for p in policies])
    axes.set_xlim(-0.6, len(policies) - 0.4)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 25))
    axes.grid(axis="x", visible=False)
    heading(axes, "Wins against SFT, % of prompts")
    axes.legend(frameon=False, loc="upper left", ncols=2, labelcolor=INK, columnspacing=1.2)

  return draw


def _line(axes: Axes, series: Series, color: str, label: str | None) -> None:
  if not charts.is_smoothed(series.values):
    axes.plot(series.steps, series.values, color=color, linewidth=1.8, label=label)
    return
  axes.plot(series.steps, series.values, color=color, linewidth=1, alpha=0.3)
  axes.plot(series.steps, charts.running_mean(series.values), color=color, linewidth=2, label=label)


def style(axes: Axes) -> None:
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=MUTED, labelsize=9, length=0)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color(GRID)
  axes.xaxis.label.set_color(MUTED)


def heading(axes: Axes, text: str) -> None:
  axes.set_title(text, loc="left", fontsize=11, color=INK)
