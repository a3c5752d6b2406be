"""Values with their 95 % intervals, placed on a common track: win rates, and the accuracy of every scorer."""

from __future__ import annotations

import re
from typing import NamedTuple

from rlhf_jax.report.tables import bounds_of, policies_of
from rlhf_jax.report.words import interval, percent, percent_interval, title

JUDGES = (("win_rate", "TF-IDF judge"), ("vader_win_rate", "VADER"))


class Whisker(NamedTuple):
  """A value with its interval on a track; places are percent of the track's width."""

  label: str
  text: str
  at: float
  low: float
  high: float
  color: int


class Whiskers(NamedTuple):
  title: str
  note: str
  rows: list[Whisker]
  reference: float | None  # percent
  low_label: str
  high_label: str
  remark: str  # a sentence under the chart, or ""


def win_rates(results: dict[str, float]) -> Whiskers | None:
  """Win rates against SFT by every judge, about the line of no difference."""
  rows = [
    (f"{title(policy)}, {judge}", *bounds, percent_interval(*bounds), color)
    for policy in policies_of(results)
    for color, (name, judge) in enumerate(JUDGES, start=1)
    if (bounds := bounds_of(results, f"{policy}/{name}"))[0] is not None
  ]
  return _whiskers("Win rate against SFT", "same prompts, ties half, 95 % intervals", rows, 0.5)


def scorers(results: dict[str, float]) -> Whiskers | None:
  """Every `<scorer>/auc` and `<scorer>/auc_<where>`, the reward model first."""
  names = [name for name in results if re.fullmatch(r"[^/]+/auc(_.+)?", name)]
  names = [name for name in names if not name.endswith(("_low", "_high"))]
  order = {"reward_model": 0, "baseline": 1, "judge": 2}
  names.sort(key=lambda name: order.get(name.split("/")[0], 3))  # stable: file order within one
  rows = []
  seen = None
  for name in names:
    scorer, where = name.split("/auc")
    bounds = bounds_of(results, name)
    parts = ([] if scorer == seen else [title(scorer)]) + ([_where(where)] if where else [])
    label = ("· " if scorer == seen else "") + ", ".join(parts)
    rows.append((label, *bounds, interval(*bounds), 1 if scorer == "reward_model" else 2))
    seen = scorer
  note = "how often a great review scores above another one; held-out reviews, 95 % intervals"
  agree, spearman = results.get("judge/agreement"), results.get("judge/spearman")
  remark = ""
  if agree is not None:
    remark = f"Judge and reward model prefer the same answer to {percent(agree)} of the prompts"
    remark += "." if spearman is None else f" (rank correlation {spearman:.2f})."
  return _whiskers("Accuracy on human labels (AUC)", note, rows, None, remark)


def _where(suffix: str) -> str:
  """`_length_13_31` as 13–31 words, `_response` as response."""
  length = re.fullmatch(r"_length_(\d+)_(\d+)", suffix)
  return f"{length[1]}–{length[2]} words" if length else suffix.replace("_", " ").strip()


def _whiskers(
  heading: str, note: str, rows: list[tuple], reference: float | None, remark: str = ""
) -> Whiskers | None:
  """Places (label, value, low, high, text, color) on a track of round ends; None without rows."""
  if not rows:
    return None
  bounds = [b for row in rows for b in row[1:4] if b is not None]
  bounds += [] if reference is None else [reference - 0.1, reference]  # off the edge
  low = max(_floor_to_tenth(min(bounds)), 0.0)
  high = min(-_floor_to_tenth(-max(bounds)), 1.0)
  high = high if high > low else low + 0.1
  place = lambda v: 100 * (v - low) / (high - low)
  return Whiskers(
    heading,
    note,
    [
      Whisker(
        label,
        text,
        place(value),
        place(value if lower is None else lower),
        place(value if upper is None else upper),
        color,
      )
      for label, value, lower, upper, text, color in rows
    ],
    None if reference is None else place(reference),
    f"{low:.1f}",
    f"{high:.1f}",
    remark,
  )


def _floor_to_tenth(value: float) -> float:
  return int(10 * value // 1) / 10
