"""Attention by a few queries at a time, as a TPU computes it, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder, layers

B, H, K, T, C = 2, 6, 3, 7, 4  # 7 queries do not divide into blocks of 3


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_blocks_give_the_values_and_gradients_of_the_whole(size):
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (B, H, T, C))
  k, v = (jax.random.normal(key, (B, K, T, C)) for key in keys[1:3])
  weights = jax.random.normal(keys[3], (B, H, T, C))
  segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
  mask = decoder.attention_mask(segments, segments, jnp.arange(T))
  seen = (segments > 0)[:, None, :, None]  # what padding looks at is meaningless

  def whole(q, k, v):
    return jnp.sum(weights * jnp.where(seen, layers.attention(q, k, v, mask, "float32"), 0.0))

  def blocks(q, k, v):
    found = layers.attention_in_blocks(q, k, v, mask, "float32", size)
    return jnp.sum(weights * jnp.where(seen, found, 0.0))

  for ours, theirs in zip(
    jax.tree.leaves(jax.value_and_grad(blocks, (0, 1, 2))(q, k, v)),
    jax.tree.leaves(jax.value_and_grad(whole, (0, 1, 2))(q, k, v)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
