"""Scores that a rule gave to answers, one a prompt: their mean and how far one policy is ahead of another."""

from __future__ import annotations

import numpy as np

from rlhf_jax.evaluation.classification import Estimate, fraction

RESAMPLES = 2000


def mean(scores, seed: int = 0) -> Estimate:
  """The mean score: Wilson's interval where all lie between 0 and 1, as right and wrong do, else bootstrap over prompts."""
  scores = _finite(scores)
  if scores.min() >= 0 and scores.max() <= 1:
    return fraction(scores)
  return _bootstrap(scores, seed)


def gain(scores, others, seed: int = 0) -> Estimate:
  """By how much `scores` exceed `others`, answers to the same prompts in the same order: paired bootstrap over prompts."""
  scores, others = _finite(scores), _finite(others)
  if len(scores) != len(others):
    raise ValueError(f"{len(scores)} and {len(others)} scores; give one of each per prompt.")
  return _bootstrap(scores - others, seed)


def _bootstrap(values: np.ndarray, seed: int) -> Estimate:
  """The mean, and the middle 95 % of it over resampled prompts."""
  rng = np.random.default_rng(seed)
  means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
  low, high = np.quantile(means, [0.025, 0.975])
  return Estimate(float(values.mean()), float(low), float(high))


def _finite(scores) -> np.ndarray:
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1 or not len(scores):
    raise ValueError(f"scores of shape {scores.shape}; give one per prompt.")
  bad = np.flatnonzero(~np.isfinite(scores))
  if len(bad):
    raise ValueError(f"{len(bad)} scores are not finite, the first is of prompt {bad[0]}.")
  return scores
