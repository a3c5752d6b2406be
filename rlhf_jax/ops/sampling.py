"""From logits to tokens: truncation of the distribution, and a draw with one random number a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import logprobs

Array = jax.Array


def truncate(logits: Array, *, top_k: int | None = None, top_p=None, min_p=None) -> Array:
  """Logits float32[B, V] with −inf outside the kept support; what is left renormalises by softmax.

  Filters apply in the order of the arguments, each on what the one before left:
  top_k: the k largest. top_p: the smallest set of largest probabilities whose sum reaches p
  (arXiv:1904.09751). min_p: at least p times the largest probability (arXiv:2407.01082).
  The most probable token always stays.
  """
  if top_k is not None:
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if top_p is not None:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # mass of everything more probable
    kept = jnp.sum((before < top_p).astype(jnp.int32), axis=-1, keepdims=True)
    cutoff = jnp.take_along_axis(ordered, jnp.maximum(kept, 1) - 1, axis=-1)
    logits = jnp.where(logits < cutoff, -jnp.inf, logits)
  if min_p is not None:
    cutoff = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
    logits = jnp.where(logits < cutoff, -jnp.inf, logits)
  return logits


def categorical(keys: Array, logits: Array) -> Array:
  """One token a row, int32[B], drawn with that row's own key: other rows do not change it.

  By inverting the cumulative distribution, in two levels of about √V. It needs one uniform number a
  row where the Gumbel trick needs V, and on a CPU those cost more than the model's own decode step.
  """
  B, V = logits.shape
  width = 256
  probs = jnp.exp(logits - logprobs.normalizer(logits)[:, None])
  probs = jnp.pad(probs, ((0, 0), (0, -V % width)))
  blocks = probs.reshape(B, -1, width)
  uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)

  ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
  target = uniform * ends[:, -1]
  block = _first_above(ends, target)
  start = jnp.where(
    block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0
  )
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  offset = _first_above(jnp.cumsum(inside, axis=-1), jnp.maximum(target - start, 0.0))
  # Rounding can leave the target beyond the block's end; its most probable token is then the draw.
  beyond = jnp.take_along_axis(inside, offset[:, None], axis=1)[:, 0] <= 0
  offset = jnp.where(beyond, jnp.argmax(inside, axis=-1), offset)
  return (block * width + offset).astype(jnp.int32)


def _first_above(ascending: Array, target: Array) -> Array:
  """The first index whose entry exceeds the row's target, or the last index; int32[B]."""
  below = jnp.sum((ascending <= target[:, None]).astype(jnp.int32), axis=-1)
  return jnp.minimum(below, ascending.shape[-1] - 1)
