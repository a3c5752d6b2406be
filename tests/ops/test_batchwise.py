import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import batchwise, stats

B, K = 6, 2
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(B, 3)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(3, 1 + K)), jnp.float32)


def numbers(weights, features):
  """float32[B] and float32[B, K] of a tiny model."""
  out = features @ weights
  return out[:, 0], out[:, 1:]


def correlation_and_order(x, y):
  """What no sum over rows is: a product of means, and values sorted against each other."""
  z = jnp.sum(y, axis=-1)
  covariance = jnp.mean(x * z) - jnp.mean(x) * jnp.mean(z)
  return covariance + jnp.mean(jnp.square(jnp.sort(x) - jnp.sort(z)))


def in_parts(weights, parts: int):
  """The batch mean from `parts` micro-batches, each with its own rows of `Linear`."""
  linear = batchwise.linearize(correlation_and_order, *numbers(weights, FEATURES))

  def loss(weights):
    total = stats.Mean(jnp.zeros(()), jnp.zeros(()))
    for rows in np.split(np.arange(B), parts):
      part = jax.tree.map(lambda x, rows=rows: x[rows], linear)
      mean = stats.batch_mean(batchwise.per_row(part, *numbers(weights, FEATURES[rows])))
      total = jax.tree.map(jnp.add, total, mean)
    return total.value

  return jax.value_and_grad(loss)(weights)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_rows_have_the_value_and_the_gradient_of_the_whole_batch(parts):
  exact = jax.value_and_grad(lambda w: correlation_and_order(*numbers(w, FEATURES)))(WEIGHTS)
  value, gradient = in_parts(WEIGHTS, parts)
  np.testing.assert_allclose(value, exact[0], rtol=1e-6)
  np.testing.assert_allclose(gradient, exact[1], rtol=1e-5, atol=1e-6)


def test_by_hand():
  # F = x_1 x_2: each row says F, and moves by B = 2 times the other's number.
  linear = batchwise.linearize(jnp.prod, jnp.asarray([3.0, 5.0]))
  np.testing.assert_allclose(linear.value, [15.0, 15.0])
  np.testing.assert_allclose(linear.slopes[0], [10.0, 6.0])
  slope = jax.grad(lambda x: jnp.mean(batchwise.per_row(linear, x)))(jnp.asarray([3.0, 5.0]))
  np.testing.assert_allclose(slope, [5.0, 3.0])


def test_nothing_flows_back_through_what_was_worked_out_before():
  def both(weights):
    xs = numbers(weights, FEATURES)
    return jnp.sum(batchwise.linearize(correlation_and_order, *xs).slopes[0])

  np.testing.assert_array_equal(jax.grad(both)(WEIGHTS), np.zeros_like(WEIGHTS))
