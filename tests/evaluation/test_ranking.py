import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from rlhf_jax.evaluation import ranking

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "choix.json").read_text())
CHOIX = [case for case in GOLDEN["cases"] if case["kind"] == "abilities"]
WINS = np.asarray([[0, 5, 2, 7], [3, 0, 4, 6], [4, 1, 0, 5], [1, 2, 3, 0]], float)
TIES = np.asarray([[0, 3, 1, 0], [3, 0, 2, 4], [1, 2, 0, 5], [0, 4, 5, 0]], float)


def simulated(rng, theta, count, nu=0.0):
  """Wins and ties of `count` comparisons of every pair, drawn from Davidson's model."""
  n, p = len(theta), np.exp(theta)
  wins, ties = np.zeros((2, n, n))
  for i, j in itertools.combinations(range(n), 2):
    weights = np.asarray([p[i], p[j], nu * np.sqrt(p[i] * p[j])])
    wins[i, j], wins[j, i], ties[i, j] = rng.multinomial(count, weights / weights.sum())
    ties[j, i] = ties[i, j]
  return wins, ties


def covers(estimates, truth):
  return [e.low <= t <= e.high for e, t in zip(estimates, truth, strict=True)]


def test_three_wins_to_one_are_a_difference_of_log_three():
  found = ranking.bradley_terry([[0, 3], [1, 0]], names=["a", "b"])
  np.testing.assert_allclose(found.abilities, [np.log(3) / 2, -np.log(3) / 2], atol=1e-12)
  assert found.nu == 0.0
  assert ranking.chances(found, "a", "b") == pytest.approx((0.75, 0.0, 0.25))
  assert ranking.chances(found, "b", "a") == pytest.approx((0.25, 0.0, 0.75))
  # The variance of log odds is 1 / 3 + 1 / 1; of an ability, half the difference, a quarter of that.
  difference, of_itself = ranking.differences(found, "b")
  half = 1.959964 * np.sqrt(4 / 3)
  np.testing.assert_allclose(difference, (np.log(3), np.log(3) - half, np.log(3) + half), atol=1e-6)
  assert of_itself == (0.0, 0.0, 0.0)
  ability = ranking.intervals(found)[0]
  np.testing.assert_allclose(ability.high - ability.low, half, atol=1e-6)


def test_two_players_with_ties_by_hand():
  # Three probabilities, three parameters less one: they fit the counts 5, 3, 2 exactly, so ν = 3 / √(5 · 2).
  found = ranking.bradley_terry([[0, 5], [2, 0]], [[0, 3], [3, 0]], names=["a", "b"])
  np.testing.assert_allclose(found.abilities[0] - found.abilities[1], np.log(5 / 2), atol=1e-12)
  np.testing.assert_allclose(found.nu, 3 / np.sqrt(10), atol=1e-12)
  np.testing.assert_allclose(ranking.chances(found, "a", "b"), (0.5, 0.3, 0.2), atol=1e-12)
  # and the variance of log(5 / 2) is that of a ratio of multinomial counts, 1 / 5 + 1 / 2.
  np.testing.assert_allclose(4 * found.covariance[0, 0], 0.7, atol=1e-12)


@pytest.mark.parametrize("case", CHOIX, ids=lambda case: case["name"])
def test_abilities_equal_those_of_choix(case):
  found = ranking.bradley_terry(case["inputs"]["wins"])
  np.testing.assert_allclose(found.abilities, case["outputs"]["abilities"], atol=1e-9)


def test_davidson_abilities_equal_those_of_a_search_of_the_likelihood_as_the_paper_writes_it():
  def loss(parameters):
    p, nu = np.exp(np.append(parameters[:3], -parameters[:3].sum())), np.exp(parameters[3])
    total = 0.0
    for i, j in itertools.permutations(range(4), 2):
      root = nu * np.sqrt(p[i] * p[j])
      total -= WINS[i, j] * np.log(p[i] / (p[i] + p[j] + root))
      total -= TIES[i, j] / 2 * np.log(root / (p[i] + p[j] + root))
    return total

  options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 10_000, "maxfev": 10_000}
  best = optimize.minimize(loss, np.zeros(4), method="Nelder-Mead", options=options)
  found = ranking.bradley_terry(WINS, TIES)
  # The search knows the loss to 1e-14 of 60, and so its place to the root of that.
  np.testing.assert_allclose(found.abilities[:3], best.x[:3], atol=1e-6)
  np.testing.assert_allclose(found.nu, np.exp(best.x[3]), atol=1e-6)


def test_at_the_maximum_expected_wins_and_ties_are_those_counted():
  found = ranking.bradley_terry(WINS, TIES, names="abcd")
  count, expected_ties = WINS + WINS.T + TIES, 0.0
  for i, a in enumerate("abcd"):
    points = 0.0
    for j, b in enumerate("abcd"):
      if a != b:
        win, tie, loss = ranking.chances(found, a, b)
        np.testing.assert_allclose(win + tie + loss, 1.0, atol=1e-15)
        points += count[i, j] * (win + tie / 2)
        expected_ties += count[i, j] * tie
    np.testing.assert_allclose(points, WINS[i].sum() + TIES[i].sum() / 2, atol=1e-12)
  np.testing.assert_allclose(expected_ties, TIES.sum(), atol=1e-12)


def test_the_covariance_is_the_inverse_of_the_curvature_by_finite_differences():
  found = ranking.bradley_terry(WINS, TIES)
  at = np.append(found.abilities, np.log(found.nu))
  shift = 1e-5 * np.eye(5)
  slopes = [
    ranking._gradient(at + s, WINS, TIES) - ranking._gradient(at - s, WINS, TIES) for s in shift
  ]
  information = -np.asarray(slopes) / 2e-5
  # Nothing is known of the mean.
  np.testing.assert_allclose(information[:4].sum(axis=0), 0.0, atol=1e-8)
  inverse = np.linalg.pinv(information, rcond=1e-8)
  np.testing.assert_allclose(found.covariance, inverse[:4, :4], atol=1e-8)


def test_the_order_of_players_only_reorders_the_result():
  order = [2, 0, 3, 1]
  found = ranking.bradley_terry(WINS, TIES)
  other = ranking.bradley_terry(WINS[order][:, order], TIES[order][:, order])
  np.testing.assert_allclose(other.abilities, found.abilities[order], atol=1e-12)
  np.testing.assert_allclose(other.covariance, found.covariance[order][:, order], atol=1e-12)


def test_ten_times_the_comparisons_have_a_tenth_of_the_variance():
  few, many = ranking.bradley_terry(WINS, TIES), ranking.bradley_terry(10 * WINS, 10 * TIES)
  np.testing.assert_allclose(many.abilities, few.abilities, atol=1e-12)
  np.testing.assert_allclose(many.covariance, few.covariance / 10, atol=1e-12)


@pytest.mark.parametrize("odds", [1e3, 1e6, 1e12])
def test_abilities_far_apart_are_found_exactly(odds):
  found = ranking.bradley_terry([[0, odds, 0], [1, 0, odds], [0, 1, 0]])
  np.testing.assert_allclose(found.abilities, [np.log(odds), 0.0, -np.log(odds)], atol=1e-8)


@pytest.mark.parametrize("nu", [0.0, 0.8])
def test_intervals_cover_the_planted_abilities_about_19_times_in_20(nu):
  theta = np.asarray([0.9, 0.2, -0.3, -0.8])
  rng = np.random.default_rng(0)
  alone, against, nus = [], [], []
  for _ in range(500):
    found = ranking.bradley_terry(*simulated(rng, theta, 40, nu), names="abcd")
    alone += covers(ranking.intervals(found), theta)
    against += covers(ranking.differences(found, "a")[1:], theta[1:] - theta[0])
    nus.append(found.nu)
  # 500 tables of 4 and of 3 related intervals: standard error about 0.007.
  assert 0.93 < np.mean(alone) < 0.97
  assert 0.93 < np.mean(against) < 0.97
  np.testing.assert_allclose(np.mean(nus), nu, rtol=0.03)


def test_intervals_agree_with_a_bootstrap_of_comparisons():
  theta, names = np.asarray([0.5, 0.1, -0.6]), "abc"
  wins, ties = simulated(np.random.default_rng(1), theta, 150, 0.6)
  rows = []
  for i, j in itertools.permutations(range(3), 2):
    rows += [(names[i], names[j], 1)] * int(wins[i, j])
    rows += [(names[i], names[j], 0.5)] * int(ties[i, j] if i < j else 0)
  rng, drawn = np.random.default_rng(2), []
  for _ in range(1000):
    table = ranking.tabulate(rows[k] for k in rng.integers(len(rows), size=len(rows)))
    found = ranking.bradley_terry(table.wins, table.ties, names=table.names)
    drawn.append([e.value for e in ranking.differences(found, "c")][table.names.index("a")])
  estimate = ranking.differences(ranking.bradley_terry(wins, ties, names=names), "c")[0]
  # A standard deviation from 1000 draws is known to 2.2 %.
  np.testing.assert_allclose((estimate.high - estimate.low) / 2 / 1.96, np.std(drawn), rtol=0.07)


def test_comparisons_of_one_prompt_are_related_and_its_intervals_allow_for_that():
  # With Gumbel noise on a score, the higher of two is as Bradley and Terry say, and the scores decide all 15 pairs.
  theta = np.asarray([0.6, 0.3, 0.0, -0.1, -0.3, -0.5])
  rng = np.random.default_rng(3)
  clustered, naive = [], []
  for _ in range(300):
    wins, ties = ranking.compare_scores(theta + rng.gumbel(size=(120, 6)))
    assert not ties.any()
    for tables, covered in ((wins, clustered), (wins.sum(axis=0), naive)):
      found = ranking.bradley_terry(tables, names="abcdef")
      covered += covers(ranking.differences(found, "a")[1:], theta[1:] - theta[0])
  assert 0.925 < np.mean(clustered) < 0.97
  assert np.mean(naive) < 0.85


def test_alike_players_have_a_third_of_n_plus_one_times_the_variance_of_unrelated_comparisons():
  wins, _ = ranking.compare_scores(np.random.default_rng(4).normal(size=(4000, 5)))
  clustered, naive = ranking.bradley_terry(wins), ranking.bradley_terry(wins.sum(axis=0))
  np.testing.assert_allclose(clustered.abilities, naive.abilities, atol=1e-12)
  ratio = np.trace(clustered.covariance) / np.trace(naive.covariance)
  np.testing.assert_allclose(ratio, (5 + 1) / 3, rtol=0.03)


def test_a_prompt_with_one_comparison_is_as_good_as_an_unrelated_one():
  wins, ties = ranking.compare_scores([[2, 1]] * 5 + [[1, 2]] * 2 + [[1, 1]] * 3)
  found = ranking.bradley_terry(wins, ties)
  # As in the test by hand, but for G / (G − 1).
  np.testing.assert_allclose(4 * found.covariance[0, 0], 0.7 * 10 / 9, atol=1e-12)


def test_a_prior_adds_nothing_to_how_prompts_differ():
  # 5 wins and 2 losses of a, and 0.5 each: q = 5.5 / 8, information 8 q (1 − q), and 7 outcomes of variance 10 / 49.
  wins, ties = ranking.compare_scores([[2, 1]] * 5 + [[1, 2]] * 2)
  found = ranking.bradley_terry(wins, ties, prior=1.0)
  information = 8 * 5.5 / 8 * 2.5 / 8
  expected = 7 * 10 / 49 * 7 / 6 / information**2
  np.testing.assert_allclose(4 * found.covariance[0, 0], expected, atol=1e-12)


def test_a_prior_is_half_wins_of_every_pair():
  wins = np.asarray([[0, 4, 0], [0, 0, 2], [0, 0, 0]], float)
  found = ranking.bradley_terry(wins, prior=0.5)
  by_hand = ranking.bradley_terry(wins + 0.25 * (1 - np.eye(3)))
  np.testing.assert_array_equal(found.abilities, by_hand.abilities)
  np.testing.assert_array_equal(found.covariance, by_hand.covariance)
  tied = ranking.bradley_terry(np.zeros((2, 2)), [[0, 1], [1, 0]], prior=1.0)
  np.testing.assert_allclose(tied.abilities, 0.0, atol=1e-12)
  np.testing.assert_allclose(
    tied.nu, 2.0, atol=1e-12
  )  # one win, one loss in all and one tie: P(tie) = 1 / 2


def test_tables_list_players_in_order_of_their_first_comparison():
  table = ranking.tabulate([("c", "a", 1), ("a", "b", 0), ("a", "c", 0), ("b", "c", 0.5)])
  assert table.names == ("c", "a", "b")
  np.testing.assert_array_equal(table.wins, [[0, 2, 0], [0, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(table.ties, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])


def test_the_higher_score_wins_a_prompt_and_equal_ones_tie():
  wins, ties = ranking.compare_scores([[3.0, 1.0, 3.0], [0.0, 2.0, 1.0]])
  np.testing.assert_array_equal(wins[0], [[0, 1, 0], [0, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(ties[0], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
  np.testing.assert_array_equal(wins[1], [[0, 0, 0], [1, 0, 1], [1, 0, 0]])
  assert not ties[1].any()


def test_standings_have_the_best_first_and_equal_players_share_a_rank():
  # b beats a and c 10 : 1 each; a and c are as good as one another.
  wins = np.asarray([[0, 1, 2], [10, 0, 10], [2, 1, 0]])
  ties = np.asarray([[0, 0, 3], [0, 0, 0], [3, 0, 0]])
  found = ranking.bradley_terry(wins, names="abc")
  rows = ranking.standings(found, wins, ties, baseline="a")
  assert [(row.rank, row.name) for row in rows] == [(1, "b"), (2, "a"), (2, "c")]
  assert [row[4:7] for row in rows] == [(20, 0, 2), (3, 3, 12), (3, 3, 12)]
  np.testing.assert_allclose(rows[0].elo - rows[1].elo, 400.0, atol=1e-9)  # odds of 10 to 1
  np.testing.assert_allclose(rows[0].difference.value, np.log(10), atol=1e-12)
  assert rows[1].difference == (0.0, 0.0, 0.0)
  assert ranking.standings(found, wins, ties)[0].difference is None


def test_whether_there_is_a_maximum_is_as_a_linear_program_says():
  def has_maximum(wins, ties):
    """Whether no direction of (θ, log ν) but a constant θ makes all that was seen no less likely."""
    rows = []
    for i, j in itertools.permutations(range(len(wins)), 2):
      half, nu = np.zeros((2, len(wins) + 1))
      half[i], half[j], nu[-1] = 0.5, -0.5, 1.0
      rows += [2 * half] * bool(wins[i, j]) + [half - nu] * bool(wins[i, j] and ties.any())
      rows += [nu - half, nu + half] * bool(ties[i, j])
    rows = np.asarray(rows)
    best = optimize.linprog(-rows.sum(axis=0), -rows, np.zeros(len(rows)), bounds=(-1, 1))
    return np.linalg.matrix_rank(rows) >= len(wins) - (not ties.any()) and best.fun > -1e-7

  rng, found = np.random.default_rng(5), {True: 0, False: 0}
  for _ in range(300):
    n = rng.integers(2, 5)
    wins = (rng.random((n, n)) < 0.4) * rng.integers(1, 1000, (n, n)) * (1 - np.eye(n))
    ties = np.triu((rng.random((n, n)) < 0.4) * rng.integers(1, 1000, (n, n)), 1)
    ties = ties + ties.T
    if (wins + wins.T + ties).any(axis=0).all():
      try:
        ranking.bradley_terry(wins, ties)
        exists = True
      except ValueError:
        exists = False
      assert exists == has_maximum(wins, ties), (wins, ties)
      found[exists] += 1
  assert min(found.values()) > 50


CYCLE = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]  # a beat b, b beat c, c beat a
REFUSED = {
  "not a square": dict(wins=np.zeros((2, 3)), says="shape (2, 3)"),
  "one player": dict(wins=[[0]], says="n ≥ 2 players"),
  "a row": dict(wins=[1, 2], says="[n, n], or [G, n, n]"),
  "ties of another shape": dict(wins=CYCLE, ties=np.zeros((2, 2)), says="ties of (2, 2)"),
  "one prompt": dict(wins=[CYCLE], says="at least two"),
  "names": dict(wins=CYCLE, names=["a", "b"], says="2 different names for 3 players"),
  "names twice": dict(wins=CYCLE, names=["a", "b", "a"], says="2 different names for 3 players"),
  "negative": dict(wins=[[0, -1], [1, 0]], says="wins[0, 1] = -1.0; counts are finite"),
  "not finite": dict(wins=[[0, 1], [np.nan, 0]], says="wins[1, 0] = nan"),
  "endless ties": dict(wins=[[0, 1], [1, 0]], ties=[[0, np.inf], [0, 0]], says="ties[0, 1] = inf"),
  "itself": dict(wins=[[0, 1], [1, 2]], says="wins has counts of a player with itself"),
  "ties of one side": dict(wins=CYCLE, ties=np.asarray(CYCLE), says="ties is not symmetric"),
  "prior": dict(wins=CYCLE, prior=-0.5, says="prior=-0.5 should be at least 0"),
  "idle": dict(wins=[[0, 1, 0], [1, 0, 0], [0, 0, 0]], says="Nothing compares c with the others"),
  "idle with prior": dict(wins=[[0, 1, 0], [1, 0, 0], [0, 0, 0]], prior=1, says="compares c with"),
  "apart": dict(wins=np.kron(np.eye(2), [[0, 1], [1, 0]]), says="Nothing compares a, b with c, d."),
  "chain": dict(
    wins=[[0, 1, 1], [0, 0, 1], [0, 0, 0]],
    says="a never lost against the rest, c never won against the rest. Compare more, leave such "
    "players out, or give a prior, such as 0.1.",
  ),
  "two tops": dict(
    wins=[[0, 0, 1], [0, 0, 1], [0, 0, 0]],
    says="a, b never lost against the rest, c never won against",
  ),
  "a top of two": dict(
    wins=[[0, 1, 1], [1, 0, 0], [0, 0, 0]],
    says="a, b never lost against the rest, c never won against",
  ),
  "chain with ties": dict(
    wins=[[0, 1, 1], [1, 0, 1], [0, 0, 0]],
    ties=[[0, 1, 0], [1, 0, 0], [0, 0, 0]],
    says="a, b never lost or tied against the rest, c never won or tied",
  ),
  "only ties": dict(
    wins=np.zeros((2, 2)), ties=[[0, 1], [1, 0]], says="Every comparison is a tie, which ranks no"
  ),
  "no loss": dict(
    wins=[[0, 3], [0, 0]],
    ties=[[0, 1], [1, 0]],
    says="no cycle of comparisons has more wins than ties). Compare more",
  ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tables_without_a_ranking_are_refused(what):
  case = {"names": "abcdefg"[: len(REFUSED[what]["wins"])], **REFUSED[what]}
  case["names"] = None if what in ("not a square", "a row", "one prompt") else case["names"]
  with pytest.raises(ValueError, match=re.escape(case.pop("says"))):
    ranking.bradley_terry(**case)


def test_many_names_are_cut_short():
  wins = np.triu(np.ones((30, 30)), 1)
  wins[:12, :12] = 1 - np.eye(12)
  with pytest.raises(ValueError, match="player 0, .*player 7 and 4 more never lost"):
    ranking.bradley_terry(wins)


@pytest.mark.parametrize(
  "row, says",
  [
    (("a", "a", 1), "2 is of 'a' with itself"),
    (("a", "b", 2), "2 has outcome 2; give 1"),
  ],
)
def test_rows_that_compare_nothing_are_refused_by_number(row, says):
  with pytest.raises(ValueError, match=f"Comparison {says}"):
    ranking.tabulate([("a", "b", 1), row])


@pytest.mark.parametrize("scores", [[1.0, 2.0], [[1.0, np.nan]]])
def test_scores_that_do_not_compare_are_refused(scores):
  with pytest.raises(ValueError, match="give finite ones"):
    ranking.compare_scores(scores)


def test_an_unknown_baseline_is_refused_with_those_there_are():
  found = ranking.bradley_terry([[0, 3], [1, 0]], names=["sft", "ppo"])
  with pytest.raises(ValueError, match="'dpo' is not a player; there are sft, ppo."):
    ranking.differences(found, "dpo")
