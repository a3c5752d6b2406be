"""The plots of docs/performance.md: a roofline, the ratios to other libraries, and how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import cost
from benchmarks.cases import SHAPES
from benchmarks.timings import BARE, OURS, TARGETS, TASKS, Timing, Timings
from rlhf_jax.report.picture import COLORS, GRID, INK, MUTED, heading, style

DTYPES = {"float32": COLORS[0], "bfloat16": COLORS[1]}
MARKERS = {"XS": "v", "S": "o", "M": "s", "1B": "D"}
SHORT = {"sft": "SFT", "rm": "RM", "dpo": "DPO", "gen": "generation", "grpo": "GRPO", "ppo": "PPO"}


def draw(timings: Timings, products: list[dict], page: Path) -> Iterator[tuple[str, Path]]:
  """(kind, file) of every plot that there are results for, beside `page` and named after it."""
  for kind, plot in PLOTS.items():
    size = plot.width, plot.height
    figure = Figure(figsize=size, dpi=140, facecolor="white", layout="constrained")
    if plot.draw(figure, timings, products):
      path = page.with_name(f"{page.stem}_{kind}.png")
      FigureCanvasAgg(figure).print_png(str(path))
      yield kind, path


def roofline(figure: Figure, timings: Timings, products: list[dict]) -> bool:
  """Each case's FLOP/s over its FLOPs for a byte that has to move, under what the machine can do."""
  peaks = {
    dtype: max((r["flop_per_s"] for r in products if r.get("dtype") == dtype), default=None)
    for dtype in DTYPES
  }
  bandwidth = max((r["bytes_per_s"] for r in products if "bytes_per_s" in r), default=None)
  cases = [
    timing
    for timing in timings.all
    if timing.library == OURS and not timing.options and timing.mean("bytes") is not None
  ]
  if not cases or bandwidth is None or None in peaks.values():
    return False
  axes = figure.subplots()
  style(axes)
  at = [timing.mean("flops") / timing.mean("bytes") for timing in cases]
  x = np.geomspace(min(at) / 3, max(at) * 3, 300)
  for dtype, color in DTYPES.items():
    axes.plot(x, np.minimum(peaks[dtype], bandwidth * x) / 1e9, color=color, linewidth=1.6)
    said = f"{dtype} products: {peaks[dtype] / 1e9:,.0f} GFLOP/s"
    ridge = (max(peaks[dtype] / bandwidth, x[0]), peaks[dtype] / 1e9)
    axes.annotate(said, ridge, (0, 4), textcoords="offset points", color=color, fontsize=8)
  said = f"memory: {bandwidth / 1e9:.0f} GB/s"
  start = (x[0], bandwidth * x[0] / 1e9)
  axes.annotate(said, start, (10, 0), textcoords="offset points", color=MUTED, fontsize=8)
  points = [(i, t.mean("flop_per_s") / 1e9) for i, t in zip(at, cases, strict=True)]
  for (intensity, achieved), timing in zip(points, cases, strict=True):
    crowded = any(1 < x / intensity < 1.4 and 0.9 < y / achieved < 1.1 for x, y in points)
    axes.plot(
      intensity,
      achieved,
      MARKERS[timing.model],
      color=DTYPES[timing.dtype],
      markersize=6,
      mec="white",
      mew=0.7,
    )
    axes.annotate(
      SHORT[timing.task],
      (intensity, achieved),
      (-5 if crowded else 5, -3),
      textcoords="offset points",
      ha="right" if crowded else "left",
      color=MUTED,
      fontsize=7,
    )
  _logarithmic(axes)
  axes.set_xlabel("model FLOPs per byte of weights, optimizer state and cache")
  heading(axes, "Achieved GFLOP/s, and what the machine can do")
  models = [model for model in MARKERS if any(t.model == model for t in cases)]
  looks = [Line2D([], [], marker=MARKERS[m], color=MUTED, linestyle="", label=m) for m in models]
  axes.legend(
    handles=looks,
    frameon=False,
    loc="lower right",
    labelcolor=INK,
    title="model",
    title_fontsize=9,
    fontsize=9,
  )
  return True


def ratios(figure: Figure, timings: Timings, products: list[dict]) -> bool:
  """How many times as fast as the better of TRL and Tunix, of the fixed and the ragged set."""
  sets = [(set_, found) for set_ in ("fixed", "ragged") if (found := list(_ratios(timings, set_)))]
  if not sets:
    return False
  for axes, (set_, found) in zip(
    figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True
  ):
    style(axes)
    axes.grid(axis="y", visible=False)
    factor = 2 if set_ == "ragged" else 1
    places = np.arange(len(found))[::-1]
    for place, (_, task, ratio, bare) in zip(places, found, strict=True):
      must, aim = TARGETS[task]
      axes.barh(place, ratio, 0.62, color=COLORS[0] if ratio >= 1 else COLORS[1])
      axes.text(0.06 * factor, place, f"{ratio:.2f}", va="center", color="white", fontsize=8)
      if factor == 1:
        axes.plot([must] * 2, [place - 0.38, place + 0.38], color=INK, linewidth=1.4)
      axes.plot(
        [factor * aim] * 2, [place - 0.38, place + 0.38], color=MUTED, linewidth=1.2, linestyle=":"
      )
      if bare is not None:
        axes.plot(bare, place, "|", color=COLORS[1], markersize=12, mew=2)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(places, [label for label, *_ in found])
    axes.set_xlim(0, 1.12 * max(max(r, factor * TARGETS[t][1]) for _, t, r, _ in found))
    heading(axes, f"Times as fast as TRL or Tunix, {set_} lengths")
  looks = [
    Line2D([], [], color=INK, linewidth=1.4, label="must hold"),
    Line2D([], [], color=MUTED, linewidth=1.2, linestyle=":", label="aim"),
    Line2D(
      [], [], color=COLORS[1], marker="|", markersize=10, mew=2, linestyle="", label="bare JAX loop"
    ),
  ]
  figure.legend(handles=looks, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
  return True


def _ratios(timings: Timings, set_: str) -> Iterator[tuple[str, str, float, float | None]]:
  """(label, task, ours over the better peer, the bare loop over it)"""
  for model in timings.models:
    for task in TASKS:
      place = (task, model, set_)
      ratio = timings.ratio(*place)
      if ratio is None:
        continue
      mine, bare = (timings.best((library,), *place) for library in (OURS, BARE))
      yield f"{model} {SHORT[task]}", task, ratio, bare and ratio * bare.rate / mine.rate


def scaling(figure: Figure, timings: Timings, products: list[dict]) -> bool:
  """Seconds over tokens in training, over rows in decoding, and per token over the model's size."""
  scaled = [t for t in timings.all if t.options and t.options[0].startswith("--scale")]
  if not scaled:
    return False
  training, decoding, sizes = figure.subplots(1, 3)
  for axes in (training, decoding, sizes):
    style(axes)
    _logarithmic(axes, base=10 if axes is sizes else 2)
  _training(training, [t for t in scaled if t.task == "sft" and t.model == "S"])
  _decoding(decoding, [t for t in scaled if t.task == "gen"])
  _sizes(sizes, [t for t in scaled if t.task == "sft"])
  return True


def _training(axes: Axes, timings: list[Timing]) -> None:
  """A line through the first point shows what is linear."""
  kinds = {"over rows of 128 tokens": False, "over the length of 8 rows": True}
  for color, (label, longer) in zip(COLORS, kinds.items(), strict=True):
    points = sorted((_tokens(t), t.seconds) for t in timings if ("seq" in t.options[0]) == longer)
    if points:
      axes.plot(*zip(*points, strict=True), "o-", color=color, label=label, markersize=4)
      x = np.asarray([points[0][0], points[-1][0]])
      axes.plot(x, points[0][1] * x / x[0], color=GRID, linewidth=3, zorder=0)
  axes.set_xlabel("tokens a step; grey is linear")
  heading(axes, "S, SFT: seconds a step")
  axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _decoding(axes: Axes, timings: list[Timing]) -> None:
  for color, model in zip(COLORS, ("S", "M"), strict=True):
    points = sorted(
      (t.rows[0]["shape"]["batch"], 1000 * t.seconds / t.rows[0]["shape"]["new"])
      for t in timings
      if t.model == model
    )
    if points:
      axes.plot(*zip(*points, strict=True), "o-", color=color, label=model, markersize=4)
  axes.set_xlabel("rows decoded at once")
  heading(axes, "Decoding: milliseconds a step")
  axes.legend(frameon=False, labelcolor=INK, title="model", title_fontsize=8, fontsize=8)


def _sizes(axes: Axes, timings: list[Timing]) -> None:
  points = []
  for timing in timings:
    shape = timing.rows[0]["shape"]
    if (shape["batch"], shape["seq"]) == (8, 128):
      a = SHAPES["models"][timing.model]
      weights = cost.layer_weights(a) + a["d"] * a["vocab"]
      points.append((weights, 1e6 * timing.seconds / _tokens(timing), timing.model))
  points = sorted(set(points))
  if points:
    axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=COLORS[0], markersize=4)
    for x, y, model in points:
      axes.annotate(model, (x, y), (5, -10), textcoords="offset points", color=MUTED, fontsize=8)
    last = points[-1]
    x = np.asarray([points[0][0], last[0]])
    axes.plot(x, last[1] * x / last[0], color=GRID, linewidth=3, zorder=0)
  axes.set_xlabel("weights; grey is linear")
  heading(axes, "SFT: microseconds a token")


def _logarithmic(axes: Axes, base: int = 10) -> None:
  """Both axes, with plain numbers."""
  axes.set_xscale("log", base=base)
  axes.set_yscale("log")
  axes.xaxis.set_major_formatter(_plain)
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
  axes.yaxis.set_major_formatter(_plain)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_minor_locator(ticker.NullLocator())


@ticker.FuncFormatter
def _plain(value: float, _) -> str:
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
    if value >= size:
      return f"{value / min(size, 1e3 if letter == 'k' else size):g}{letter}"
  return f"{value:g}"


def _tokens(timing: Timing) -> float:
  row = timing.rows[0]
  return row["tokens"] / row["n"]


class Plot(NamedTuple):
  """A function that draws into a figure and says whether there was something to draw, and its size in inches."""

  draw: Callable[[Figure, Timings, list[dict]], bool]
  width: float
  height: float
  shows: str


PLOTS = {
  "roofline": Plot(roofline, 6.4, 4.4, "GFLOP/s of every case under the machine's roofline"),
  "ratios": Plot(ratios, 9.6, 4.4, "Times as fast as the better of TRL and Tunix"),
  "scaling": Plot(scaling, 12.0, 3.8, "Cost over batch, length and model size"),
}
