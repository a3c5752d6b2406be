"""Token log-probabilities and entropies from hidden states, without an array of logits [B, T, V].

The only place that shifts: the hidden state at t−1 predicts token t, and a segment's first token,
which nothing predicts, has log-probability 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

CHUNK = 512  # tokens whose logits are alive at once


def token_stats(
  hidden: Array,
  tokens: Array,
  segments: Array,
  unembed: Callable[[Array], Array],
  temperature: Array | float = 1.0,
  *,
  chunk: int = CHUNK,
) -> tuple[Array, Array, Array]:
  """log π(tokens[:, t]), and of the distribution it was drawn from the entropy and log Σ_v p(v)², float32[B, T] each.

  `hidden` is float[B, T, D] and `unembed` maps [..., D] to float32[..., V]. Logits are divided by
  `temperature` before the softmax, so that the sampler and the learner speak of one distribution.
  """

  def stats(hidden, tokens):
    logits = unembed(hidden).astype(jnp.float32) / temperature
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    p = jnp.exp(logits - normalizer[..., None])
    collision = jax.lax.stop_gradient(jnp.log(jnp.sum(p * p, axis=-1)))
    return chosen - normalizer, normalizer - jnp.sum(p * logits, axis=-1), collision

  per_prediction = _over_chunks(stats, chunk, hidden[:, :-1], tokens[:, 1:])
  return tuple(_align(x, segments) for x in per_prediction)


def compare_stats(
  hidden_p: Array,
  hidden_q: Array,
  tokens: Array,
  segments: Array,
  unembed_p: Callable[[Array], Array],
  unembed_q: Callable[[Array], Array],
  temperature: Array | float = 1.0,
  *,
  chunk: int = CHUNK,
) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
  """`token_stats` of p and of q, and KL(p ‖ q) = Σ_v p(v) (log p(v) − log q(v)) at every token.

  All float32[B, T], from one pass over each one's logits.
  """

  def stats(hidden_p, hidden_q, tokens):
    logp = jax.nn.log_softmax(unembed_p(hidden_p).astype(jnp.float32) / temperature)
    logq = jax.nn.log_softmax(unembed_q(hidden_q).astype(jnp.float32) / temperature)
    p, q = jnp.exp(logp), jnp.exp(logq)
    chosen = lambda x: jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]
    of_p = chosen(logp), -jnp.sum(p * logp, axis=-1)
    of_q = chosen(logq), -jnp.sum(q * logq, axis=-1)
    return of_p, of_q, jnp.sum(p * (logp - logq), axis=-1)

  per_prediction = _over_chunks(stats, chunk, hidden_p[:, :-1], hidden_q[:, :-1], tokens[:, 1:])
  return jax.tree.map(lambda x: _align(x, segments), per_prediction)


def over_vocabulary(
  function: Callable,
  hidden: Sequence[Array],
  tokens: Array,
  segments: Array,
  views: Sequence[Callable],
  *,
  chunk: int = CHUNK,
):
  """`function` of what several models say of every token of the vocabulary, a slice of time after the other.

  `views[i]` maps `hidden[i]`, float[B, w, D] of a slice, to anything, such as logits [B, w, V]. `function` takes the tuple of
  the views and the tokens int32[B, w] that were chosen there, and returns a tree of [B, w]; what comes back is that tree of
  [B, T], where index t speaks of the choice of token t, and 0 where nothing chose it.
  """

  def of_slice(tokens, *hidden):
    return function(tuple(view(h) for view, h in zip(views, hidden, strict=True)), tokens)

  per_prediction = _over_chunks(of_slice, chunk, tokens[:, 1:], *(h[:, :-1] for h in hidden))
  return jax.tree.map(lambda x: _align(x, segments), per_prediction)


def predicted(segments: Array) -> Array:
  """Which tokens have a predecessor in their own segment, bool[B, T]."""
  inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  return jnp.pad(inside, ((0, 0), (1, 0)))


def _align(per_prediction: Array, segments: Array) -> Array:
  return jnp.where(predicted(segments), jnp.pad(per_prediction, ((0, 0), (1, 0))), 0.0)


def _over_chunks(function, chunk: int, *arrays):
  """Maps `function` over slices of time, recomputing each slice's logits in the backward pass."""
  B, T = arrays[0].shape[:2]
  width = max(1, min(T, chunk // B))
  count = -(-T // width)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, count * width - T)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, count, width, *x.shape[2:]), 1, 0)

  slices = jax.lax.map(lambda xs: jax.checkpoint(function)(*xs), tuple(split(x) for x in arrays))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T], slices)
