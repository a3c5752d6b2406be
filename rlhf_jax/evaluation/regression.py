"""How well scores order ratings: rank correlations with 95 % intervals, and what words and length alone achieve.

Scores and labels are float[N] on the host, those of several scales float[N, A]. A NaN label was not given, and its
item counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from rlhf_jax.evaluation.classification import Z95, Estimate

if TYPE_CHECKING:  # a hundred megabytes, which a run needs at its evaluation alone
  from sklearn import linear_model
  from sklearn.feature_extraction import text as features

PENALTIES = tuple(np.logspace(-2, 3, 11))  # of the ridge, chosen from by leave-one-out
FEWEST = 4  # items that a rank correlation is computed of


class Texts(NamedTuple):
  """Rated texts."""

  whole: Sequence[str]  # what was rated
  read: Sequence[str]  # as much of it as the reward model reads
  labels: np.ndarray  # float[N, A]

  @property
  def lengths(self) -> np.ndarray:
    """Words of the whole, int[N]."""
    return np.asarray([len(text.split()) for text in self.whole])


class TfidfRidge(NamedTuple):
  """TF-IDF of words and word pairs (sublinear term frequency), then ridge regression on each scale.

  The penalty is each scale's best by leave-one-out (generalized cross-validation). With lengths,
  log length is one more feature, in standard deviations.
  """

  vectorizer: features.TfidfVectorizer
  models: tuple[linear_model.RidgeCV, ...]
  length_scale: tuple[float, float] | None  # mean and deviation of log length

  @classmethod
  def fit(cls, texts: Sequence[str], labels, lengths=None) -> TfidfRidge:
    labels = np.asarray(labels, np.float64)
    if labels.ndim != 2 or len(texts) != len(labels):
      raise ValueError(
        f"{len(texts)} texts for labels of shape {labels.shape}; give a row of labels per text."
      )
    from sklearn import linear_model
    from sklearn.feature_extraction import text as features

    given = ~np.isnan(labels)
    if given.sum(axis=0).min() < 2:
      raise ValueError("a scale has fewer than two ratings to learn from; take it out of the data.")
    vectorizer = features.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    vectorizer.fit(texts)
    logs = None if lengths is None else _log(lengths)
    scale = None if logs is None else (float(logs.mean()), max(float(logs.std()), 1e-6))
    unfitted = cls(vectorizer, (), scale)
    inputs = unfitted._inputs(texts, lengths)
    fit = lambda a: linear_model.RidgeCV(PENALTIES).fit(inputs[given[:, a]], labels[given[:, a], a])
    return unfitted._replace(models=tuple(fit(a) for a in range(labels.shape[1])))

  def score(self, texts: Sequence[str], lengths=None) -> np.ndarray:
    """Predicted ratings, float64[N, A]."""
    inputs = self._inputs(texts, lengths)
    return np.stack([model.predict(inputs) for model in self.models], axis=1)

  def _inputs(self, texts, lengths):
    words = self.vectorizer.transform(texts)
    if self.length_scale is None:
      return words
    mean, std = self.length_scale
    column = (_log(lengths) - mean) / std
    return scipy.sparse.hstack([words, column[:, None]]).tocsr()


def spearman(scores, labels) -> Estimate:
  """Rank correlation, ties sharing their mean rank; 0 where either is constant, for that orders nothing.

  The interval is Fisher's on z = artanh ρ with the variance of Bonett and Wright (Psychometrika 65,
  2000), (1 + ρ² / 2) / (N − 3), for items that are independent of each other.
  """
  scores, labels = _given(scores, labels)
  return _fisher(
    _correlation(scipy.stats.rankdata(scores), scipy.stats.rankdata(labels)), len(scores), 0
  )


def partial_spearman(scores, labels, lengths) -> Estimate:
  """Rank correlation of scores and labels among items of one length: what is left of it beyond length.

      (ρ_sy − ρ_sl ρ_yl) / √((1 − ρ_sl²) (1 − ρ_yl²))

  0 where the scores are the lengths themselves.
  """
  given = ~np.isnan(np.asarray(labels, np.float64))
  lengths = scipy.stats.rankdata(np.asarray(lengths, np.float64)[given])
  scores, labels = _given(scores, labels)
  s, y = scipy.stats.rankdata(scores), scipy.stats.rankdata(labels)
  s_l, y_l = _correlation(s, lengths), _correlation(y, lengths)
  left = (1 - s_l**2) * (1 - y_l**2)
  value = (_correlation(s, y) - s_l * y_l) / np.sqrt(left) if left > 1e-9 else 0.0
  return _fisher(float(value), len(scores), 1)


def spearman_difference(
  scores_a, scores_b, labels, seed: int = 0, *, resamples: int = 2000
) -> Estimate:
  """Rank correlation of scorer a minus that of scorer b on the same items: percentile bootstrap over items."""
  a, y = _given(scores_a, labels)
  b, _ = _given(scores_b, labels)
  difference = lambda a, b, y: _correlation(a, y) - _correlation(b, y)
  rows = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
  ranks = (scipy.stats.rankdata(x[rows], axis=1) for x in (a, b, y))
  low, high = np.quantile(difference(*ranks), [0.025, 0.975])
  value = difference(*(scipy.stats.rankdata(x) for x in (a, b, y)))
  return Estimate(float(value), float(low), float(high))


def baselines(train: Texts, test: Texts) -> dict[str, np.ndarray]:
  """Scores float64[N, A] of the test's texts by what needs no language model.

  length        the number of words
  tfidf         TF-IDF and ridge on the whole texts
  tfidf_length  the same with log length
  tfidf_read    TF-IDF and ridge on what the reward model reads
  """
  A = np.shape(test.labels)[1]
  words = TfidfRidge.fit(train.whole, train.labels)
  both = TfidfRidge.fit(train.whole, train.labels, train.lengths)
  read = TfidfRidge.fit(train.read, train.labels)
  return {
    "length": np.repeat(test.lengths[:, None].astype(np.float64), A, axis=1),
    "tfidf": words.score(test.whole),
    "tfidf_length": both.score(test.whole, test.lengths),
    "tfidf_read": read.score(test.read),
  }


def compare(
  scores, others: Mapping[str, np.ndarray], test: Texts, attributes: Sequence[str]
) -> dict[str, float]:
  """results.json's rows of a reward model's outputs float[N, A] on `test`, and of the `others`, scale by scale.

  Rank correlation of each, the reward model's beyond length, and by how much it exceeds each other.
  """
  results: dict[str, float] = {}
  lengths = test.lengths
  for a, attribute in enumerate(attributes):
    labels, mine = test.labels[:, a], scores[:, a]
    rows = {
      f"reward_model/{attribute}_spearman": spearman(mine, labels),
      f"reward_model/{attribute}_spearman_beyond_length": partial_spearman(mine, labels, lengths),
    }
    for name, other in others.items():
      rows[f"{name}/{attribute}_spearman"] = spearman(other[:, a], labels)
      gain = spearman_difference(mine, other[:, a], labels)
      rows[f"reward_model/{attribute}_spearman_gain_over_{name}"] = gain
    for name, estimate in rows.items():
      results |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
  return results


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Pearson's, over the last axis; 0 where one is constant."""
  x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
  scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
  return np.where(scale > 0, (x * y).sum(axis=-1) / np.where(scale > 0, scale, 1), 0.0)


def _fisher(value: float, count: int, controlled: int) -> Estimate:
  """The interval of a rank correlation with `controlled` other variables held constant."""
  value = float(np.clip(value, -1, 1))
  if abs(value) > 1 - 1e-12:
    return Estimate(value, value, value)
  half = Z95 * np.sqrt((1 + value**2 / 2) / (count - 3 - controlled))
  z = np.arctanh(value)
  return Estimate(value, float(np.tanh(z - half)), float(np.tanh(z + half)))


def _given(scores, labels) -> tuple[np.ndarray, np.ndarray]:
  """Scores and labels of the items that have a label."""
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
  if scores.shape != labels.shape or scores.ndim != 1:
    raise ValueError(
      f"scores of shape {scores.shape} for labels of shape {labels.shape}; give one of each per item."
    )
  given = ~np.isnan(labels)
  scores, labels = scores[given], labels[given]
  if len(labels) <= FEWEST:
    raise ValueError(
      f"a rank correlation needs more than {FEWEST} ratings, and there are {len(labels)}."
    )
  bad = np.flatnonzero(~np.isfinite(scores))
  if len(bad):
    raise ValueError(f"{len(bad)} scores are not finite, the first is item {bad[0]}.")
  return scores, labels


def _log(lengths) -> np.ndarray:
  return np.log(np.maximum(np.asarray(lengths, np.float64), 1.0))
