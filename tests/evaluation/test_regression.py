import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation import regression

NAN = float("nan")


def test_the_rank_correlation_and_its_interval_by_hand():
  """ρ = 1 − 6 · 2 / (5 · 24) = 0.9; z = artanh 0.9 = 1.4722 ± 1.96 √((1 + 0.405) / 2) = 1.6428."""
  estimate = regression.spearman([1, 20, 300, 4000, 50000], [1, 2, 3, 5, 4])
  assert estimate == pytest.approx(
    (0.9, np.tanh(1.4722 - 1.6428), np.tanh(1.4722 + 1.6428)), abs=1e-4
  )


def test_ties_share_their_rank_as_in_scipy():
  rng = np.random.default_rng(0)
  x, y = rng.integers(5, size=40), rng.integers(10, size=40)
  assert regression.spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


def test_items_without_a_label_count_nowhere():
  scores, labels = [3.0, NAN, 1.0, 2.0, 7.0, 5.0], [3.0, NAN, 1.0, 2.0, 6.0, 9.0]
  assert regression.spearman(scores, labels) == regression.spearman(
    [3, 1, 2, 7, 5], [3, 1, 2, 6, 9]
  )


def test_constant_scores_order_nothing():
  estimate = regression.spearman(np.ones(30), np.arange(30))
  assert estimate.value == 0 and estimate.low < 0 < estimate.high


def test_a_perfect_order_has_no_width():
  assert regression.spearman(np.arange(9), np.arange(9)) == (1, 1, 1)


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Normal pairs of correlation r have rank correlation (6 / π) arcsin(r / 2)."""
  rng, r, N, runs = np.random.default_rng(1), 0.6, 50, 600
  truth = 6 / np.pi * np.arcsin(r / 2)
  held = 0
  for _ in range(runs):
    x, noise = rng.normal(size=(2, N))
    estimate = regression.spearman(x, r * x + np.sqrt(1 - r**2) * noise)
    held += estimate.low < truth < estimate.high
  assert held / runs == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / runs))


def test_beyond_length_is_the_correlation_of_what_length_does_not_explain():
  rng = np.random.default_rng(2)
  lengths, scores, labels = rng.permutation(60), rng.permutation(60), rng.permutation(60)
  left = lambda v: v - np.polyval(np.polyfit(lengths, v, 1), lengths)  # permutations are ranks
  value = regression.partial_spearman(scores, labels, lengths).value
  assert value == pytest.approx(np.corrcoef(left(scores), left(labels))[0, 1])


def test_length_itself_says_nothing_beyond_length():
  rng = np.random.default_rng(3)
  lengths = rng.permutation(50)
  estimate = regression.partial_spearman(
    np.log(lengths + 1), lengths + 30 * rng.normal(size=50), lengths
  )
  assert estimate.value == 0 and estimate.low < 0 < estimate.high


def test_a_scorer_exceeds_itself_by_nothing_and_a_better_one_by_more():
  rng = np.random.default_rng(4)
  labels = rng.normal(size=200)
  good, bad = labels + 0.5 * rng.normal(size=200), labels + 3 * rng.normal(size=200)
  assert regression.spearman_difference(good, good, labels) == (0, 0, 0)
  ahead, behind = (regression.spearman_difference(*p, labels) for p in ((good, bad), (bad, good)))
  assert ahead.low > 0 > behind.high
  assert ahead.value == pytest.approx(-behind.value)
  each = [regression.spearman(s, labels).value for s in (good, bad)]
  assert ahead.value == pytest.approx(each[0] - each[1])


@pytest.mark.parametrize(
  ("scores", "labels", "message"),
  [
    ([1, 2, 3], [1, 2, 3], "more than 4 ratings, and there are 3"),
    ([1, 2, 3, 4, 5], [1, 2, 3, NAN, 5], "there are 4"),
    ([1, 2, NAN, 4, 5], [1, 2, 3, 4, 5], "1 scores are not finite, the first is item 2"),
    ([1, 2, 3, 4, 5], [1, 2, 3], "give one of each per item"),
  ],
)
def test_what_cannot_be_correlated_is_refused(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    regression.spearman(scores, np.asarray(labels, float))


def words(rng, N):
  """Texts whose last word says the first label and whose length says the second; five words are read."""
  lengths = rng.integers(5, 100, size=N)
  good = rng.integers(2, size=N)
  whole = [["so"] * (n - 1) + ["good" if g else "bad"] for n, g in zip(lengths, good, strict=True)]
  labels = np.stack([good.astype(float), np.log(lengths)], axis=1)
  join = lambda texts: [" ".join(text) for text in texts]
  return regression.Texts(join(whole), join(text[-5:] for text in whole), labels)


def test_ridge_learns_a_scale_from_words_and_with_lengths_another_from_those():
  rng = np.random.default_rng(5)
  train, test = words(rng, 120), words(rng, 40)
  scores = regression.baselines(train, test)
  rho = {
    name: [regression.spearman(s[:, a], test.labels[:, a]).value for a in range(2)]
    for name, s in scores.items()
  }
  assert all(rho[name][0] > 0.8 for name in ("tfidf", "tfidf_length", "tfidf_read"))
  assert rho["tfidf_length"][1] > 0.95 and rho["length"][1] == pytest.approx(1)
  assert abs(rho["tfidf_read"][1]) < 0.5 and abs(rho["length"][0]) < 0.5


def test_ridge_learns_each_scale_from_the_rows_that_have_it():
  rng = np.random.default_rng(6)
  train, test = words(rng, 80), words(rng, 30)
  without = train.labels.copy()
  without[:40, 0] = NAN
  half = regression.TfidfRidge.fit(train.whole, without)
  whole = regression.TfidfRidge.fit(train.whole, train.labels)
  same, other = (half.score(test.whole)[:, a] - whole.score(test.whole)[:, a] for a in (1, 0))
  assert np.abs(same).max() == 0 < np.abs(other).max()


def test_a_scale_that_nobody_rated_is_refused():
  with pytest.raises(ValueError, match="fewer than two ratings"):
    regression.TfidfRidge.fit(["a b", "a c", "b c"], [[1, NAN], [2, NAN], [3, 1]])


def test_labels_of_one_column_need_it():
  with pytest.raises(ValueError, match="give a row of labels per text"):
    regression.TfidfRidge.fit(["a", "b"], [1.0, 2.0])


def test_a_comparison_names_every_scale_and_baseline_with_intervals():
  rng = np.random.default_rng(7)
  test = words(rng, 30)
  scores = test.labels + rng.normal(size=(30, 2))
  results = regression.compare(
    scores, {"length": np.stack([test.lengths] * 2, axis=1)}, test, ("witty", "dry")
  )
  mine, length = (results[f"{who}/dry_spearman"] for who in ("reward_model", "length"))
  assert mine == regression.spearman(scores[:, 1], test.labels[:, 1]).value
  assert length == pytest.approx(1)
  assert results["reward_model/dry_spearman_gain_over_length"] == pytest.approx(mine - length)
  kinds = ("spearman", "spearman_beyond_length", "spearman_gain_over_length")
  mine = [f"reward_model/{scale}_{kind}" for scale in ("witty", "dry") for kind in kinds]
  names = [*mine, "length/witty_spearman", "length/dry_spearman"]
  assert set(results) == {name + end for name in names for end in ("", "_low", "_high")}
