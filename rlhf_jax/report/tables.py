"""The rows of the page: headline figures, policies, stages and samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.report.run import Run, is_number
from rlhf_jax.report.words import (
  NONE,
  duration,
  memory,
  number,
  percent,
  title,
)

POLICIES = ("sft", "best", "ppo", "dpo")  # by their first word, in this order, then any others
MARKS = ("score", "reward", "kl", "win_rate")  # results that only a policy has
SAMPLES = 24
TRAINING_SAMPLES = 3  # of a stage's first and last logged steps each


class Cell(NamedTuple):
  text: str
  detail: str = ""  # smaller, under or beside it


class Table(NamedTuple):
  headings: list[str]
  rows: list[list[Cell]]


class Answer(NamedTuple):
  policy: str
  text: str
  reward: str
  better: bool  # the highest reward among the answers


class Sample(NamedTuple):
  prompt: str
  answers: list[Answer]


def policies_of(results: dict[str, float]) -> list[str]:
  """Names that results are given for and that are policies, known ones first."""
  found = {name.split("/")[0] for name in results if name.split("/")[-1] in MARKS}
  return sorted(found, key=_rank)


def bounds_of(results: dict[str, float], name: str) -> tuple:
  """(value, low, high), None where not given."""
  return tuple(results.get(name + end) for end in ("", "_low", "_high"))


def policy_table(results: dict[str, float]) -> Table:
  """One row a policy; columns that no policy has are left out."""
  policies = policies_of(results)
  columns = {
    "score": ("Score", _decimals(3)),
    "score_gain": ("Score over SFT", _decimals(3)),
    "reward": ("Reward", _decimals(2)),
    "cost": ("Cost", _decimals(3)),
    "kl": ("KL, nats", _decimals(2)),
    "win_rate": ("Wins, TF-IDF judge", percent),
    "vader_win_rate": ("Wins, VADER", percent),
    "length": ("Length, tokens", _decimals(1)),
    "logp_base": ("Log-prob, base", _decimals(2)),
    "distinct_2": ("Distinct\u20112", _decimals(3)),
    "repeat_4": ("Repeated 4\u2011gram", percent),
    "max_duplicates": ("Most copies", number),
  }
  shown = [name for name in columns if any(f"{p}/{name}" in results for p in policies)]
  rows = []
  for policy in policies:
    cells = [Cell(title(policy))]
    for name in shown:
      value, low, high = bounds_of(results, f"{policy}/{name}")
      ratio = results.get(f"{policy}/{name}_ratio")
      detail = f"× {ratio:.2f}" if ratio is not None else ""
      if low is not None and high is not None:
        write = columns[name][1]
        detail = f"{write(low)} to {write(high)}"
        if write is percent:
          detail = f"{100 * low:.1f}–{100 * high:.1f}"
      cell = Cell(columns[name][1](value), detail)
      bound = results.get(f"{policy}/{name}_bound")
      cells.append(cell if bound is None else Cell(f"≤ {bound:.2f}"))
    rows.append(cells)
  return Table(["Policy", *(columns[name][0] for name in shown)], rows)


def stage_table(run: Run) -> Table:
  """Steps and seconds of each stage, trained or only timed; memory where it was logged."""
  timed = [n.removeprefix("seconds/") for n in run.results if n.startswith("seconds/")]
  trained = [name for stage in run.metrics for name in (stage, f"{stage}_evaluation")]
  order = ["setup", *trained, *timed]
  known = {*run.metrics, *timed} - {"total"}
  stages = [stage for stage in dict.fromkeys(order) if stage in known]
  rows = []
  for stage in stages:
    metrics = run.metrics.get(stage, {})
    peak = metrics.get("memory/peak_mb")
    rows.append(
      [
        title(stage),
        number(max(int(s.steps[-1]) for s in metrics.values())) if metrics else NONE,
        duration(_seconds(run, stage)),
        memory(None if peak is None else float(peak.values.max())),
      ]
    )
  total, peak = run.results.get("seconds/total"), run.results.get("memory/peak_mb")
  if total is not None or peak is not None:
    rows.append(["Whole run", NONE, duration(total), memory(peak)])
  headings = ["Stage", "Steps", "Time", "Peak memory"]
  empty = [i for i in range(len(headings)) if i and all(row[i] == NONE for row in rows)]
  keep = lambda cells: [cell for i, cell in enumerate(cells) if i not in empty]
  return Table(keep(headings), [[Cell(text) for text in keep(row)] for row in rows])


def headlines(run: Run) -> list[tuple[str, str, str]]:
  """(figure, what it is, detail) of the results that come first to mind."""
  r = run.results
  figures = []
  if (value := r.get("reward_model/auc")) is not None:
    base = r.get("baseline/auc")
    detail = "" if base is None else f"{base:.3f} for TF-IDF on the same reviews"
    figures.append((f"{value:.3f}", "reward model AUC", detail))
  for policy in policies_of(r):
    value, low, high = bounds_of(r, f"{policy}/score_gain")
    if value is not None and not policy.startswith("best_of_"):
      score = _decimals(3)
      bounds = "" if low is None else f", 95\u00a0% interval {score(low)} to {score(high)}"
      gain = f"{score(value)} over SFT on the same prompts{bounds}"
      figures.append((score(r.get(f"{policy}/score")), f"{title(policy)} score", gain))
  for policy in ("ppo", "dpo"):
    value, low, high = bounds_of(r, f"{policy}/win_rate")
    if value is not None:
      # Word joiners and hard spaces keep an interval on one line.
      bounds = f"95\u00a0% interval {_whole(low)}\u2060–\u2060{_whole(high)}\u00a0%"
      wins = f"{title(policy)} wins against SFT"
      figures.append((f"{_whole(value)}\u00a0%", wins, "" if low is None else bounds))
    if (kl := r.get(f"{policy}/kl")) is not None:
      figures.append((f"{kl:.1f} nats", f"{title(policy)} KL from SFT", "a response"))
  if (seconds := r.get("seconds/total")) is not None:
    peak = r.get("memory/peak_mb")
    detail = "" if peak is None else f"peak memory {memory(peak)}"
    figures.append((duration(seconds), "whole run", detail))
  return figures


def evaluation_samples(answers: dict[str, list[dict]]) -> list[Sample]:
  """The first held-out prompts in file order, with every policy's first answer to them side by side."""
  joined: dict[str, dict[str, dict]] = {}
  for policy in sorted(answers, key=_rank):
    for row in answers[policy]:
      if isinstance(row.get("prompt"), str):
        joined.setdefault(row["prompt"], {}).setdefault(policy, row)
  return [_sample(prompt, rows) for prompt, rows in list(joined.items())[:SAMPLES]]


def training_samples(samples: list[dict]) -> list[tuple[str, Table]]:
  """Of each stage that logged any, the first rows of its first and of its last logged step."""
  stages: dict[str, list[dict]] = {}
  for row in samples:
    if "response" in row and is_number(row.get("step")):
      stages.setdefault(str(row.get("stage", "train")), []).append(row)
  tables = []
  for stage, rows in stages.items():
    steps = sorted({row["step"] for row in rows})
    shown = []
    for step in dict.fromkeys([steps[0], steps[-1]]):
      shown += [row for row in rows if row["step"] == step][:TRAINING_SAMPLES]
    cells = [
      [
        Cell(number(row["step"])),
        Cell(str(row.get("prompt", ""))),
        Cell(str(row["response"])),
        Cell(_reward(row.get("reward"))),
      ]
      for row in shown
    ]
    tables.append((title(stage), Table(["Step", "Prompt", "Response", "Reward"], cells)))
  return tables


def _sample(prompt: str, rows: dict[str, dict]) -> Sample:
  rewards = [row.get("reward", row.get("score")) for row in rows.values()]
  known = [reward for reward in rewards if is_number(reward)]
  best = max(known) if len(known) > 1 else math.inf
  cells = [
    Answer(title(policy), str(row.get("response", "")), _reward(reward), reward == best)
    for (policy, row), reward in zip(rows.items(), rewards, strict=True)
  ]
  return Sample(prompt, cells)


def _rank(policy: str) -> tuple[int, str]:
  first = policy.split("_")[0]
  return (POLICIES.index(first) if first in POLICIES else len(POLICIES), policy)


def _whole(rate: float | None) -> str:
  return NONE if rate is None else f"{100 * rate:.0f}"


def _decimals(digits: int) -> Callable[[float | None], str]:
  """A column's own format, so that its figures line up."""

  def write(value: float | None) -> str:
    # Adding zero after rounding takes the minus off a zero.
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")

  return write


def _reward(value) -> str:
  return f"{value:+.2f}".replace("-", "−") if is_number(value) else ""


def _seconds(run: Run, stage: str) -> float | None:
  """As the results say, else the time of the steps logged so far."""
  metrics = run.metrics.get(stage, {})
  if (value := run.results.get(f"seconds/{stage}")) is not None:
    return value
  if "time/step" in metrics:
    return float(metrics["time/step"].values.sum())
  return float(metrics["seconds"].values.max()) if "seconds" in metrics else None
