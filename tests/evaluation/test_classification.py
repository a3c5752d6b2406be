import numpy as np
import pytest
from sklearn import metrics

from rlhf_jax.evaluation import classification


def noisy(seed, positives=60, negatives=35, gap=1.0):
  rng = np.random.default_rng(seed)
  labels = np.repeat([1, 0], [positives, negatives])
  return rng.normal(gap * labels), labels


def test_auc_by_hand_counts_ties_half():
  # Positives 3, 1 and negatives 1, 0: three of four pairs are right and one is a tie.
  assert classification.auc([3.0, 1.0, 1.0, 0.0], [1, 1, 0, 0]).value == 3.5 / 4


def test_a_perfect_scorer_has_auc_one():
  assert classification.auc([5.0, 4.0, 1.0, 2.0, 0.0], [1, 1, 0, 0, 0]) == (1.0, 1.0, 1.0)


def test_a_constant_scorer_has_auc_a_half():
  assert classification.auc(np.zeros(7), [1, 1, 0, 0, 0, 1, 1]).value == 0.5


def test_auc_equals_that_of_scikit_learn_with_ties():
  scores, labels = noisy(0)
  scores = np.round(scores, 1)
  expected = metrics.roc_auc_score(labels, scores)
  np.testing.assert_allclose(classification.auc(scores, labels).value, expected, atol=1e-12)


def test_delong_interval_by_hand():
  # Positives 4, 2, 1 and negatives 3, 0: V_1 = (1, 1/2, 1/2), V_0 = (1/3, 1), AUC = 2/3.
  # variance = (1/12) / 3 + (2/9) / 2 = 5/36, so half the width is 1.96 * sqrt(5/36).
  estimate = classification.auc([4.0, 2.0, 1.0, 3.0, 0.0], [1, 1, 1, 0, 0])
  half = 1.959964 * np.sqrt(5 / 36)
  np.testing.assert_allclose(estimate.value, 2 / 3)
  np.testing.assert_allclose(estimate.low, max(2 / 3 - half, 0), atol=1e-6)
  assert estimate.high == 1.0  # clipped


def test_the_interval_covers_the_true_auc_about_19_times_in_20():
  truth = 0.7602499389  # normal distribution function at 1 / sqrt(2)
  estimates = [classification.auc(*noisy(seed)) for seed in range(1000)]
  covered = np.mean([e.low <= truth <= e.high for e in estimates])
  assert 0.92 < covered < 0.97  # standard error 0.007


def test_the_interval_narrows_with_the_root_of_the_number_of_items():
  small, large = noisy(0, 100, 70), noisy(0, 10_000, 7_000)
  widths = [e.high - e.low for e in (classification.auc(*small), classification.auc(*large))]
  np.testing.assert_allclose(widths[0] / widths[1], 10, rtol=0.15)


def test_the_paired_difference_of_a_scorer_with_itself_is_exactly_zero():
  scores, labels = noisy(3)
  assert classification.auc_difference(scores, scores, labels) == (0.0, 0.0, 0.0)


def test_the_paired_interval_of_like_scorers_is_narrower_than_of_unlike_ones():
  scores, labels = noisy(4, 300, 200)
  rng = np.random.default_rng(5)
  like, unlike = scores + 0.2 * rng.normal(size=500), noisy(6, 300, 200)[0]
  narrow = classification.auc_difference(scores, like, labels)
  wide = classification.auc_difference(scores, unlike, labels)
  assert (narrow.high - narrow.low) * 3 < wide.high - wide.low


def test_the_paired_interval_covers_the_true_difference():
  truth = 0.0
  covered = []
  for seed in range(500):
    scores, labels = noisy(seed)
    shared = 0.5 * np.random.default_rng(seed + 10_000).normal(size=(2, 95))
    e = classification.auc_difference(scores + shared[0], scores + shared[1], labels)
    covered.append(e.low <= truth <= e.high)
  assert 0.92 < np.mean(covered) < 0.98


def test_auc_by_length_puts_every_item_in_one_bin_and_names_its_range():
  scores = [2.0, 1.0, 3.0, 0.0, 1.0, 2.0, 0.0, 3.0]
  labels = [1, 0, 1, 0, 1, 0, 1, 0]
  lengths = [1, 2, 3, 4, 10, 20, 30, 40]
  rows = classification.auc_by_length(scores, labels, lengths, bins=2)
  assert [row[:3] for row in rows] == [(1, 4, 4), (10, 40, 4)]
  assert [row.auc.value for row in rows] == [1.0, 0.0]


def test_items_of_one_length_share_the_shorter_bin():
  rows = classification.auc_by_length(np.arange(10.0), [1, 0] * 5, [1] + [5] * 5 + [8] * 4, bins=2)
  assert [row[:3] for row in rows] == [(1, 5, 6), (8, 8, 4)]


def test_bins_without_two_of_each_class_are_left_out():
  rows = classification.auc_by_length(
    np.arange(6.0), [1, 1, 1, 0, 1, 0], [1, 1, 1, 9, 9, 9], bins=2
  )
  assert rows == []


def test_pair_accuracy_counts_ties_half():
  accuracy = classification.pair_accuracy([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, -1.0])
  assert accuracy.value == 2.5 / 4


def test_wilsons_interval_by_hand():
  # 8 of 10 with z = 1.96: (0.8 + 0.19207) / 1.38415 = 0.71674, ± 0.22667 (Wilson 1927).
  estimate = classification.fraction([1.0] * 8 + [0.0] * 2)
  np.testing.assert_allclose(estimate, [0.8, 0.49016, 0.94332], atol=1e-5)
  assert classification.fraction(np.ones(5)).low < 1.0 == classification.fraction(np.ones(5)).high


def test_pairs_are_binned_by_how_much_longer_the_chosen_answer_is():
  chosen, rejected = [1.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 2.0]
  rows = classification.pair_accuracy_by_difference(chosen, rejected, [-5, -2, 3, 9], bins=2)
  assert [row[:3] for row in rows] == [(-5, -2, 2), (3, 9, 2)]
  assert [row.accuracy.value for row in rows] == [0.5, 0.75]
  alike = classification.pair_accuracy_by_difference(chosen, rejected, [0, 0, 0, 0])
  assert [row[:3] for row in alike] == [(0, 0, 4)]


def test_calibration_by_hand():
  # Margin ln 3 states 0.75 and is right 3 times of 4; margin ln 19 states 0.95 and is right once of 2.
  margins = np.log([3, 3, 3, 1 / 3, 19, 1 / 19])
  c = classification.pair_calibration(margins, np.zeros(6), bins=4)
  np.testing.assert_allclose(c.stated, [0.75, 0.95])
  np.testing.assert_allclose(c.observed, [0.75, 0.5])
  assert list(c.count) == [4, 2]
  assert (c.low < c.observed).all() and (c.observed < c.high).all()
  np.testing.assert_allclose([c.low[0], c.high[0]], classification.fraction([1, 1, 1, 0])[1:])
  np.testing.assert_allclose(c.error, (4 * 0 + 2 * 0.45) / 6)


@pytest.mark.parametrize(
  "scores, labels, message",
  [
    ([1.0, 2.0], [1, 1], "at least two of each"),
    ([1.0, 2.0, 3.0, 4.0, 5.0], [1, 1, 0, 0, 2], "1 of others"),
    ([1.0, 2.0], [1, 0, 0], "2 scores for 3 labels"),
    ([1.0, np.nan, 0.0, 2.0], [1, 1, 0, 0], "the first is item 1"),
  ],
)
def test_scores_that_cannot_be_ranked_are_refused(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    classification.auc(scores, labels)
