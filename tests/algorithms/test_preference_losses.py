"""Preference losses by hand, against float64 oracles written from their equations, and at their identities.

The reference libraries' own numbers are in test_parity.py; here is what no library has, and what a reader can check
on paper.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import types
from rlhf_jax.algorithms import alphapo, bco, cpo, dpo, kto, orpo, pl_dpo, simpo
from rlhf_jax.config import from_dict
from rlhf_jax.ops import batchwise, preference
from rlhf_jax.training import step
from rlhf_jax.types import Mean

SMOOTHED = {"exo_pair": 0.1}  # which takes the logarithm of its label smoothing
RNG = np.random.default_rng(0)
PAIRS = [jnp.asarray(RNG.normal(-20, 6, 5), jnp.float32) for _ in range(4)]
TURNED = [PAIRS[1], PAIRS[0], PAIRS[3], PAIRS[2]]


def config_of(loss_type, **options):
  return dpo.Config(loss_type=loss_type, label_smoothing=SMOOTHED.get(loss_type, 0.0), **options)


def sequences(mask) -> types.Sequences:
  ones = jnp.ones(mask.shape, jnp.int32)
  return types.Sequences(ones, jnp.cumsum(ones, axis=1) - 1, ones, mask)


# A policy whose parameters are a number a row, given to each of its tokens.
def evaluate(params, frozen, batch, temperature):
  logps = params["logps"][:, None] * jnp.ones(batch.tokens.shape)
  return types.TokenStats(logps, jnp.zeros_like(logps), None, jnp.zeros_like(logps))


ROW_POLICY = types.Policy(evaluate, None)


# One pair: u_w = log π/π_ref = 1 for the chosen and -0.5 for the rejected, so h = 1.5; β = 0.5.
BY_HAND = {
  "sigmoid": math.log(1 + math.exp(-0.75)),
  "robust": math.log(1 + math.exp(-0.75)),
  "hinge": 0.25,
  "ipo": (1.5 - 1) ** 2,
  "nca_pair": math.log(1 + math.exp(-0.5))
  + 0.5 * math.log(1 + math.exp(0.5))
  + 0.5 * math.log(1 + math.exp(-0.25)),
  "bco_pair": math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-0.25)),
  "sppo_hard": 0.0 + 0.25,
  "aot": math.log(1 + math.exp(-0.75)),
  "aot_unpaired": math.log(1 + math.exp(-0.75)),
  "apo_zero": 1 / (1 + math.exp(0.5)) + 1 / (1 + math.exp(0.25)),
  "apo_down": 1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(0.75)),
}


@pytest.mark.parametrize("loss_type", BY_HAND)
def test_one_pair_by_hand(loss_type):
  pair = [jnp.asarray([x]) for x in (-1.0, -3.0, -2.0, -2.5)]
  got = dpo.dpo_loss(*pair, dpo.Config(beta=0.5, loss_type=loss_type))
  np.testing.assert_allclose(got, [BY_HAND[loss_type]], rtol=1e-6)


def test_exo_is_the_kl_from_the_policys_choice_to_the_smoothed_label():
  pair = [jnp.asarray([x]) for x in (-1.0, -3.0, -2.0, -2.5)]
  p = 1 / (1 + math.exp(-0.75))  # the policy's own softmax over the two answers
  expected = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
  got = dpo.dpo_loss(*pair, dpo.Config(beta=0.5, loss_type="exo_pair", label_smoothing=0.1))
  np.testing.assert_allclose(got, [expected], rtol=1e-5)


def test_discopop_mixes_logistic_and_exponential_loss():
  pair = [jnp.asarray([x]) for x in (-1.0, -3.0, -2.0, -2.5)]
  mix = 1 / (1 + math.exp(-0.75 / 0.3))
  expected = (1 - mix) * math.log(1 + math.exp(-0.75)) + mix * math.exp(-0.75)
  got = dpo.dpo_loss(*pair, dpo.Config(beta=0.5, loss_type="discopop", discopop_tau=0.3))
  np.testing.assert_allclose(got, [expected], rtol=1e-6)


# u = log 2 for the chosen and -log 2 for the rejected answer: twice and half as likely as under the reference.
DIVERGED = {
  "reverse_kl": 2 * math.log(2),
  "forward_kl": -1 / 2 + 2,
  "jensen_shannon": math.log(4 / 3) - math.log(2 / 3),
  "alpha": (1 - 2**-0.5) / 0.5 - (1 - 0.5**-0.5) / 0.5,
}


@pytest.mark.parametrize("divergence", DIVERGED)
def test_a_divergence_is_its_derivative_at_the_ratio(divergence):
  config = dpo.Config(beta=1.0, divergence=divergence, divergence_alpha=0.5)
  pair = [jnp.asarray([x]) for x in (-1 + math.log(2), -1 - math.log(2), -1.0, -1.0)]
  expected = math.log(1 + math.exp(-DIVERGED[divergence]))
  np.testing.assert_allclose(dpo.dpo_loss(*pair, config), [expected], rtol=1e-6)


@pytest.mark.parametrize("loss_type", [name for name in dpo.LOSSES if name not in dpo.SORTED])
def test_a_tie_cannot_tell_the_answers_apart(loss_type):
  config = config_of(loss_type)
  one, other = (dpo.dpo_loss(*p, config, preference=0.5) for p in (PAIRS, TURNED))
  np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("loss_type", [name for name in dpo.LOSSES if name not in dpo.SORTED])
def test_a_preference_of_zero_is_the_pair_turned_round(loss_type):
  config = config_of(loss_type)
  np.testing.assert_allclose(
    dpo.dpo_loss(*PAIRS, config, preference=0.0), dpo.dpo_loss(*TURNED, config), rtol=1e-6
  )


def test_robust_dpo_undoes_flipped_labels_on_average():
  eps = 0.2
  robust = dpo.Config(loss_type="robust", label_smoothing=eps)
  clean = dpo.dpo_loss(*PAIRS, dpo.Config())
  noisy = (1 - eps) * dpo.dpo_loss(*PAIRS, robust) + eps * dpo.dpo_loss(*TURNED, robust)
  np.testing.assert_allclose(noisy, clean, rtol=1e-5)


def test_a_margin_is_subtracted_from_the_difference_of_rewards():
  margin = jnp.linspace(-1.0, 2.0, 5)
  u_w, u_l = PAIRS[0] - PAIRS[2], PAIRS[1] - PAIRS[3]
  expected = np.logaddexp(0.0, -(0.1 * np.asarray(u_w - u_l, np.float64) - np.asarray(margin)))
  got = dpo.dpo_loss(*PAIRS, dpo.Config(margin=True), margin=margin)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_aot_pairs_ranks_and_not_rows():
  # π's margins 3, 1 against the reference's 0, 2: sorted differences are 1 and 1.
  pairs = [jnp.asarray(x) for x in ([3.0, 1.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0])]
  got = dpo.dpo_loss(*pairs, dpo.Config(loss_type="aot", beta=1.0))
  np.testing.assert_allclose(got, np.full(2, math.log(1 + math.exp(-1))), rtol=1e-6)


@pytest.mark.parametrize("loss_type", dpo.SORTED)
def test_a_sorted_loss_taken_apart_has_the_value_and_gradient_of_the_whole(loss_type):
  config = dpo.Config(loss_type=loss_type, beta=0.3)
  whole = lambda w, l: jnp.mean(dpo.dpo_loss(w, l, PAIRS[2], PAIRS[3], config))
  mean = lambda above, below: jnp.mean(dpo.sorted_loss(above, below, config))
  linear = batchwise.linearize(mean, *dpo.margins(*PAIRS, config))

  def in_parts(w, l):
    rows = batchwise.per_row(linear, *dpo.margins(w, l, PAIRS[2], PAIRS[3], config))
    return jnp.mean(jnp.concatenate([rows[:2], rows[2:]]))

  value, slopes = jax.value_and_grad(whole, argnums=(0, 1))(*PAIRS[:2])
  got, got_slopes = jax.value_and_grad(in_parts, argnums=(0, 1))(*PAIRS[:2])
  np.testing.assert_allclose(got, value, rtol=1e-6)
  np.testing.assert_allclose(got_slopes, slopes, rtol=1e-5)
  assert np.abs(slopes[0]).min() > 1e-6


def test_tokens_beyond_the_shorter_answer_count_less():
  long, short = jnp.asarray([[0.0, 1, 1, 0, 1, 1]]), jnp.asarray([[0.0, 1, 0, 1, 0, 0]])
  config = dpo.Config(length_decay=0.25)
  np.testing.assert_array_equal(dpo.token_weights(long, short, config), [[0, 1, 1, 0, 0.25, 0.25]])
  np.testing.assert_array_equal(dpo.token_weights(short, long, config), short)
  averaged = dpo.Config(average_logps=True)
  np.testing.assert_array_equal(dpo.token_weights(long, short, averaged), long / 4)


def test_wpo_weighs_an_answer_by_its_mean_log_probability_less_the_collision():
  logps, mask = jnp.asarray([[9.0, -1.0, -2.0, -9.0]]), jnp.asarray([[0.0, 1, 1, 0]])
  collision = jnp.asarray([[5.0, -0.5, -1.5, 5.0]])
  np.testing.assert_allclose(dpo.wpo_weights(logps, collision, mask), [math.exp(-0.5)], rtol=1e-6)


def pair_batch(n=3):
  mask = jnp.ones((n, 2))
  return types.PreferenceBatch(
    sequences(mask), sequences(mask), preference=jnp.ones(n), margin=jnp.zeros(n)
  )


def steps_of(module, config, batch, frozen, logps, count):
  """`count` steps of plain gradient descent on the rows' log-probabilities; every state."""
  algorithm, tx = module.make(ROW_POLICY), optax.identity()
  state = step.init_state(jax.random.key(0), {"logps": logps}, algorithm, tx, config)
  train_step, states = jax.jit(step.make_train_step(algorithm, tx)), []
  for _ in range(count):
    state, _ = train_step(state, frozen, batch, config)
    states.append(state)
  return states


def test_the_reference_follows_the_policy_every_so_many_steps():
  config = dpo.Config(learning_rate=0.5, sync_every=2, sync_mix=0.25)
  start = jnp.linspace(-2.0, -1.0, 6)
  states = steps_of(dpo, config, pair_batch(), {"reference": {"logps": 9 * start}}, start, 3)
  references = [state.extra["reference"]["logps"] for state in states]
  np.testing.assert_array_equal(
    references[0], start
  )  # the policy it began as, not frozen["reference"]
  expected = 0.75 * start + 0.25 * states[1].params["logps"]
  np.testing.assert_allclose(references[1], expected, rtol=1e-6)
  np.testing.assert_array_equal(references[2], references[1])
  assert np.abs(references[1] - start).max() > 1e-3


def test_the_moved_reference_is_what_the_loss_compares_with():
  """A float64 loop of TR-DPO with a hard update every step: the gradient is that at the reference, −β/2 a side."""
  config = dpo.Config(learning_rate=1.0, beta=0.5, sync_every=1, sync_mix=1.0)
  start = jnp.asarray([-1.0, -2.0])
  states = steps_of(dpo, config, pair_batch(1), {"reference": {"logps": start}}, start, 4)
  # A row is two tokens, and h is 0 at each step: d(−log σ(βh))/dlogp = ∓ β/2 · 2.
  expected = np.asarray([-1.0, -2.0]) + 4 * np.asarray([0.5, -0.5])
  np.testing.assert_allclose(states[-1].params["logps"], expected, rtol=1e-6)


def test_the_indifferent_reward_is_the_mean_over_all_batches_so_far():
  config = dpo.Config(learning_rate=0.1, beta=0.5, loss_type="bco_pair")
  frozen = {"reference": {"logps": jnp.zeros(6)}}
  logps = jnp.asarray([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
  states = steps_of(dpo, config, pair_batch(), frozen, logps, 2)
  means = [0.5 * 2 * float(jnp.mean(x)) for x in (logps, states[0].params["logps"])]
  np.testing.assert_allclose(states[1].extra["delta"].value, np.mean(means), rtol=1e-5)


def test_this_batchs_reward_is_among_those_that_the_indifferent_reward_is_the_mean_of():
  config = dpo.Config(beta=0.5, loss_type="bco_pair")
  params = {"logps": jnp.asarray([-1.0, -2.0, -3.0, -4.0])}
  seen = {"delta": Mean(jnp.float32(2.0), jnp.float32(1.0))}  # one batch before, of mean reward 2
  frozen = {"reference": {"logps": jnp.zeros(4)}}
  batch, metrics = dpo.make(ROW_POLICY).annotate(params, frozen, pair_batch(2), config, seen)
  # Rows of two tokens: log-ratios −2, −4, −6, −8, rewards half of that, −2.5 on average.
  assert float(metrics["rewards/implicit"].value) == -2.5
  np.testing.assert_allclose(batch.delta, [-0.25, -0.25])


def plackett_luce_oracle(rewards, ranks):
  """−log P of a ranking in float64: the mean over all orders that break its ties."""
  ranked = [i for i, rank in enumerate(ranks) if rank > 0]
  orders = [
    o
    for o in itertools.permutations(ranked)
    if list(np.take(ranks, o)) == sorted(np.take(ranks, o))
  ]
  logs = []
  for order in orders:
    s = np.asarray(rewards, np.float64)[list(order)]
    logs.append(sum(s[i] - np.log(np.exp(s[i:]).sum()) for i in range(len(s))))
  return -np.mean(logs)


@pytest.mark.parametrize(
  "ranks", [[1, 2, 3, 4], [4, 2, 1, 3], [1, 1, 2, 3], [2, 0, 1, 1], [3, 1, 0, 2]]
)
def test_dpo_on_a_ranking_is_plackett_and_luces_likelihood(ranks):
  logps, ref_logps = np.asarray(RNG.normal(-20, 5, (2, 4)), np.float32)
  config = pl_dpo.Config(beta=0.2)
  got = pl_dpo.pl_dpo_loss(logps[None], ref_logps[None], jnp.asarray([ranks]), config)
  expected = plackett_luce_oracle(0.2 * (logps.astype(float) - ref_logps), ranks)
  np.testing.assert_allclose(got, [expected], rtol=2e-5)


def test_dpo_on_rankings_of_two_is_dpo():
  logps, ref_logps = jnp.stack(PAIRS[:2], axis=1), jnp.stack(PAIRS[2:], axis=1)
  ranks = jnp.broadcast_to(jnp.asarray([1, 2]), (5, 2))
  got = pl_dpo.pl_dpo_loss(logps, ref_logps, ranks, pl_dpo.Config(beta=0.1))
  np.testing.assert_allclose(got, dpo.dpo_loss(*PAIRS, dpo.Config(beta=0.1)), rtol=1e-5)


def by_reward(module, logps_w, logps_l, config):
  """SimPO's loss on the reward of `module`."""
  rewards = (module.reward(jnp.asarray(logps), config) for logps in (logps_w, logps_l))
  return simpo.margin_loss(*rewards, config)


def test_simpo_by_hand():
  config = simpo.Config(beta=2.0, gamma=0.5)  # 2 (−1 + 1.5) − 0.5 = 0.5
  got = by_reward(simpo, [-1.0], [-1.5], config)
  np.testing.assert_allclose(got, [math.log(1 + math.exp(-0.5))], rtol=1e-6)


def test_alphapo_approaches_simpo_as_alpha_vanishes():
  w, l = jnp.asarray([-1.0, -2.0]), jnp.asarray([-1.5, -0.5])
  near = by_reward(alphapo, w, l, alphapo.Config(alpha=1e-3))
  np.testing.assert_allclose(near, by_reward(simpo, w, l, simpo.Config()), rtol=5e-3)


def test_alphapo_by_hand():
  config = alphapo.Config(
    beta=1.0, gamma=0.0, alpha=1.0
  )  # r = 1 − 1/p: −1 at a half, −3 at a quarter
  got = by_reward(alphapo, [math.log(0.5)], [math.log(0.25)], config)
  np.testing.assert_allclose(got, [math.log(1 + math.exp(-2))], rtol=1e-6)


def test_orpo_by_hand():
  # Odds of 3 and 1/3: their ratio is 9.
  got = orpo.odds_ratio_loss(jnp.log(jnp.asarray([0.75])), jnp.log(jnp.asarray([0.25])))
  np.testing.assert_allclose(got, [math.log(1 + 1 / 9)], rtol=1e-6)


def test_the_odds_of_certainty_and_of_the_impossible_are_finite_with_finite_slopes():
  logps = jnp.asarray([0.0, -1e-9, -1e-3, -80.0])
  slopes = jax.vmap(jax.grad(lambda x: orpo.log_odds(x[None])[0]))(logps)
  assert np.isfinite(orpo.log_odds(logps)).all() and np.isfinite(slopes).all()
  np.testing.assert_allclose(orpo.log_odds(logps)[3], -80.0, rtol=1e-6)


def test_cpo_is_dpo_under_a_reference_that_is_indifferent():
  nothing = jnp.zeros(5)
  for loss_type in cpo.LOSSES:
    got = cpo.cpo_loss(*PAIRS[:2], cpo.Config(loss_type=loss_type))
    expected = dpo.dpo_loss(*PAIRS[:2], nothing, nothing, dpo.Config(loss_type=loss_type))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_kto_by_hand():
  # u − kl is 1 for the right answer and −1 for the wrong one; β = 1.
  args = [jnp.asarray(x) for x in ([3.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0])]
  config = kto.Config(beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)
  wrong = 1 / (1 + math.exp(1))
  np.testing.assert_allclose(kto.kto_loss(*args, config), [2 * wrong, 3 * wrong], rtol=1e-6)


def test_ktos_baseline_is_not_negative():
  assert float(kto.baseline(jnp.asarray([-3.0, -1.0]), jnp.zeros(2))) == 0.0
  assert float(kto.baseline(jnp.asarray([3.0, -1.0]), jnp.zeros(2))) == 1.0


def test_bco_by_hand():
  args = [jnp.asarray(x) for x in ([2.0, 2.0], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5])]
  expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))]
  np.testing.assert_allclose(bco.bco_loss(*args, bco.Config(beta=1.0)), expected, rtol=1e-6)


def test_the_mean_over_pairs_weighs_a_soft_label_by_its_probability():
  loss = lambda w, l: w - 2 * l
  got = preference.both_ways(loss, jnp.asarray([1.0]), jnp.asarray([3.0]), 0.75)
  np.testing.assert_allclose(got, [0.75 * (1 - 6) + 0.25 * (3 - 2)])


def test_what_is_logged_of_pairs():
  batch = pair_batch(2).replace(
    ref_chosen_logps=jnp.full((2, 2), -1.0), ref_rejected_logps=jnp.full((2, 2), -1.0)
  )
  rewards = jnp.asarray([1.0, -1.0]), jnp.asarray([0.5, 0.0])
  logps = jnp.full((2, 2), -1.0), jnp.full((2, 2), -1.0 + math.log(2))
  got = {k: float(v.value) for k, v in preference.pair_metrics(*rewards, *logps, batch).items()}
  assert got["rewards/chosen"] == 0.0 and got["rewards/rejected"] == 0.25
  assert got["rewards/margin"] == -0.25 and got["rewards/accuracy"] == 0.5
  assert got["logps/chosen"] == -2.0
  # Rejected tokens are twice as likely as under the reference: (2 − 1) − log 2 each, two an answer.
  assert got["policy/kl_reference"] == pytest.approx(1 - math.log(2), rel=1e-5)


@pytest.mark.parametrize(
  "module, options, says",
  [
    (dpo, dict(loss_type="exo_pair"), "dpo.label_smoothing; set that to 1e-3"),
    (dpo, dict(loss_type="aot", wpo=True), "dpo.wpo weights pairs"),
    (alphapo, dict(alpha=0.0), "its limit there is algorithm.name=simpo"),
  ],
)
def test_options_that_contradict_each_other_are_refused(module, options, says):
  with pytest.raises(ValueError, match=says):
    from_dict(module.Config, options, where=module.__name__.rpartition(".")[2])
