"""DAPO's dynamic sampling (arXiv:2503.14476, section 3.2): a batch of groups whose answers differ in score.

A group whose answers all score the same teaches nothing. It is replaced by a group from a further draw of as many prompts,
until the batch is full or the draws are used up; what could not be replaced stays. Scores are compared as they were given, before an
algorithm clips them or takes lengths into account. The paper draws without end, and its mean is over what it found.

What is learned from is no longer a fair sample of the prompts, and neither is its `rewards/mean`: `rewards/drawn` is the mean of all that
was written. Which prompts a draw has and which numbers it is written with is a function of the run's seed, the step and the draw
alone, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax.sharding import processes
from rlhf_jax.types import Mean, Rollout


def fill(
  draw: Callable[[int], tuple[Rollout, dict]], *, group: int, further: int
) -> tuple[Rollout, dict]:
  """The rollout `draw(0)` with its groups of equal scores replaced from up to `further` draws more, on the host.

  `draw(i) -> (Rollout, metrics)`, of the same number of prompts each time; metrics are of all draws together.
  """
  first, metrics = draw(0)
  parts = [processes.fetch(first)]
  places = np.flatnonzero(~differing(parts[0], group))
  size = len(parts[0].rewards) // group
  found: list[int] = []
  while len(found) < len(places) and len(parts) <= further:
    more, measured = draw(len(parts))
    metrics = jax.tree.map(lambda a, b: a + b, metrics, measured)
    parts.append(processes.fetch(more))
    found += [(len(parts) - 1) * size + i for i in np.flatnonzero(differing(parts[-1], group))]
  count = min(len(found), len(places))
  groups = np.arange(size)
  groups[places[:count]] = found[:count]
  rows = (groups[:, None] * group + np.arange(group)).ravel()
  rollout = jax.tree.map(lambda *each: np.concatenate(each)[rows], *parts)
  scores = np.concatenate([_scores(part) for part in parts])
  number = lambda value, of=1: Mean(np.float32(value), np.float32(of))
  return rollout, {
    **metrics,
    "rollout/draws": number(len(parts)),
    "group/replaced": number(count, size),
    "rewards/drawn": number(scores.sum(), len(scores)),
  }


def differing(rollout: Rollout, group: int) -> np.ndarray:
  """Whether the answers of each group differ in score, bool[N]."""
  scores = _scores(rollout).reshape(-1, group)
  return scores.max(axis=1) > scores.min(axis=1)


def _scores(rollout: Rollout) -> np.ndarray:
  return np.asarray(rollout.rewards).sum(axis=-1)
