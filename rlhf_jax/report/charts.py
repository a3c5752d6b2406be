"""Curves as geometry for inline SVG, so that the page's own colours and dark mode apply to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib import ticker

from rlhf_jax.report.run import Series
from rlhf_jax.report.words import number, title

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 8, 166  # of the plotting area
SMOOTH_FROM = 40  # points; shorter curves are drawn as they are
MOST_POINTS = 400  # more are averaged in buckets, which the eye cannot tell apart at this size


class Named(NamedTuple):
  """A chart that is always looked for, whatever the stage."""

  title: str
  metrics: tuple[str, ...]
  note: str


NAMED = (
  Named("Score", ("eval/score",), "the task's own check of answers to the held-out prompts, mean"),
  Named("Reward", ("rewards/mean",), "of what was written, mean of a batch"),
  Named(
    "KL from the reference",
    ("policy/kl_k1", "policy/kl_k3", "policy/kl_exact"),
    "nats a response: two estimates from the sampled tokens, and exact over the vocabulary",
  ),
  Named("Value loss", ("value/loss",), "mean over response tokens"),
  Named("Clip fraction", ("policy/clip_fraction",), "tokens whose ratio the clip held back"),
  Named("Entropy", ("policy/entropy",), "nats a token"),
  Named(
    "Sampler against learner",
    ("rollout/mismatch",),
    "mean |difference| of their log-probabilities of the sampled tokens",
  ),
  Named("Loss", ("loss/total",), ""),
  Named("Accuracy", ("rewards/accuracy",), "pairs in which the preferred answer scores higher"),
  Named("Margin", ("rewards/margin",), "score of the preferred answer minus the other's"),
  Named(
    "Implicit rewards", ("rewards/chosen", "rewards/rejected"), "β × log-ratio to the reference"
  ),
  Named("Log-probabilities", ("logps/chosen", "logps/rejected"), "nats a response"),
)


class Tick(NamedTuple):
  at: float  # pixel
  label: str
  zero: bool


class Curve(NamedTuple):
  label: str
  color: int  # 1, 2, 3: a colour of the page
  raw: str  # SVG path of the values; faint where there is a smooth one
  smooth: str  # SVG path of the running mean, "" for short curves
  dots: list[tuple[float, float]]  # values without a neighbour, which a path would not show
  last: str


class Chart(NamedTuple):
  title: str
  note: str
  curves: list[Curve]
  x_ticks: list[Tick]
  y_ticks: list[Tick]
  range: str  # what the values run over where that is more than is drawn, else ""


class Group(NamedTuple):
  """The charts of one stage: named ones, and all its other metrics by prefix."""

  stage: str
  named: list[Chart]
  others: list[Chart]


def stage_charts(metrics: dict[str, Series], stage: str) -> Group:
  """Every metric of the stage is drawn exactly once."""
  named, drawn = [], {"seconds", "eval/updates"}  # the latter is an axis
  for item in NAMED:
    series = {name: metrics[name] for name in item.metrics if name in metrics}
    if series:
      named.append(line_chart(item.title, series, item.note))
      drawn |= series.keys()
  others = [
    line_chart(name, {name: metrics[name]})
    for name in sorted(metrics, key=lambda name: name.split("/"))
    if name not in drawn
  ]
  return Group(
    title(stage), [c for c in named if c is not None], [c for c in others if c is not None]
  )


def line_chart(heading: str, series: dict[str, Series], note: str = "") -> Chart | None:
  """Up to three curves over step; None where no value is finite.

  The y axis follows the bulk of the values: a peak beyond it is cut off, and the full range is said under the chart.
  """
  finite = np.concatenate([s.values[np.isfinite(s.values)] for s in series.values()])
  if not len(finite):
    return None
  low, high = _limits(finite)
  steps = np.concatenate([s.steps for s in series.values()])
  first, last = float(steps.min()), float(steps.max())
  x = lambda v: LEFT + (RIGHT - LEFT) * ((v - first) / (last - first) if last > first else 0.5)
  y = lambda v: BOTTOM - (BOTTOM - TOP) * (v - low) / (high - low)
  curves = [_curve(name, color, s, x, y) for color, (name, s) in enumerate(series.items(), start=1)]
  cut = finite.min() < low or finite.max() > high
  return Chart(
    title=heading,
    note=note,
    curves=curves,
    x_ticks=[Tick(x(v), f"{v:,.0f}", False) for v in _ticks(first, last, integer=True)],
    y_ticks=[Tick(y(v), f"{v:.4g}".replace("-", "−"), v == 0) for v in _ticks(low, high)],
    range=f"{number(finite.min())} to {number(finite.max())}" if cut else "",
  )


def _curve(name: str, color: int, series: Series, x, y) -> Curve:
  steps, values = _thin(series.steps.astype(float), series.values)
  pixels = np.stack([x(steps) * np.ones_like(values), y(values)], axis=1)
  smooth = is_smoothed(values)
  mean = np.stack([pixels[:, 0], y(running_mean(values))], axis=1) if smooth else pixels[:0]
  known = series.values[np.isfinite(series.values)]
  return Curve(
    label=name.split("/")[-1].removeprefix("kl_").replace("_", " "),
    color=color,
    raw=_path(pixels),
    smooth=_path(mean),
    dots=_lonely(pixels),
    last=number(known[-1]) if len(known) else "not finite",
  )


def _limits(values: np.ndarray) -> tuple[float, float]:
  """Of the y axis: all values, unless some lie further out than the whole spread of the middle 96 %."""
  near_low, near_high = np.quantile(values, [0.02, 0.98])
  spread = near_high - near_low
  low = max(values.min(), near_low - spread) if spread else values.min()
  high = min(values.max(), near_high + spread) if spread else values.max()
  if high == low:
    margin = abs(high) * 0.1 or 1.0
    return float(low - margin), float(high + margin)
  margin = 0.06 * (high - low)
  return float(low - margin), float(high + margin)


def _ticks(low: float, high: float, *, integer: bool = False) -> list[float]:
  places = ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=integer)
  found = [float(v) for v in places.tick_values(low, high) if low <= v <= high]
  return [0.0 if abs(v) < 1e-12 * max(abs(low), abs(high)) else v for v in found] or [low]


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  if len(values) <= MOST_POINTS:
    return steps, values
  buckets = np.array_split(np.arange(len(values)), MOST_POINTS)
  return tuple(np.asarray([of[b].mean() for b in buckets]) for of in (steps, values))


def is_smoothed(values: np.ndarray) -> bool:
  """Whether a curve is long and whole enough to draw its running mean."""
  return len(values) >= SMOOTH_FROM and bool(np.isfinite(values).all())


def running_mean(values: np.ndarray) -> np.ndarray:
  """Mean over a window centred on each point and a tenth of the curve wide, narrower at its ends."""
  half = max(len(values) // 20, 2)
  total = np.concatenate([[0.0], np.cumsum(values)])
  start = np.maximum(np.arange(len(values)) - half, 0)
  stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
  return (total[stop] - total[start]) / (stop - start)


def _path(pixels: np.ndarray) -> str:
  """`M x y L x y ...`, lifted off where a value is not finite."""
  parts, pen = [], "M"
  for px, py in pixels:
    if np.isfinite(py):
      parts.append(f"{pen}{px:.1f} {py:.1f}")
      pen = "L"
    else:
      pen = "M"
  return "".join(parts)


def _lonely(pixels: np.ndarray) -> list[tuple[float, float]]:
  finite = np.concatenate([[False], np.isfinite(pixels[:, 1]), [False]])
  alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
  return [(round(float(px), 1), round(float(py), 1)) for px, py in pixels[alone]]
