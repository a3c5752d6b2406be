"""What a run that learns from rollouts must show of itself, read from its metrics.jsonl.

Score minus kl_coef x KL is the reported total in every step, and an adaptive KL coefficient holds the KL at its target
at the end: the mean over the last fifth of the run lies within 10 % of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

ROUNDING = 1e-4  # of float32 sums over a batch, against numbers of the order of 1
CLOSE = 0.1  # to the KL target


class Check(NamedTuple):
  holds: bool
  says: str
  found: dict[str, float]  # for results.json, without the stage's name


def of_stage(workdir: Path, stage: str, config: Any) -> list[Check]:
  """The checks that `stage`, an algorithm with `config`, can be put to; none without its metrics."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  rows = [row for row in rows if row["stage"] == stage]
  found = [total(rows, in_reward=getattr(config, "kl_in", "reward") == "reward")]
  if getattr(config, "kl_target", None) is not None:
    found.append(held(rows, config.kl_target))
  return [check for check in found if check is not None]


def total(rows: list[dict[str, float]], *, in_reward: bool = True) -> Check | None:
  """Whether `rewards/total` is the score less what KL costs, in every step; None where that is not logged."""
  rows = [row for row in rows if "rewards/shaped" in row and "policy/kl_penalty" in row]
  if not rows:
    return None
  costs = lambda row: row["policy/kl_coef"] * row["policy/kl_penalty"] if in_reward else 0.0
  error = max(
    abs(row["rewards/shaped"] - costs(row) - row["rewards/total"])
    / max(1.0, abs(row["rewards/shaped"]), abs(costs(row)))
    for row in rows
  )
  holds = error <= ROUNDING
  whether = "is" if holds else "IS NOT"
  says = f"score - kl_coef x KL {whether} the reported total, to {error:.1e} in {len(rows)} steps"
  return Check(holds, says, {"total_error": error})


def held(rows: list[dict[str, float]], target: float) -> Check | None:
  """Whether the mean KL of a response over the last fifth of the steps lies within 10 % of `target`."""
  last = [row["policy/kl_k1"] for row in rows if "policy/kl_k1" in row]
  last = last[-max(1, len(last) // 5) :]
  if not last:
    return None
  mean = sum(last) / len(last)
  holds = abs(mean / target - 1.0) <= CLOSE
  whether = "within" if holds else "NOT WITHIN"
  says = (
    f"mean KL {mean:.3g} over the last {len(last)} steps, {whether} 10 % of the target {target:g}"
  )
  return Check(holds, says, {"kl_last_fifth": mean, "kl_target": float(target)})
