import numpy as np
import pytest

from rlhf_jax.evaluation import judges

GOOD = ["good tea", "very good biscuits", "good good sauce", "a good one"]
BAD = ["bad tea", "very bad biscuits", "bad bad sauce", "a bad one"]


def test_a_tfidf_judge_scores_unseen_text_by_the_words_it_learnt():
  judge = judges.TfidfJudge.fit(GOOD + BAD, [1] * 4 + [0] * 4)
  good, bad, unknown = judge.score(["good soup", "bad soup", "zebra"])
  assert 0 < bad < 0.5 < good < 1
  np.testing.assert_allclose(unknown, 0.5, atol=0.05)


def test_a_tfidf_judge_fits_the_same_twice():
  scores = [judges.TfidfJudge.fit(GOOD + BAD, [1] * 4 + [0] * 4).score(BAD) for _ in range(2)]
  np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
  "labels, message", [([1] * 8, "two labels, not 1"), ([1, 0], "8 texts for 2 labels")]
)
def test_a_judge_that_cannot_learn_is_refused(labels, message):
  with pytest.raises(ValueError, match=message):
    judges.TfidfJudge.fit(GOOD + BAD, labels)


def test_vader_knows_praise_from_blame():
  praise, neutral, blame = judges.vader(
    ["I love this wonderful tea!", "the tin", "Awful. I hate it."]
  )
  assert blame < -0.5 < neutral == 0 < 0.5 < praise


def test_win_rate_counts_ties_half():
  assert judges.win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, -1.0]).rate == 2.5 / 4


def test_the_win_rate_against_itself_is_a_half_without_doubt():
  assert judges.win_rate(np.arange(5.0), np.arange(5.0)) == (0.5, 0.5, 0.5)


def test_the_win_rate_interval_is_that_of_a_binomial():
  # 280 wins of 400: 0.7 +- 1.96 * sqrt(0.7 * 0.3 / 400)
  wins = np.where(np.arange(400) < 280, 1.0, -1.0)
  _, low, high = judges.win_rate(wins, np.zeros(400), seed=3)
  half = 1.96 * np.sqrt(0.7 * 0.3 / 400)
  np.testing.assert_allclose([low, high], [0.7 - half, 0.7 + half], atol=0.005)


def test_the_win_rate_interval_is_that_of_resampling_prompts_one_by_one():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 4, (2, 60)).astype(float)
  prompts = rng.integers(0, 60, (20_000, 60))
  rates = ((np.sign(a - b) + 1) / 2)[prompts].mean(axis=1)
  expected = np.quantile(rates, [0.025, 0.975])
  np.testing.assert_allclose(
    judges.win_rate(a, b)[1:], expected, atol=0.012
  )  # half a prompt is 1/120


def test_the_same_seed_gives_the_same_interval():
  a, b = np.random.default_rng(1).normal(size=(2, 997))
  first, again, other = (judges.win_rate(a, b, seed, resamples=50) for seed in (7, 7, 8))
  assert first == again != other


def test_the_interval_covers_the_true_win_rate_about_19_times_in_20():
  rng = np.random.default_rng(2)
  covered = []
  for seed in range(300):
    wins = np.where(rng.random(200) < 0.65, 1.0, 0.0)
    _, low, high = judges.win_rate(wins, np.full(200, 0.5), seed, resamples=1000)
    covered.append(low <= 0.65 <= high)
  assert 0.91 < np.mean(covered) < 0.98


def test_agreement_by_hand():
  # Alike, opposite, and a tie of the judge: 1 + 0 + 1/2 of 3.
  found = judges.agreement([2.0, 2.0, 1.0], [1.0, 1.0, 1.0], [5.0, 0.0, 3.0], [4.0, 1.0, 2.0])
  assert found.pairs == 0.5


def test_agreement_does_not_depend_on_the_scale_of_either_scorer():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 30))
  assert judges.agreement(a, b, np.exp(a), np.exp(b)) == (1.0, 1.0)
  found = judges.agreement(a, b, -a, -b)
  np.testing.assert_allclose(found, (0.0, -1.0))


def test_agreement_with_a_constant_scorer_is_no_correlation_and_half_the_pairs():
  ones = np.ones(4)
  assert judges.agreement(ones, ones, np.arange(4.0), -np.arange(4.0)) == (0.5, 0.0)


@pytest.mark.parametrize(
  "a, b, message",
  [
    ([1.0], [1.0, 2.0], "one score of each answer"),
    ([], [], "one score of each answer"),
    ([np.nan], [1.0], "not finite"),
  ],
)
def test_scores_that_cannot_be_compared_are_refused(a, b, message):
  with pytest.raises(ValueError, match=message):
    judges.win_rate(a, b)
