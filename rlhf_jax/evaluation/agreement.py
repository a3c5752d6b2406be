"""How well scores agree with rankings, ordered classes, ratings and labels of tokens; with 95 % intervals.

Everything is on the host. Where items are drawn in groups, rankings or answers, the interval is a percentile
bootstrap over groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from rlhf_jax.evaluation.classification import Z95, Estimate, auc, fraction

RESAMPLES = 1000


def top_one(scores: Sequence[np.ndarray], ranks: Sequence[np.ndarray]) -> Estimate:
  """In what fraction of rankings the best answer scores highest; of several that tie in score, the share that is best."""
  best = lambda s, r: np.mean(np.asarray(r)[s == np.max(s)] == np.min(r))
  return fraction([best(np.asarray(s), r) for s, r in zip(scores, ranks, strict=True)])


def kendall(
  scores: Sequence[np.ndarray], ranks: Sequence[np.ndarray], seed: int = 0
) -> Estimate | None:
  """Kendall's τ_b between scores and places, the mean over rankings; 0 for scores that are all equal.

  Rankings with a single place say nothing and are left out; None where that leaves none.
  """
  taus = []
  for s, r in zip(scores, ranks, strict=True):
    if len(np.unique(r)) > 1:
      tau = scipy.stats.kendalltau(s, -np.asarray(r)).statistic
      taus.append(0.0 if np.isnan(tau) else float(tau))
  if not taus:
    return None
  return _bootstrap(lambda rows: np.mean(np.asarray(taus)[rows]), len(taus), seed)


def quadratic_kappa(predicted, classes, seed: int = 0) -> Estimate:
  """Cohen's κ with quadratic weights (Psychological Bulletin 70, 1968), 1 − Σ w O / Σ w E with w = (i − j)².

  O counts predictions against classes, and E is what their margins would give if they were independent. It is 0 for a
  constant prediction, and where neither varies 1 if they agree.
  """
  predicted, classes = np.asarray(predicted, float), np.asarray(classes, float)

  def kappa(rows):
    p, c = predicted[rows], classes[rows]
    observed = np.mean(np.square(p - c))
    # E over independent draws of (p − c)² = var p + var c + (mean p − mean c)²
    expected = p.var() + c.var() + (p.mean() - c.mean()) ** 2
    return 1.0 - observed / expected if expected > 0 else 1.0

  return _bootstrap(kappa, len(classes), seed)


def pearson(scores, labels) -> Estimate:
  """Correlation of the items that have a label (not NaN), with Fisher's interval, 1 / √(N − 3) on artanh r."""
  scores, labels = np.asarray(scores, float), np.asarray(labels, float)
  given = ~np.isnan(labels)
  x, y = scores[given] - scores[given].mean(), labels[given] - labels[given].mean()
  scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
  value = float(np.sum(x * y) / scale) if scale > 0 else 0.0
  if len(x) < 4 or abs(value) > 1 - 1e-12:
    return Estimate(value, -1.0 if len(x) < 4 else value, 1.0 if len(x) < 4 else value)
  z, half = np.arctanh(value), Z95 / np.sqrt(len(x) - 3)
  return Estimate(value, float(np.tanh(z - half)), float(np.tanh(z + half)))


def token_auc(
  scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], seed: int = 0
) -> Estimate | None:
  """AUC of telling labelled tokens that are right (label above ½) from others; NaN labels count nowhere.

  Answers are resampled, for tokens of one answer are alike. None where there are fewer than two of either.
  """
  kept = [(s[~np.isnan(l)], l[~np.isnan(l)] > 0.5) for s, l in zip(scores, labels, strict=True)]
  kept = [(s, l) for s, l in kept if len(s)]

  def of(rows):
    chosen = [kept[i] for i in rows]
    right = np.concatenate([l for _, l in chosen]).astype(int)
    if min(right.sum(), len(right) - right.sum()) < 2:
      return np.nan
    return auc(np.concatenate([s for s, _ in chosen]), right).value

  if not kept or np.isnan(of(np.arange(len(kept)))):
    return None
  return _bootstrap(of, len(kept), seed)


def _bootstrap(statistic, count: int, seed: int) -> Estimate:
  """The statistic of rows 0 … count − 1, and the middle 95 % of it over resampled rows; NaN resamples are left out."""
  draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
  low, high = np.nanquantile([statistic(rows) for rows in draws], [0.025, 0.975])
  return Estimate(float(statistic(np.arange(count))), float(low), float(high))
