"""Attention in one kernel is attention: forms that run on a CPU, against the explicit one in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import fused, layers

B, H, K, T, C = 2, 6, 3, 7, 16  # an odd length, which cuDNN would refuse


@pytest.fixture(scope="module")
def rows():
  """(q, k, v, mask, weights): padding on the left, two segments, padding on the right."""
  segments = np.asarray([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2, 0]])
  same = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
  mask = jnp.asarray(same & (np.arange(T)[None] <= np.arange(T)[:, None])[None])
  q, k, v, w = (
    jax.random.normal(jax.random.key(i), (B, heads, T, C)) for i, heads in enumerate((H, K, K, H))
  )
  return q, k, v, mask, w * jnp.asarray(segments > 0)[:, None, :, None]


def loss(attention):
  """A sum over real tokens with different weights."""
  return lambda q, k, v, mask, w: jnp.sum(attention(q, k, v, mask) * w)


def explicit(q, k, v, mask):
  return layers.attention(q, k, v, mask, "float32")


one_kernel = functools.partial(fused.attention, implementation="xla")


def assert_close(ours, theirs):
  """To within what rounding the inputs of products to bfloat16 leaves."""
  error = jnp.linalg.norm((ours - theirs).ravel()) / jnp.linalg.norm(theirs.ravel())
  assert error < 0.01


def test_one_kernel_attends_in_segments_and_learns_as_the_explicit_form_does(rows):
  *inputs, w = rows
  real = (w != 0).astype(jnp.float32)
  assert_close(one_kernel(*inputs) * real, explicit(*inputs) * real)
  gradients = [jax.grad(loss(f), argnums=(0, 1, 2))(*rows) for f in (one_kernel, explicit)]
  for ours, theirs in zip(*gradients, strict=True):
    assert_close(ours, theirs)


def test_several_models_at_once_attend_as_each_does_alone(rows):
  q, *others = rows
  gradient = jax.grad(loss(one_kernel), argnums=(0, 1))
  together = jax.vmap(lambda q: gradient(q, *others))(jnp.stack([q, 2 * q]))
  for ours, alone in zip(together, gradient(2 * q, *others), strict=True):
    np.testing.assert_allclose(ours[1], alone, rtol=1e-5, atol=1e-6)


def test_a_decoding_step_reads_the_slots_that_each_row_sees():
  S = 2 * fused.KEYS + 5  # the last block is not full
  q, k, v = (
    jax.random.normal(jax.random.key(i), (B, *shape, C))
    for i, shape in enumerate(((H, 1), (K, S), (K, S)))
  )
  seen = np.zeros((B, 1, S), bool)
  seen[0, 0, 3 : fused.KEYS - 2] = True  # within the first block
  seen[1, 0, fused.KEYS + 1 :] = True  # from within the second
  seen[1, 0, fused.KEYS + 7] = False
  mask = jnp.asarray(seen)
  hidden = jnp.where(mask[:, :, :, None], k, 1e4)  # what is not seen is not read as a number
  ours = fused.decode(q, hidden, v, mask, interpret=True)
  assert_close(ours, explicit(q, k, v, mask))


def test_one_token_is_learned_from_where_a_gpu_has_a_kernel_for_decoding(rows, monkeypatch):
  """The last of each row as an answer of its own."""
  q, k, v, mask, _ = rows
  answers = layers.fork_mask(mask, T - 1, 1)
  total = lambda dtype: lambda *x: jnp.sum(layers.attention(*x, answers, dtype)[:1, :, -1])
  expected = jax.grad(total("float32"), argnums=(0, 1, 2))(q, k, v)
  monkeypatch.setattr(fused, "_has_tensor_cores", lambda: True)
  monkeypatch.setattr(fused, "attention", one_kernel)
  for ours, theirs in zip(
    jax.grad(total("bfloat16"), argnums=(0, 1, 2))(q, k, v), expected, strict=True
  ):
    assert_close(ours, theirs)


def test_on_a_cpu_attention_is_explicit(rows):
  assert not fused.available(rows[0], "bfloat16", decoding=False)
