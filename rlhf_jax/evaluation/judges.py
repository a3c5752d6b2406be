"""Judges of text that share nothing with the reward model, and win rates by their scores.

`TfidfJudge` is bag-of-words logistic regression: fitted on the judge's own labels it is a judge, fitted on the reward
model's reviews it is the reward model's baseline. VADER is a sentiment lexicon and was fitted on none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from rlhf_jax.rewards.judges import vader as vader  # a judge too, of this kind

if TYPE_CHECKING:  # a hundred megabytes, which a run needs at its evaluation alone
  from sklearn import pipeline


class WinRate(NamedTuple):
  """Fraction of prompts won, ties half, with its 95 % interval."""

  rate: float
  low: float
  high: float


class Agreement(NamedTuple):
  """Of two scorers on the same two answers to each prompt."""

  pairs: (
    float  # fraction of prompts whose two answers both order alike; a tie of either counts half
  )
  spearman: float  # rank correlation of the scores of all answers


class TfidfJudge(NamedTuple):
  """TF-IDF of words and word pairs (sublinear term frequency), then logistic regression."""

  model: pipeline.Pipeline

  @classmethod
  def fit(cls, texts: Sequence[str], labels: Sequence[int], *, inverse_l2: float = 3.0):
    """`inverse_l2` is scikit-learn's C; AUC on the food reviews moves by under 0.005 between 1 and 30."""
    if len(texts) != len(labels):
      raise ValueError(f"{len(texts)} texts for {len(labels)} labels; give one label per text.")
    if len(set(labels)) != 2:
      raise ValueError(
        f"A judge needs texts of two labels, not {len(set(labels))}; check the labels."
      )
    from sklearn import linear_model, pipeline
    from sklearn.feature_extraction import text as features

    model = pipeline.make_pipeline(
      features.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
      linear_model.LogisticRegression(C=inverse_l2, max_iter=2000),
    )
    return cls(model.fit(list(texts), list(labels)))

  def score(self, texts: Sequence[str]) -> np.ndarray:
    """Probability of the higher label, float64[N]."""
    return self.model.predict_proba(list(texts))[:, 1]


def win_rate(scores_a, scores_b, seed: int = 0, *, resamples: int = 10_000) -> WinRate:
  """How often a's answer to a prompt scores above b's, ties half, with a percentile bootstrap over prompts.

  A resample of prompts is a multinomial draw of how many wins, ties and losses it holds, so no prompt is touched
  10,000 times.
  """
  margin = _difference(scores_a, scores_b)
  outcomes = np.asarray([np.sum(margin > 0), np.sum(margin == 0), np.sum(margin < 0)])
  draws = np.random.default_rng(seed).multinomial(
    len(margin), outcomes / len(margin), size=resamples
  )
  rates = draws @ np.asarray([1.0, 0.5, 0.0]) / len(margin)
  low, high = np.quantile(rates, [0.025, 0.975])
  return WinRate(
    float(outcomes @ np.asarray([1.0, 0.5, 0.0]) / len(margin)), float(low), float(high)
  )


def agreement(judge_a, judge_b, reward_a, reward_b) -> Agreement:
  """Whether a judge and a reward model prefer the same of two answers a and b to each prompt."""
  judged, rewarded = _difference(judge_a, judge_b), _difference(reward_a, reward_b)
  if judged.shape != rewarded.shape:
    raise ValueError(
      f"{len(judged)} prompts judged, {len(rewarded)} rewarded; score the same answers."
    )
  alike = (np.sign(judged) * np.sign(rewarded) + 1) / 2
  judge, reward = np.concatenate([judge_a, judge_b]), np.concatenate([reward_a, reward_b])
  constant = np.ptp(judge) == 0 or np.ptp(reward) == 0
  spearman = 0.0 if constant else float(scipy.stats.spearmanr(judge, reward).statistic)
  return Agreement(float(alike.mean()), spearman)


def _difference(scores_a, scores_b) -> np.ndarray:
  a, b = np.asarray(scores_a, np.float64), np.asarray(scores_b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not len(a):
    raise ValueError(
      f"Scores of shape {a.shape} and {b.shape}; give one score of each answer per prompt."
    )
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError("Some scores are not finite; look for empty answers.")
  return a - b
