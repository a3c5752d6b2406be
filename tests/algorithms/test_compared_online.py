"""Algorithms that compare answers as they are written: by hand, by identity, and exactly on 27 sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_enumeration as enumeration
from scipy import special
from test_enumeration import ANSWERS, BETA, POLICY, SCORES, log_probability, sequences, table

from rlhf_jax import types
from rlhf_jax.algorithms import dpo, nash_md, online_dpo, raft, reinforce, xpo
from rlhf_jax.config import from_dict
from rlhf_jax.ops import groups

MODULES = {m.__name__.split(".")[-1]: m for m in (online_dpo, xpo, nash_md, raft)}
PAIRS = {"online_dpo": online_dpo, "xpo": xpo}
every_algorithm = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def rollout_of(answers, scores, cut=False) -> types.Rollout:
  nothing = jnp.zeros((len(answers), 4))
  return types.Rollout(
    sequences=sequences(answers),
    logps=nothing,
    rewards=nothing.at[:, 3].set(scores),
    truncated=jnp.broadcast_to(jnp.asarray(cut), len(answers)),
  )


def gradients(module, config, rollout, logits, ref_logits=None) -> dict:
  """Of each term of the loss, at the policy that wrote."""
  ref_logits = table(3) if ref_logits is None else ref_logits
  return compiled(module, config, rollout, logits, ref_logits)


def first_gradients(module, config, rollout, logits, ref_logits):
  algorithm, frozen = module.make(POLICY), {"reference": {"logits": ref_logits}}
  params = {"logits": logits}
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, frozen, rollout, config, extra)

  def loss(logits):
    terms, _ = algorithm.loss({"logits": logits}, frozen, batch, config, extra)
    return {name: term.value for name, term in terms.items()}

  return jax.jacrev(loss)(logits)


compiled = jax.jit(first_gradients, static_argnums=0)


def gradient(*args):
  return sum(gradients(*args).values())


def expected(module, config, logits, ref_logits, others, scores=SCORES) -> dict:
  """What is climbed on average: −Σ π(y_1) Π q_i(y_i) ∇ loss, the first row π's and others by the log-probabilities q_i."""
  logps = [log_probability(logits), *others]
  rows = np.array(list(itertools.product(range(27), repeat=len(logps))))  # [27^B, B]
  of = lambda answers, scores: first_gradients(
    module, config, rollout_of(answers, scores), logits, ref_logits
  )
  found = jax.jit(jax.vmap(of))(jnp.asarray(ANSWERS)[rows], jnp.asarray(scores)[rows])
  weights = jnp.exp(sum(logp[rows[:, i]] for i, logp in enumerate(logps)))
  return {name: -jnp.tensordot(weights, each, 1) for name, each in found.items()}


def wins(labels: str):
  """The probability that each answer is said to be better than another, float[27, 27]."""
  difference = SCORES[:, None] - SCORES[None]
  return 0.5 + 0.5 * np.sign(difference) if labels == "hard" else jax.nn.sigmoid(difference)


def win_rate(logits, other_logp, labels="soft"):
  """P(π ≻ μ)."""
  p, q = jnp.exp(log_probability(logits)), jnp.exp(other_logp)
  return p @ wins(labels) @ q


# Groups by hand.


def test_the_best_and_the_extremes_of_groups_by_hand():
  scores = jnp.asarray([1.0, 4, 2, 4, 0, 0, 0, 0, 3, -1, -1, 3])
  np.testing.assert_array_equal(groups.is_among_best(scores, 4, 1), [0, 1, *[0] * 6, 1, 0, 0, 0])
  two = [0, 1, 0, 1, *[0] * 4, 1, 0, 0, 1]
  np.testing.assert_array_equal(groups.is_among_best(scores, 4, 2), two)
  best, worst = groups.extremes(scores, 4)
  np.testing.assert_array_equal(best, [1, 4, 8])
  np.testing.assert_array_equal(worst, [0, 7, 10])  # never the best, even in a group of equals


# Pairs.


def answers_of(scores, cut=False) -> online_dpo.Answers:
  n = len(scores)
  rows = sequences(ANSWERS[:n])
  return online_dpo.Answers(rows, jnp.asarray(scores), jnp.full(n, cut), jnp.zeros((n, 4)))


@pytest.mark.parametrize(
  ("labels", "preference"), [("hard", [1.0, 1.0, 0.5]), ("soft", [0.75, 0.9, 0.5])]
)
def test_scores_become_preferences_by_hand(labels, preference):
  # Differences log 3, −log 9 and none.
  one, other = answers_of([np.log(3.0), 1.0, 2.0]), answers_of([0.0, 1.0 + np.log(9.0), 2.0])
  one = one._replace(ref_logps=one.ref_logps + 1)
  pairs, won = online_dpo.preferences(one, other, labels)
  np.testing.assert_array_equal(won, [True, False, True])
  np.testing.assert_allclose(pairs.preference, preference, rtol=1e-12)
  np.testing.assert_allclose(pairs.margin, [np.log(3), np.log(9), 0], rtol=1e-12)
  np.testing.assert_array_equal(pairs.ref_chosen_logps[:, 0], [1, 0, 1])


def test_online_dpo_on_two_answers_is_dpo_on_that_pair():
  rollout = rollout_of(ANSWERS[[3, 26, 11, 5]], jnp.asarray([0.5, 2.0, 1.0, -1.0]))
  got = gradient(online_dpo, online_dpo.Config(beta=BETA), rollout, table(2))
  pairs = types.PreferenceBatch(
    sequences(ANSWERS[[26, 11]]), sequences(ANSWERS[[3, 5]]), jnp.ones(2), jnp.zeros(2)
  )
  expect = gradient(dpo, dpo.Config(beta=BETA), pairs, table(2))
  np.testing.assert_allclose(got, expect, rtol=1e-12, atol=1e-15)
  assert jnp.max(jnp.abs(got)) > 0.01


def test_of_four_answers_the_best_is_compared_with_the_worst():
  rows, scores = ANSWERS[[3, 26, 11, 5]], jnp.asarray([0.5, 2.0, 1.0, -1.0])
  four = online_dpo.Config(beta=BETA, group=4)
  got = gradient(online_dpo, four, rollout_of(rows, scores), table(2))
  two = rollout_of(rows[[1, 3]], scores[jnp.asarray([1, 3])])
  expect = gradient(online_dpo, online_dpo.Config(beta=BETA), two, table(2))
  np.testing.assert_allclose(got, expect, rtol=1e-12)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("name", PAIRS)
def test_at_the_reference_the_win_rate_against_it_is_climbed(name, labels):
  """−∇ of DPO's loss is β (P − ½) (∇ log π(y) − ∇ log π(y')) there, whatever the optimism."""
  config = PAIRS[name].Config(beta=BETA, labels=labels)
  logp = log_probability(table(3))
  got = expected(PAIRS[name], config, table(3), table(3), [logp])
  exact = 2 * BETA * jax.grad(win_rate)(table(3), logp, labels)
  np.testing.assert_allclose(sum(got.values()), exact, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_online_dpo_with_soft_labels_stands_still_at_the_regularised_optimum(temperature):
  optimum = enumeration.regularised_optimum(table(3), temperature)
  logits = temperature * enumeration.logits_of(optimum)
  config = online_dpo.Config(beta=BETA, labels="soft", temperature=temperature)
  of = lambda rows, scores: first_gradients(
    online_dpo, config, rollout_of(rows, scores), logits, table(3)
  )
  pairs = np.array(list(itertools.combinations(range(27), 2)))
  slopes = jax.jit(jax.vmap(of))(jnp.asarray(ANSWERS)[pairs], jnp.asarray(SCORES)[pairs])
  np.testing.assert_allclose(slopes["dpo"], np.zeros((len(pairs), 13, 3)), atol=1e-12)


def test_xpos_optimism_climbs_the_references_kl_from_the_policy():
  config = xpo.Config(beta=BETA, alpha=0.3)
  ref = log_probability(table(3))
  got = expected(xpo, config, table(2), table(3), [ref])["optimism"]
  kl = lambda logits: jnp.sum(jnp.exp(ref) * (ref - log_probability(logits)))
  np.testing.assert_allclose(got, 0.3 * jax.grad(kl)(table(2)), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("own", "optimism"), [(2.0, -2.5), (0.0, -2.5)])
def test_xpo_by_hand(own, optimism):
  # Whoever wins, α counts the reference's answer, whose log-probability is −5.
  config = xpo.Config(beta=0.1, alpha=0.5)
  won = own > 1.0
  logps, ref = (-3.0, -5.0), (-4.0, -4.5)
  w, l = (0, 1) if won else (1, 0)
  losses, found = xpo.xpo_loss(logps[w], logps[l], ref[w], ref[l], jnp.asarray(won), config)
  np.testing.assert_allclose(losses, np.logaddexp(0, -0.15 if won else 0.15), rtol=1e-6)
  np.testing.assert_allclose(found, optimism, rtol=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_tie_draws_the_two_log_ratios_together(name, loss_type):
  config = PAIRS[name].Config(beta=BETA, loss_type=loss_type)
  rollout = rollout_of(ANSWERS[[3, 11]], jnp.full(2, 0.1))
  u = lambda logits: (log_probability(logits) - log_probability(table(3)))[jnp.asarray([3, 11])]
  apart = lambda logits: jnp.square(u(logits)[0] - u(logits)[1])
  step = -0.01 * gradients(PAIRS[name], config, rollout, table(2))["dpo"]
  assert apart(table(2) + step) < apart(table(2))
  equal = gradients(PAIRS[name], config, rollout, table(3))["dpo"]
  np.testing.assert_allclose(equal, np.zeros((13, 3)), atol=1e-15)  # where they are together


# Nash-MD.


def mixture_logits(logits, ref_logits, coef=0.5):
  log = lambda x: jax.nn.log_softmax(x, axis=-1)
  return (1 - coef) * log(logits) + coef * log(ref_logits)


def penalised_win_rate(logits, other_logp):
  """P(π ≻ μ) − β KL(π ‖ π_ref)."""
  logp = log_probability(logits)
  kl = jnp.sum(jnp.exp(logp) * (logp - log_probability(table(3))))
  return win_rate(logits, other_logp) - BETA * kl


def test_nash_md_climbs_the_exact_gradient_of_the_win_rate_less_kl():
  other = log_probability(mixture_logits(table(2), table(3)))
  config = nash_md.Config(kl_coef=BETA)
  got = expected(nash_md, config, table(2), table(3), [other])
  exact = jax.grad(penalised_win_rate)(table(2), other)
  np.testing.assert_allclose(got["policy"], exact, rtol=1e-9, atol=1e-13)


def test_nash_md_stands_still_at_the_best_reply_to_its_opponent():
  """π_ref exp(P(y ≻ μ) / β) / Z."""
  other = log_probability(table(5))
  beaten = wins("soft") @ jnp.exp(other)
  best = jax.nn.softmax(log_probability(table(3)) + beaten / BETA)
  config = nash_md.Config(kl_coef=BETA)
  logits = enumeration.logits_of(best)
  got = expected(nash_md, config, logits, table(3), [other])
  np.testing.assert_allclose(sum(got.values()), np.zeros((13, 3)), atol=1e-13)


def test_nash_mds_advantages_by_hand():
  # σ(log 3) − ½ = ¼ on the last token, less β = ½ of a KL of 1 a token to come.
  chosen = jnp.asarray([[0.0, 1, 1, 0], [0, 1, 0, 0]])
  rollout = rollout_of(ANSWERS[:2], jnp.zeros(2)).replace(baseline=jnp.asarray([1.0, 2.0]))
  scores = jnp.asarray([1 + np.log(3.0), 2.0])
  seen = reinforce.Seen(scores, 0 * chosen, -chosen, chosen, chosen, rollout)
  of = lambda **o: nash_md.nash_md_advantages(seen, nash_md.Config(kl_coef=0.5, **o), {})
  got, metrics = of()
  np.testing.assert_allclose(got, [[0, -0.75, -0.25, 0], [0, -0.5, 0, 0]], rtol=1e-12)
  np.testing.assert_allclose(metrics["rewards/preference"].value, 0.625, rtol=1e-12)
  got, _ = of(kl_in="loss")
  np.testing.assert_allclose(got, [[0, 0.25, 0.25, 0], [0, 0, 0, 0]], rtol=1e-12)


# The best of n.


def best_of(logp, n: int):
  """The distribution of the best of n answers, by its order statistics: F(y)^n − F(y−)^n."""
  order = np.argsort(SCORES)
  below = jnp.cumsum(jnp.exp(logp[order]))
  upper = below**n - jnp.concatenate([jnp.zeros(1), below[:-1]]) ** n
  return jnp.zeros(27).at[order].set(upper)


@pytest.mark.parametrize("n", [2, 3])
def test_the_best_of_n_is_distributed_as_its_order_statistics_say(n):
  logp = log_probability(table(2))
  rows = np.array(list(itertools.product(range(27), repeat=n)))
  best = rows[np.arange(len(rows)), SCORES[rows].argmax(axis=1)]
  got = np.bincount(best, weights=np.exp(np.asarray(logp)[rows].sum(axis=1)), minlength=27)
  np.testing.assert_allclose(got, best_of(logp, n), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 16, 256])
def test_the_kl_of_the_best_of_n_is_at_most_log_n_less_n_minus_one_over_n(n):
  """arXiv:2401.01879: few answers stay below the bound, and many that are alike improbable meet it."""
  bound = np.log(n) - (n - 1) / n
  logp = log_probability(table(2))
  assert 0 < np.sum(special.rel_entr(best_of(logp, n), np.exp(logp))) < bound
  below = np.linspace(0, 1, 100_001)
  kl = np.sum(special.rel_entr(np.diff(below**n), np.diff(below)))
  np.testing.assert_allclose(kl, bound, rtol=1e-3)
  assert kl < bound


@pytest.mark.parametrize("group", [2, 3])
def test_raft_climbs_the_cross_entropy_to_the_best_of_g(group):
  logits = table(2)
  logp = log_probability(logits)
  config = raft.Config(group=group)
  got = expected(raft, config, logits, table(3), [logp] * (group - 1))["nll"]
  # But for groups of one answer alone, which teach nothing and would in it.
  alone = jnp.exp(group * logp)
  target = best_of(logp, group) - alone
  exact = jax.grad(lambda x: jnp.sum(target * log_probability(x)) / 3)(logits)
  np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-13)


def test_raft_imitates_the_best_by_score_less_kl():
  rows = np.array([3, 26, 11, 5])
  penalty = log_probability(table(2))[rows] - log_probability(table(3))[rows]
  scores = 2.0 * penalty + jnp.asarray([0.5, 0.0, -0.5, -1.0])
  assert jnp.argmax(scores) != 0  # but less 2 KL the first is the best
  config = raft.Config(group=4, kl_coef=2.0)
  got = gradient(raft, config, rollout_of(ANSWERS[rows], scores), table(2))
  expect = jax.grad(lambda x: -log_probability(x)[3] / 3)(table(2))
  np.testing.assert_allclose(got, expect, rtol=1e-12, atol=1e-15)


def test_raft_learns_from_no_more_rows_than_it_imitates():
  config = raft.Config(group=4, keep=3)
  rollout = rollout_of(ANSWERS[:8], jnp.asarray([3.0, 1, 2, 0, 5, 5, 5, 5]))
  params = {"logits": table(2)}
  batch, metrics = raft.make(POLICY).annotate(
    params, {"reference": {"logits": table(3)}}, rollout, config, {}
  )
  tokens = batch.sequences.tokens[:, 1:]
  np.testing.assert_array_equal(tokens[:3], ANSWERS[[0, 1, 2]])
  learned = jnp.sum(batch.sequences.response_mask, axis=1)
  np.testing.assert_array_equal(learned, [3, 3, 3, 0, 0, 0])  # nothing of the group of equals
  np.testing.assert_allclose(metrics["rewards/best"].value, 2.0)


# Input at the edge.


SOME = ANSWERS[[3, 26, 11, 5]]


def config_of(name, **values):
  group = {"group": 2} if getattr(MODULES[name].Config, "group", 1) > 1 else {}
  return MODULES[name].Config(**{**group, **values})


@every_algorithm
@pytest.mark.parametrize("truncation", ["penalty", "mask"])
def test_cut_empty_and_equal_answers_have_a_finite_gradient(name, truncation):
  config = config_of(name, truncation=truncation)
  rollout = rollout_of(SOME, jnp.full(4, 0.1))
  rows = rollout.sequences
  empty = rows.replace(response_mask=rows.response_mask.at[1].set(0.0))
  for odd in (
    rollout,
    rollout.replace(sequences=empty),
    rollout.replace(truncated=jnp.ones(4, bool)),
  ):
    assert np.isfinite(gradient(MODULES[name], config, odd, table(2))).all()


@every_algorithm
def test_a_pair_or_group_of_cut_answers_teaches_nothing_when_masked(name):
  config = config_of(name, truncation="mask")
  got = gradient(MODULES[name], config, rollout_of(SOME, jnp.arange(4.0), True), table(2))
  np.testing.assert_array_equal(got, np.zeros((13, 3)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["online_dpo", "xpo", "nash_md"])
def test_either_cut_answer_silences_its_pair_when_masked(name, which):
  config = config_of(name, truncation="mask")
  cut = jnp.arange(2) == which
  got = gradient(MODULES[name], config, rollout_of(SOME[:2], jnp.arange(2.0), cut), table(2))
  np.testing.assert_array_equal(got, np.zeros((13, 3)))


def test_rafts_group_of_equal_rewards_teaches_nothing():
  got = gradient(raft, raft.Config(group=2), rollout_of(SOME, jnp.full(4, 0.1)), table(2))
  np.testing.assert_array_equal(got, np.zeros((13, 3)))


@pytest.mark.parametrize("name", ["xpo", "nash_md"])
def test_a_cut_answer_of_the_other_is_scored_by_the_rule_too(name):
  plain = rollout_of(SOME[:2], jnp.asarray([1.0, 0.0]))
  penal = plain.replace(truncated=jnp.asarray([False, True]))
  config = config_of(name, truncation="penalty", truncation_penalty=3.0)
  got = gradient(MODULES[name], config, penal, table(2))
  lower = rollout_of(SOME[:2], jnp.asarray([1.0, -3.0]))
  np.testing.assert_allclose(got, gradient(MODULES[name], config, lower, table(2)), rtol=1e-12)


@pytest.mark.parametrize(
  ("name", "values", "message"),
  [
    ("raft", dict(group=4, keep=4), "raft.keep=4 leaves nothing to choose from raft.group=4"),
    ("online_dpo", dict(loss_type="aot", epochs=2), "online_dpo.loss_type='aot' sorts a whole"),
    ("online_dpo", dict(loss_type="exo_pair"), "takes the logarithm of online_dpo.label_smooth"),
    ("nash_md", dict(mixture_coef=1.5), "nash_md.mixture_coef=1.5 should be at most 1"),
    ("xpo", dict(loss_type="hinge"), "xpo.loss_type='hinge' is not one of 'sigmoid', 'ipo'"),
  ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(name, values, message):
  with pytest.raises(ValueError, match=message):
    from_dict(MODULES[name].Config, values, where=name)


def test_log_ratios_are_read_at_the_samplers_temperature():
  rollout = rollout_of(SOME[:2], jnp.asarray([1.0, 0.0]))
  config = online_dpo.Config(beta=BETA, temperature=0.5)
  got = gradient(online_dpo, config, rollout, table(2), table(3))
  plain = online_dpo.Config(beta=BETA)
  of = lambda x: gradient(online_dpo, plain, rollout, x / 0.5, table(3) / 0.5)
  np.testing.assert_allclose(got, of(table(2)) / 0.5, rtol=1e-12)
