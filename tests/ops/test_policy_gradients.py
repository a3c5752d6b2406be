import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import policy_gradients

# ratio, advantage, loss at clip_eps 0.2, and whether the gradient is gone
SURROGATES = [
  (1.0, 3.0, -3.0, False),
  (1.5, 1.0, -1.2, True),
  (1.5, -1.0, 1.5, False),
  (0.5, 1.0, -0.5, False),
  (0.5, -1.0, 0.8, True),
  (1.1, -2.0, 2.2, False),
]


def surrogate(logps, old_logps, advantages):
  return policy_gradients.surrogate(logps - old_logps, advantages, low=0.2, high=0.2)


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gone"), SURROGATES)
def test_the_surrogate_by_hand(ratio, advantage, loss, gone):
  old_logps = jnp.asarray([[-1.25]])
  logps, advantages = old_logps + jnp.log(ratio), jnp.asarray([[advantage]])
  np.testing.assert_allclose(surrogate(logps, old_logps, advantages), [[loss]], rtol=1e-6)
  gradient = jax.grad(lambda x: jnp.sum(surrogate(x, old_logps, advantages)))(logps)
  expected = 0.0 if gone else -ratio * advantage
  np.testing.assert_allclose(gradient, [[expected]], rtol=1e-6)
  clipped = policy_gradients.is_outside(logps - old_logps, advantages, low=0.2, high=0.2)
  np.testing.assert_array_equal(clipped, [[float(gone)]])


def test_the_clip_fraction_counts_exactly_the_vanished_gradients():
  rng = np.random.default_rng(0)
  old_logps, advantages = rng.normal(size=(2, 3, 11)).astype(np.float32)
  logps = (old_logps + rng.normal(0, 0.4, (3, 11))).astype(np.float32)
  gradient = jax.grad(lambda x: jnp.sum(surrogate(x, old_logps, advantages)))(logps)
  clipped = policy_gradients.is_outside(logps - old_logps, advantages, low=0.2, high=0.2)
  np.testing.assert_array_equal(clipped, gradient == 0)
  assert 0 < np.mean(clipped) < 1


# value, old value, return, loss at clip_eps 0.5, gradient
VALUES = [
  (1.2, 1.0, 3.0, 1.62, -1.8),  # inside the clip: the plain squared error
  (2.0, 1.0, 0.0, 2.0, 2.0),  # outside, and further from the return: still pulled back
  (2.0, 1.0, 3.0, 1.125, 0.0),  # outside towards the return: held where the clip is
  (0.0, 1.0, -1.0, 1.125, 0.0),
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "gradient"), VALUES)
def test_clipped_value_loss_by_hand(value, old, target, loss, gradient):
  one = lambda x: jnp.asarray([[x]])
  function = lambda v: jnp.sum(
    policy_gradients.clipped_value_loss(v, one(old), one(target), clip_eps=0.5)
  )
  got, slope = jax.value_and_grad(function)(one(value))
  np.testing.assert_allclose([got, slope[0, 0]], [loss, gradient], rtol=1e-6)


def test_a_wide_clip_leaves_the_squared_error():
  values, old, target = np.random.default_rng(1).normal(size=(3, 2, 5)).astype(np.float32)
  got = policy_gradients.clipped_value_loss(values, old, target, clip_eps=1e6)
  np.testing.assert_allclose(got, 0.5 * np.square(values - target), rtol=1e-6)


def test_without_a_clip_it_is_the_squared_error_and_nothing_is_clipped():
  values, old, target = np.random.default_rng(1).normal(size=(3, 2, 5)).astype(np.float32)
  args = dict(values=values, old_values=old, returns=target, clip_eps=None)
  got = policy_gradients.clipped_value_loss(**args)
  np.testing.assert_allclose(got, 0.5 * np.square(values - target), rtol=1e-6)
  np.testing.assert_array_equal(policy_gradients.is_value_clipped(**args), np.zeros((2, 5)))


def test_a_value_is_clipped_where_the_clipped_square_is_the_larger():
  for value, old, target, _, gradient in VALUES:
    clipped = policy_gradients.is_value_clipped(value, old, target, clip_eps=0.5)
    np.testing.assert_array_equal(clipped, gradient == 0.0)
