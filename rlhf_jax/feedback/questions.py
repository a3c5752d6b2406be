"""Which comparisons are most worth asking for: by chance, by disagreement, by expected information, by prompts seen least.

`differences` float[M, N] is r_m(a) − r_m(b) for M reward models and N candidate pairs of answers (a, b).
"""

from __future__ import annotations

import numpy as np


def disagreement(differences: np.ndarray) -> np.ndarray:
  """The standard deviation over reward models of their difference between the two answers, float[N] (arXiv:1706.03741, section 2.2.4)."""
  return differences.std(axis=0)


def information(differences: np.ndarray) -> np.ndarray:
  """What one answer would tell of the reward model, in nats, float[N] (arXiv:1112.5745, eq. 2).

    H(mean_m p_m) − mean_m H(p_m),  p_m = σ(r_m(a) − r_m(b))

  High where each model is sure and they disagree; low where all are unsure, which an answer would not change.
  """
  p = 1 / (1 + np.exp(-np.clip(differences, -500, 500)))
  return _entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0)


def choose(
  strategy: str, count: int, *, differences: np.ndarray | None, seen: np.ndarray, rng
) -> np.ndarray:
  """The places of `count` candidates, int[count], those of equal worth by chance.

  `seen` int[N] is how often each candidate's prompt was asked about. Without `differences`, in a first round, disagreement and
  information are not known and chance decides.
  """
  if strategy == "least_seen":
    worth = -seen.astype(float)
  elif strategy == "random" or differences is None:
    worth = np.zeros(len(seen))
  else:
    worth = {"disagreement": disagreement, "information": information}[strategy](differences)
  shuffled = rng.permutation(len(worth))
  return shuffled[np.argsort(-worth[shuffled], kind="stable")][:count]


def _entropy(p: np.ndarray) -> np.ndarray:
  with np.errstate(divide="ignore", invalid="ignore"):
    h = -p * np.log(p) - (1 - p) * np.log1p(-p)
  return np.nan_to_num(h, nan=0.0)
