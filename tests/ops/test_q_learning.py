"""Values of tokens by hand, against a loop, and where they meet one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rlhf_jax.ops import q_learning, returns

Q = jnp.asarray([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
LOGP = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]))


def test_values_of_states_by_hand():
  other = jnp.asarray([[9.0, 0.5, 0.0], [1.0, 2.0, 3.0]])
  np.testing.assert_array_equal(q_learning.taken(Q, jnp.asarray([2, 1])), [2.0, -1.0])
  np.testing.assert_array_equal(q_learning.double_value(Q, Q), [3.0, 0.0])
  # The token that one prefers, as the other values it.
  np.testing.assert_array_equal(q_learning.double_value(Q, other), [0.5, 1.0])
  np.testing.assert_array_equal(q_learning.double_value(other, Q), [1.0, -2.0])
  np.testing.assert_allclose(q_learning.expected_value(Q, LOGP), [1.75, -1.3], rtol=1e-6)
  both = jnp.stack([Q, other])
  np.testing.assert_array_equal(q_learning.least_taken(both, jnp.asarray([0, 2])), [1.0, -2.0])


def test_soft_values_by_hand():
  # ½ (1 − 2 log ½) + ¼ (3 − 2 log ¼) + ¼ (2 − 2 log ¼) = 1.75 + 2 · entropy.
  entropy = 0.5 * np.log(2) + 0.5 * np.log(4)
  got = q_learning.soft_value(Q[:1], LOGP[:1], 0.0, 2.0)
  np.testing.assert_allclose(got, [1.75 + 2 * entropy], rtol=1e-6)
  # Under its own prior a policy costs nothing.
  got = q_learning.soft_value(Q, LOGP, LOGP, 2.0)
  np.testing.assert_allclose(got, q_learning.expected_value(Q, LOGP), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 7.0])
def test_the_policy_that_q_makes_of_a_prior_has_the_largest_soft_value(alpha):
  best = jax.nn.log_softmax(LOGP + Q / alpha)
  largest = q_learning.softmax_value(Q, LOGP, alpha)
  np.testing.assert_allclose(q_learning.soft_value(Q, best, LOGP, alpha), largest, rtol=1e-5)
  for seed in range(3):
    policy = jax.nn.log_softmax(jax.random.normal(jax.random.key(seed), (2, 3)))
    assert np.all(q_learning.soft_value(Q, policy, LOGP, alpha) < largest)


def test_the_soft_value_lies_between_the_priors_mean_and_the_maximum():
  np.testing.assert_allclose(q_learning.softmax_value(Q, LOGP, 1e-4), [3.0, 0.0], atol=1e-3)
  mean = q_learning.expected_value(Q, LOGP)
  np.testing.assert_allclose(q_learning.softmax_value(Q, LOGP, 1e4), mean, atol=1e-2)


def test_targets_by_hand():
  # Two tokens with a tool's turn between them: r_0 + γ V_2, and the last one's reward alone.
  rewards, values = jnp.asarray([[1.0, 9.0, 2.0]]), jnp.asarray([[7.0, np.nan, 4.0]])
  mask = jnp.asarray([[1.0, 0.0, 1.0]])
  got = q_learning.targets(rewards, values, mask, gamma=0.5)
  np.testing.assert_allclose(got, [[3.0, 0.0, 2.0]])
  # λ = ½: 1 + ½ (½ · 4 + ½ · 2).
  got = q_learning.targets(rewards, values, mask, gamma=0.5, lambda_=0.5)
  np.testing.assert_allclose(got, [[2.5, 0.0, 2.0]])


def some(B=3, T=7):
  rng = np.random.default_rng(0)
  mask = (rng.random((B, T)) < 0.7).astype(np.float32)
  mask[1] = 0.0  # nothing was written
  return *rng.normal(size=(2, B, T)).astype(np.float32), mask


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_targets_are_those_of_a_loop_over_ragged_rows(lambda_):
  rewards, values, mask = some()
  expected = np.zeros_like(mask)
  for row in range(len(mask)):
    following = next_value = 0.0
    for t in reversed(np.flatnonzero(mask[row])):
      following = rewards[row, t] + 0.9 * ((1 - lambda_) * next_value + lambda_ * following)
      expected[row, t], next_value = following, values[row, t]
  got = q_learning.targets(rewards, values, mask, gamma=0.9, lambda_=lambda_)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_targets_of_values_are_gae_and_the_values(lambda_):
  rewards, values, mask = some()
  got = q_learning.targets(rewards, values, mask, gamma=0.9, lambda_=lambda_)
  gae = returns.gae(rewards, values, mask, jnp.zeros(len(mask)), gamma=0.9, lambda_=lambda_)
  np.testing.assert_allclose(got, mask * (gae + values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 2.25), (1 - 1e-7, 6.0), (1e-7, -1.0)])
def test_the_expectile_goes_from_the_least_over_the_mean_to_the_largest(tau, expected):
  values = np.array([1.0, 6.0, -1.0, 3.0])
  slope = jax.grad(lambda v: jnp.sum(q_learning.expectile_loss(jnp.full(4, v), values, tau)))
  got = optimize.brentq(lambda v: float(slope(v)), -2.0, 7.0)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_expectile_loss_by_hand():
  got = q_learning.expectile_loss(jnp.asarray([1.0, 1.0]), jnp.asarray([3.0, 0.0]), 0.75)
  np.testing.assert_allclose(got, [3.0, 0.25])


def test_the_conservative_term_is_the_cross_entropy_of_q():
  tokens = jnp.asarray([1, 0])
  expected = -q_learning.taken(jax.nn.log_softmax(Q), tokens)
  np.testing.assert_allclose(q_learning.conservative_loss(Q, tokens), expected, rtol=1e-6)


def test_the_target_network_follows_every_third_update_half_the_way():
  extra = {**q_learning.target_network({"q": jnp.zeros(())}), "other": 5}
  seen = []
  for _ in range(7):
    extra = q_learning.follow(extra, {"q": jnp.asarray(8.0)}, rate=0.5, every=3)
    seen.append(float(extra["target"]["q"]))
  assert seen == [0, 0, 4, 4, 4, 6, 6] and extra["other"] == 5
