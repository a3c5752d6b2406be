"""Whether the reward model knows how often it is right: a reliability diagram as geometry for inline SVG."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.report.charts import BOTTOM, LEFT, RIGHT, TOP, Tick
from rlhf_jax.report.run import is_number
from rlhf_jax.report.words import number

STATED = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LARGEST, SMALLEST = 6.0, 3.0  # radii; areas go with the number of pairs


class Point(NamedTuple):
  x: float  # pixels
  y: float
  low: float
  high: float
  radius: float
  words: str


class Reliability(NamedTuple):
  title: str
  note: str
  points: list[Point]
  diagonal: tuple[float, float, float, float]  # x1, y1, x2, y2
  x_ticks: list[Tick]
  y_ticks: list[Tick]
  remark: str


def reliability(curve: dict) -> Reliability | None:
  """Of `calibration.json`; None where it holds no curve."""
  columns = [curve.get(name) for name in ("stated", "observed", "low", "high", "count")]
  if not all(isinstance(c, list) and c and all(map(is_number, c)) for c in columns):
    return None
  if len({len(c) for c in columns}) > 1:
    return None
  bins = list(zip(*columns, strict=True))
  bottom = min(0.5, int(10 * min(low for *_, low, _, _ in bins)) / 10)
  x = lambda v: LEFT + (RIGHT - LEFT) * (v - 0.5) / 0.5
  y = lambda v: BOTTOM - (BOTTOM - TOP) * (v - bottom) / (1.0 - bottom)
  most = max(count for *_, count in bins)
  tenths = [t / 10 for t in range(round(10 * bottom), 11)]
  shown = tenths if len(tenths) <= 7 else tenths[::2]
  error = curve.get("error")
  return Reliability(
    title="Calibration",
    note="held-out pairs: how often the higher score was preferred, by how sure the reward model was; 95 % intervals",
    points=[
      Point(
        x(stated),
        y(observed),
        y(low),
        y(high),
        max(LARGEST * (count / most) ** 0.5, SMALLEST),
        f"{count:,.0f} pairs: stated {stated:.2f}, observed {observed:.2f}",
      )
      for stated, observed, low, high, count in bins
    ],
    diagonal=(x(0.5), y(0.5), x(1.0), y(1.0)),
    x_ticks=[Tick(x(v), f"{v:.1f}", False) for v in STATED],
    y_ticks=[Tick(y(v), f"{v:.1f}", False) for v in shown],
    remark=f"Expected calibration error {number(error)}." if is_number(error) else "",
  )
