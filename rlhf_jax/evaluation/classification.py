"""How well scores tell two classes, or the better of two, apart; with 95 % intervals.

Scores are float[N] on the host, labels are 0 or 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy

Z95 = 1.959963984540054


class Estimate(NamedTuple):
  """A value with its 95 % interval."""

  value: float
  low: float
  high: float


class LengthBin(NamedTuple):
  """AUC among the items whose length is in [shortest, longest]."""

  shortest: int
  longest: int
  count: int
  auc: Estimate


class DifferenceBin(NamedTuple):
  """Accuracy among the pairs whose chosen answer is by [least, most] longer than the rejected one."""

  least: int
  most: int
  count: int
  accuracy: Estimate


class Calibration(NamedTuple):
  """Of pairs in bins of the stated confidence: float[bins] each, and their weighted mean gap."""

  stated: np.ndarray  # mean probability of the answer that is held to be the better
  observed: np.ndarray  # fraction in which the higher score was the preferred one
  low: np.ndarray  # Wilson's interval of it
  high: np.ndarray
  count: np.ndarray  # int[bins]
  error: float  # expected calibration error


def auc(scores, labels) -> Estimate:
  """Probability that a random positive scores above a random negative, ties counting half.

  This is the accuracy over all (positive, negative) pairs. The interval is DeLong's (Biometrics 44, 1988), given the
  two class sizes: var = var(V_1) / n_1 + var(V_0) / n_0, where V of an item is the fraction of the other class that it
  is ordered rightly against. It has no width when the classes are told apart perfectly.
  """
  value, components = _auc_components(scores, labels)
  return _interval(value, sum(v.var(ddof=1) / len(v) for v in components), 0.0, 1.0)


def auc_difference(scores_a, scores_b, labels) -> Estimate:
  """AUC of scorer a minus that of scorer b on the same items, with DeLong's paired interval."""
  value_a, components_a = _auc_components(scores_a, labels)
  value_b, components_b = _auc_components(scores_b, labels)
  differences = (a - b for a, b in zip(components_a, components_b, strict=True))
  return _interval(value_a - value_b, sum(d.var(ddof=1) / len(d) for d in differences), -1.0, 1.0)


def auc_by_length(scores, labels, lengths, bins: int = 4) -> list[LengthBin]:
  """AUC within each of `bins` quantile bins of length, shortest first; pairs across bins are not counted.

  Bins that hold fewer than two items of a class are left out.
  """
  scores, labels, lengths = np.asarray(scores, float), np.asarray(labels), np.asarray(lengths)
  edges = np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1])
  which = np.searchsorted(edges, lengths, side="left")
  rows = []
  for b in range(bins):
    inside = which == b
    if min(np.sum(labels[inside] == 1), np.sum(labels[inside] == 0)) >= 2:
      shortest, longest = int(lengths[inside].min()), int(lengths[inside].max())
      rows.append(
        LengthBin(shortest, longest, int(inside.sum()), auc(scores[inside], labels[inside]))
      )
  return rows


def fraction(outcomes) -> Estimate:
  """The mean of outcomes between 0 and 1, such as right and wrong, with Wilson's score interval (JASA 22, 1927).

  For outcomes that are independent of each other; halves make it a little too wide.
  """
  outcomes = _finite(outcomes)
  low, high = _wilson(outcomes.mean(), len(outcomes))
  return Estimate(float(outcomes.mean()), float(low), float(high))


def rightly_ordered(chosen_scores, rejected_scores) -> np.ndarray:
  """Of each pair, float[N]: 1 where the chosen one scores higher, ½ where they tie, else 0."""
  return (np.sign(_finite(chosen_scores) - _finite(rejected_scores)) + 1) / 2


def pair_accuracy(chosen_scores, rejected_scores) -> Estimate:
  """Fraction of given pairs in which the chosen one scores higher, ties counting half."""
  return fraction(rightly_ordered(chosen_scores, rejected_scores))


def pair_accuracy_by_difference(
  chosen_scores, rejected_scores, differences, bins: int = 4
) -> list[DifferenceBin]:
  """Accuracy within quantile bins of how much longer the chosen answer is, least first; empty bins are left out."""
  right, differences = rightly_ordered(chosen_scores, rejected_scores), np.asarray(differences)
  edges = np.quantile(differences, np.linspace(0, 1, bins + 1)[1:-1])
  which = np.searchsorted(edges, differences, side="left")
  rows = []
  for inside in (which == b for b in range(bins)):
    if inside.any():
      least, most = int(differences[inside].min()), int(differences[inside].max())
      rows.append(DifferenceBin(least, most, int(inside.sum()), fraction(right[inside])))
  return rows


def pair_calibration(chosen_scores, rejected_scores, bins: int = 5) -> Calibration:
  """Whether the Bradley-Terry probability σ(|margin|) of the higher score is the frequency with which it is right.

  Confidence runs from 0.5 to 1 in equal bins; empty bins are left out. An overconfident model observes less than it
  states.
  """
  return calibration(scipy.special.expit(_finite(chosen_scores) - _finite(rejected_scores)), bins)


def calibration(probabilities, bins: int = 5) -> Calibration:
  """`pair_calibration` from the probabilities float[N] that were given to the chosen answers."""
  probabilities = _finite(probabilities)
  confidence = np.maximum(probabilities, 1 - probabilities)
  right = (np.sign(probabilities - 0.5) + 1) / 2
  which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
  count = np.bincount(which, minlength=bins)
  full = count > 0
  stated = np.bincount(which, confidence, bins)[full] / count[full]
  observed = np.bincount(which, right, bins)[full] / count[full]
  error = float(np.average(np.abs(stated - observed), weights=count[full]))
  return Calibration(stated, observed, *_wilson(observed, count[full]), count[full], error)


def _auc_components(scores, labels) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
  """The AUC, and of each positive and each negative the fraction of the other class that it is ordered rightly against.

  From mid-ranks, in N log N (Sun and Xu, IEEE Signal Processing Letters 21, 2014).
  """
  scores, labels = _finite(scores), np.asarray(labels)
  if scores.shape != labels.shape:
    raise ValueError(f"{len(scores)} scores for {len(labels)} labels; give one of each per item.")
  positive, negative = scores[labels == 1], scores[labels == 0]
  m, n = len(positive), len(negative)
  if min(m, n) < 2 or m + n != len(labels):
    raise ValueError(
      f"AUC needs labels 0 and 1, at least two of each; there are {n} of 0, {m} of 1, {len(labels) - m - n} of others."
    )
  ranks = scipy.stats.rankdata(np.concatenate([positive, negative]))
  of_positive = (ranks[:m] - scipy.stats.rankdata(positive)) / n
  of_negative = 1 - (ranks[m:] - scipy.stats.rankdata(negative)) / m
  return float(of_positive.mean()), (of_positive, of_negative)


def _wilson(p, n) -> tuple[np.ndarray, np.ndarray]:
  """The score interval of n outcomes with mean p."""
  center = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
  half = Z95 * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
  # At 0 and at 1 one of the ends is p itself, which rounding misses.
  return np.clip(center - half, 0.0, p), np.clip(center + half, p, 1.0)


def _interval(value: float, variance: float, lowest: float, highest: float) -> Estimate:
  half = Z95 * float(np.sqrt(variance))
  return Estimate(value, max(value - half, lowest), min(value + half, highest))


def _finite(scores) -> np.ndarray:
  scores = np.asarray(scores, np.float64)
  if not np.isfinite(scores).all():
    bad = np.flatnonzero(~np.isfinite(scores))
    raise ValueError(f"{len(bad)} scores are not finite, the first is item {bad[0]}.")
  return scores
