"""Which questions are chosen, by numbers that can be checked on paper."""

import numpy as np
import pytest

from rlhf_jax.feedback import questions

RNG = lambda seed=0: np.random.default_rng(seed)


def test_disagreement_is_the_spread_of_the_models_differences():
  differences = np.asarray([[1.0, 2.0, -3.0], [1.0, -2.0, 3.0]])  # [M, N]
  np.testing.assert_allclose(questions.disagreement(differences), [0.0, 2.0, 3.0])


def test_information_is_nothing_where_all_models_say_the_same():
  same = np.asarray([[0.0, 1.3, 50.0]] * 4)
  np.testing.assert_allclose(questions.information(same), 0.0, atol=1e-12)


def test_information_is_log_two_where_sure_models_are_evenly_split():
  split = np.asarray([[1000.0], [-1000.0]])
  np.testing.assert_allclose(questions.information(split), np.log(2))


def test_information_by_hand():
  """p = 3/4 and 1/4: H(1/2) − H(1/4)."""
  differences = np.log(3) * np.asarray([[1.0], [-1.0]])
  entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  np.testing.assert_allclose(questions.information(differences), np.log(2) - entropy)


def test_information_and_disagreement_differ_on_differences_that_all_are_sure_of():
  """Where all models are sure of the same, an answer tells nothing, however much their margins differ."""
  differences = np.asarray([[10.0, 1.0], [30.0, -1.0]])
  assert np.argmax(questions.disagreement(differences)) == 0
  assert np.argmax(questions.information(differences)) == 1


@pytest.mark.parametrize("strategy", ["disagreement", "information"])
def test_the_most_worthwhile_are_chosen(strategy):
  differences = np.asarray([[0.0, 3.0, 1.0, 2.0], [0.0, -3.0, -1.0, -2.0]])
  chosen = questions.choose(strategy, 2, differences=differences, seen=np.zeros(4), rng=RNG())
  assert chosen.tolist() == [1, 3]


def test_prompts_seen_least_come_first():
  seen = np.asarray([2, 0, 1, 0, 3])
  chosen = questions.choose("least_seen", 3, differences=None, seen=seen, rng=RNG())
  assert set(chosen[:2].tolist()) == {1, 3} and chosen[2] == 2


@pytest.mark.parametrize("strategy", ["random", "disagreement", "information"])
def test_chance_decides_in_a_first_round(strategy):
  """Every candidate is chosen about equally often, none of them twice."""
  counts = np.zeros(5, int)
  for seed in range(400):
    chosen = questions.choose(strategy, 2, differences=None, seen=np.zeros(5), rng=RNG(seed))
    assert len(set(chosen.tolist())) == 2
    counts[chosen] += 1
  assert np.all(np.abs(counts - 160) < 4 * np.sqrt(400 * 0.4 * 0.6))


def test_candidates_of_equal_worth_are_chosen_by_chance():
  differences = np.zeros((2, 6))
  firsts = {
    int(
      questions.choose("disagreement", 1, differences=differences, seen=np.zeros(6), rng=RNG(s))[0]
    )
    for s in range(60)
  }
  assert firsts == set(range(6))


def test_chance_ignores_what_the_models_say():
  differences = np.asarray([[9.0, 0.0, 0.0], [-9.0, 0.0, 0.0]])
  with_models = questions.choose("random", 3, differences=differences, seen=np.zeros(3), rng=RNG(7))
  without = questions.choose("random", 3, differences=None, seen=np.zeros(3), rng=RNG(7))
  assert with_models.tolist() == without.tolist()
