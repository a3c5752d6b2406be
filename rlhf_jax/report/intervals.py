"""Values with their 95 % intervals, placed on a common track: win rates, and the accuracy of every scorer."""

from __future__ import annotations

import re
from typing import NamedTuple

from rlhf_jax.report.tables import bounds_of, policies_of
from rlhf_jax.report.words import interval, number, percent, percent_interval, title

SCORERS = ("reward_model", "baseline", "judge")  # in this order, then any others
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


def scores(results: dict[str, float]) -> Whiskers | None:
  """What the task's own check gave every policy, about SFT's."""
  rows = [
    (title(policy), *bounds, interval(*bounds), 1)
    for policy in policies_of(results)
    if (bounds := bounds_of(results, f"{policy}/score"))[0] is not None
  ]
  note = "what the task's own check gives answers to held-out prompts, 95 % intervals"
  return _whiskers("Score", note, rows, results.get("sft/score"))


def scorers(results: dict[str, float]) -> Whiskers | None:
  """Every `<scorer>/auc`, and `<scorer>/auc_<m>_to_<n>_tokens` below it; the reward model first."""
  found = []
  for name in results:
    if match := re.fullmatch(r"([^/]+)/auc(?:_(\d+)_to_(\d+)_tokens)?", name):
      scorer, shortest, longest = match.groups()
      rank = SCORERS.index(scorer) if scorer in SCORERS else len(SCORERS)
      label = f"· {shortest}–{longest} tokens" if shortest else title(scorer)
      found.append((rank, scorer, int(shortest or 0), name, label))
  rows = []
  for rank, _, _, name, label in sorted(found):
    bounds = bounds_of(results, name)
    rows.append((label, *bounds, interval(*bounds), 1 if rank == 0 else 2))
  note = "how often a great review scores above another one; held-out reviews, 95 % intervals"
  return _whiskers("Accuracy on human labels (AUC)", note, rows, None, _remark(results))


FIGURES = (scores, win_rates, scorers)


def _remark(results: dict[str, float]) -> str:
  sentences = []
  gain = bounds_of(results, "reward_model/auc_gain")
  if gain[0] is not None:
    sentences.append(f"Reward model less baseline, paired: {interval(*gain)}.")
  if "judge/auc" in results:
    sentences.append("The judge is tested on text cut to the length of a response.")
  for policy in policies_of(results):
    if (agree := results.get(f"{policy}/judge_agreement")) is not None:
      both = f"Judge and reward model prefer the same of {title(policy)}'s and SFT's answers"
      spearman = number(results.get(f"{policy}/judge_spearman"))
      sentences.append(f"{both} to {percent(agree)} of prompts (rank correlation {spearman}).")
  return " ".join(sentences)


def _whiskers(
  heading: str, note: str, rows: list[tuple], reference: float | None, remark: str = ""
) -> Whiskers | None:
  """Places (label, value, low, high, text, color) on a track of round ends; None without rows."""
  if not rows:
    return None
  bounds = [b for row in rows for b in row[1:4] if b is not None]
  bounds += [] if reference is None else [reference - 0.1, reference]  # off the edge
  low, high = _floor_to_tenth(min(bounds)), -_floor_to_tenth(-max(bounds))
  if all(0 <= row[1] <= 1 for row in rows):
    low, high = max(low, 0.0), min(high, 1.0)
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
