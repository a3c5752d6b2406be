import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import returns

B, T = 4, 7
MASK = np.array(
  [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 0, 0, 0],  # padding on the right
    [0, 0, 1, 1, 1, 1, 1],  # and on the left
    [0, 1, 1, 0, 0, 1, 0],  # a tool's turn between two of the policy's
  ],
  np.float32,
)
BOOTSTRAP = np.array([0.0, 2.0, 0.0, -1.5], np.float32)


def trajectories(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, B, T)).astype(np.float32)


def gae_loop(rewards, values, mask, bootstrap, gamma, lambda_):
  """The definition, walked backwards over the tokens inside the mask."""
  advantages = np.zeros((B, T))
  for row in range(B):
    next_advantage, next_value = 0.0, float(bootstrap[row])
    for t in reversed(range(T)):
      if mask[row, t]:
        delta = rewards[row, t] + gamma * next_value - values[row, t]
        next_advantage = advantages[row, t] = delta + gamma * lambda_ * next_advantage
        next_value = values[row, t]
  return advantages


def test_gae_of_two_steps_by_hand():
  # delta_1 = 2 + 0.5 * 4 - 3 = 1 and delta_0 = 1 + 0.5 * 3 - 1 = 1.5
  # A_1 = 1 and A_0 = 1.5 + 0.5 * 0.8 * 1 = 1.9
  rewards, values = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[1.0, 3.0]])
  got = returns.gae(rewards, values, jnp.ones((1, 2)), jnp.asarray([4.0]), gamma=0.5, lambda_=0.8)
  np.testing.assert_allclose(got, [[1.9, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_loop_over_ragged_rows(gamma, lambda_):
  rewards, values = trajectories()
  got = jax.jit(returns.gae)(rewards, values, MASK, BOOTSTRAP, gamma=gamma, lambda_=lambda_)
  expected = gae_loop(rewards, values, MASK, BOOTSTRAP, gamma, lambda_)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_gae_steps_over_a_gap_as_if_it_were_cut_out():
  rewards, values = trajectories(1)
  settings = dict(gamma=0.9, lambda_=0.8)
  whole = returns.gae(rewards[3:], values[3:], MASK[3:], BOOTSTRAP[3:], **settings)
  inside = MASK[3] > 0
  short = returns.gae(
    rewards[3:, inside], values[3:, inside], np.ones((1, 3), np.float32), BOOTSTRAP[3:], **settings
  )
  np.testing.assert_allclose(whole[:, inside], short, rtol=1e-6)
  assert not np.any(whole[:, ~inside])


@pytest.mark.parametrize("poison", [1e9, -1e9, np.nan, np.inf])
def test_gae_never_reads_what_the_mask_hides(poison):
  rewards, values = trajectories(2)
  settings = dict(gamma=0.97, lambda_=0.9)
  clean = returns.gae(rewards, values, MASK, BOOTSTRAP, **settings)
  poisoned = [np.where(MASK > 0, x, poison).astype(np.float32) for x in (rewards, values)]
  np.testing.assert_array_equal(returns.gae(*poisoned, MASK, BOOTSTRAP, **settings), clean)


def test_gae_with_lambda_zero_is_the_temporal_difference():
  rewards, values = trajectories(3)
  got = returns.gae(rewards[:1], values[:1], MASK[:1], BOOTSTRAP[:1], gamma=0.9, lambda_=0.0)
  after = np.append(values[0, 1:], BOOTSTRAP[0])
  np.testing.assert_allclose(got[0], rewards[0] + 0.9 * after - values[0], rtol=1e-5, atol=1e-6)


def test_the_score_falls_on_the_last_token_of_the_response():
  got = returns.at_last(jnp.asarray([10.0, 20.0, 30.0, 40.0]), jnp.asarray(MASK))
  expected = np.zeros((B, T))
  expected[[0, 1, 2, 3], [6, 2, 6, 5]] = [10, 20, 30, 40]
  np.testing.assert_array_equal(got, expected)


def test_an_empty_response_gets_no_score():
  assert not np.any(returns.at_last(jnp.asarray([3.0]), jnp.zeros((1, 5))))
