import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from rlhf_jax.evaluation import agreement


def test_the_best_answer_scores_highest_in_two_rankings_of_four():
  scores = [[3.0, 1.0, 2.0], [0.0, 1.0], [5.0, 5.0], [1.0, 2.0]]
  ranks = [[1, 2, 3], [1, 2], [1, 2], [1, 1]]  # right; wrong; a tie in score, half; both are best
  assert agreement.top_one(scores, ranks).value == 2.5 / 4


def test_kendall_by_hand():
  # (b, a, c) for (a, b, c): one of three pairs is wrong, (2 − 1) / 3; then all right; then nothing is said.
  scores = [np.array([1.0, 2.0, 0.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0])]
  estimate = agreement.kendall(scores, [[1, 2, 3], [1, 2], [1, 1]])
  np.testing.assert_allclose(estimate.value, (1 / 3 + 1) / 2)
  assert estimate.low == pytest.approx(1 / 3) and estimate.high == 1.0
  assert agreement.kendall([np.zeros(3)], [[1, 2, 3]]).value == 0.0
  assert agreement.kendall([np.zeros(2)], [[1, 1]]) is None


def test_kappa_by_hand():
  # Squared errors 0, 1, 1, 4: 6/4; margins (0, 1, 1, 2) and (0, 0, 2, 0) give ½ + ¾ + (1 − ½)² = 1.5.
  assert agreement.quadratic_kappa([0, 1, 1, 2], [0, 0, 2, 0]).value == 0.0
  assert agreement.quadratic_kappa([0, 1, 2], [0, 1, 2]).value == 1.0
  assert agreement.quadratic_kappa([1, 1, 1, 1], [0, 1, 2, 1]).value == 0.0


def test_kappa_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 4, 200)
  predicted = np.clip(classes + rng.integers(-1, 2, 200), 0, 3)
  expected = metrics.cohen_kappa_score(predicted, classes, weights="quadratic")
  got = agreement.quadratic_kappa(predicted, classes)
  np.testing.assert_allclose(got.value, expected, rtol=1e-12)
  assert got.low < expected < got.high


def test_pearson_is_that_of_scipy_with_its_interval():
  rng = np.random.default_rng(1)
  scores = rng.normal(size=50)
  labels = scores + rng.normal(size=50)
  expected = stats.pearsonr(scores, labels)
  interval = expected.confidence_interval(0.95)
  with_gaps = np.append(labels, [np.nan, np.nan])
  got = agreement.pearson(np.append(scores, [9.0, -9.0]), with_gaps)
  np.testing.assert_allclose(got, [expected.statistic, interval.low, interval.high], rtol=1e-9)
  assert agreement.pearson(np.zeros(9), labels[:9]).value == 0.0


def test_tokens_of_all_answers_are_told_apart_together():
  scores = [np.array([2.0, 0.0, 9.0]), np.array([1.0, 3.0]), np.array([5.0])]
  labels = [np.array([1.0, 0.0, np.nan]), np.array([0.25, 0.75]), np.array([np.nan])]
  # Right 2, 3 and wrong 0, 1: always above.
  assert agreement.token_auc(scores, labels).value == 1.0
  assert agreement.token_auc(scores[2:], labels[2:]) is None
  assert agreement.token_auc(scores[:1], labels[:1]) is None


def test_intervals_cover_the_truth_as_often_as_they_say():
  rng = np.random.default_rng(2)
  covered = 0
  for _ in range(200):
    low, high = agreement.fraction(rng.random(40) < 0.9)[1:]
    covered += low <= 0.9 <= high
  assert 0.9 <= covered / 200 <= 0.99
