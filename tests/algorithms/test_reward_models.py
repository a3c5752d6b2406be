"""Reward models of every form of feedback: losses by hand, against their equations in float64, and what they recover.

A scorer here is a table: `params["scores"]` are the rewards themselves, so nothing stands between a
loss and the numbers that it is about.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rlhf_jax import types
from rlhf_jax.algorithms import reward_from_ratings


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def sequences(*shape) -> types.Sequences:
  """Answers that are their own row numbers: the k-th answer of the batch is the token k, after a prompt of one token."""
  rows = jnp.arange(np.prod(shape)).reshape(shape)
  tokens = jnp.stack([jnp.zeros_like(rows), rows], axis=-1)
  ones = jnp.ones_like(tokens, jnp.int32)
  chosen = jnp.zeros(tokens.shape).at[..., 1].set(1.0)
  return types.Sequences(tokens, jnp.cumsum(ones, axis=-1) - 1, ones, chosen)


def rows_of(batch: types.Sequences):
  return batch.tokens[:, 1]


SCORER = types.Scorer(
  score=lambda params, frozen, batch: jnp.asarray(params["scores"])[rows_of(batch)],
  outputs=lambda params, frozen, batch: jnp.asarray(params["scores"])[rows_of(batch)],
  tokens=lambda params, frozen, batch: params["scores"],
)


def loss_of(module, config, params, batch):
  """The sum of the terms' values."""
  algorithm = module.make(SCORER)
  batch, _ = algorithm.annotate(params, {}, batch, config, {})
  terms, _ = algorithm.loss(params, {}, batch, config, {})
  return sum(term.value for term in terms.values())


def assert_slope(function, params):
  """The gradient in every direction of `params`, by central differences."""
  params = jax.tree.map(jnp.asarray, params)
  flat, unravel = ravel_pytree(params)
  got, _ = ravel_pytree(jax.grad(function)(params))
  h = 1e-5
  for i in range(flat.size):
    step = jnp.zeros_like(flat).at[i].set(h)
    slope = (function(unravel(flat + step)) - function(unravel(flat - step))) / (2 * h)
    np.testing.assert_allclose(got[i], slope, rtol=1e-6, atol=1e-8)


def labelled(labels) -> types.LabelledBatch:
  return types.LabelledBatch(sequences(len(labels)), jnp.asarray(labels))


# Ratings.

RATINGS = np.array([[4.0, 1.0], [2.0, np.nan], [5.0, 3.0]])
PREDICTED = np.array([[3.0, 1.5], [2.5, 9.0], [2.0, 0.0]])


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    # errors 1, .5 | .5, none | 3, 3, over the five that were given
    (dict(), (1.0 + 0.25 + 0.25 + 9.0 + 9.0) / 5),
    (dict(loss="huber", huber_delta=2.0), (0.5 + 0.125 + 0.125 + 4.0 + 4.0) / 5),
  ],
)
def test_ratings_by_hand(config, expected):
  config = reward_from_ratings.Config(**config)
  loss = lambda p: loss_of(reward_from_ratings, config, p, labelled(RATINGS))
  np.testing.assert_allclose(loss({"scores": PREDICTED}), expected, rtol=1e-12)
  assert_slope(loss, {"scores": PREDICTED})


def test_a_missing_rating_has_no_gradient():
  loss = lambda x: loss_of(
    reward_from_ratings, reward_from_ratings.Config(), {"scores": x}, labelled(RATINGS)
  )
  slope = jax.grad(loss)(jnp.asarray(PREDICTED))
  assert np.isfinite(slope).all() and slope[1, 1] == 0.0


def test_ratings_begin_at_each_scales_mean():
  begun = reward_from_ratings.begin(reward_from_ratings.Config(), RATINGS)
  assert begun.outputs == 2
  np.testing.assert_allclose(begun.bias, [11 / 3, 2.0])


def test_weights_of_another_number_of_scales_are_refused():
  with pytest.raises(ValueError, match="has 3 numbers and the ratings have 2 scales"):
    reward_from_ratings.begin(reward_from_ratings.Config(weights=(1.0, 0.0, 0.0)), RATINGS)


def test_a_scale_that_nobody_used_is_refused():
  with pytest.raises(ValueError, match="nobody rated anything on scale 1 of 2"):
    reward_from_ratings.begin(reward_from_ratings.Config(), np.array([[1.0, np.nan]] * 3))
