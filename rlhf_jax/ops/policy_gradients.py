"""Losses of clipped policy optimisation, per token and unreduced (arXiv:1707.06347)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import stats

Array = jax.Array


def clipped_value_loss(values: Array, old_values: Array, returns: Array, *, clip_eps) -> Array:
  """½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), float32[B, T]; ½ (V − R)² where ε is None.

  The clip is OpenAI's, not the paper's; the ½ follows lm-human-preferences.
  """
  square = jnp.square(values - returns)
  if clip_eps is None:
    return 0.5 * square
  clipped = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
  return 0.5 * jnp.maximum(square, jnp.square(clipped - returns))


def is_value_clipped(values: Array, old_values: Array, returns: Array, *, clip_eps) -> Array:
  """1 where the clipped square is the larger one in `clipped_value_loss`, float32[B, T]."""
  if clip_eps is None:
    return jnp.zeros_like(values)
  clipped = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
  return (jnp.square(clipped - returns) > jnp.square(values - returns)).astype(jnp.float32)


def sequence_log_ratio(logps: Array, old_logps: Array, mask: Array) -> Array:
  """log π(y) / π_old(y) of whole responses, in each of their tokens, float32[B, T]."""
  total = stats.row_sum(logps - old_logps, mask)
  return stats.masked(jnp.broadcast_to(total[:, None], mask.shape), mask)


def average_log_ratio(logps: Array, old_logps: Array, mask: Array) -> Array:
  """1/|y| log π(y) / π_old(y), in each token of the response, float32[B, T] (arXiv:2507.18071, eq. 7)."""
  length = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)
  return sequence_log_ratio(logps, old_logps, mask) / length


def surrogate(log_ratio: Array, advantages: Array, *, low, high, dual=None) -> Array:
  """The loss −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A), float32[B, T] (arXiv:2503.14476, eq. 10).

  With `dual` c > 1 it is at most −c A where A < 0, so that a ratio that exploded stops pushing
  (arXiv:1912.09729, eq. 5). The ratio stands still beyond e^40, before it overflows.
  """
  ratio = jnp.exp(jnp.minimum(log_ratio, 40.0))
  gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantages)
  if dual is not None:
    gain = jnp.where(advantages < 0, jnp.maximum(gain, dual * advantages), gain)
  return -gain


def cispo_surrogate(log_ratio: Array, logps: Array, advantages: Array, *, low, high) -> Array:
  """The loss −sg(clip(ρ, 1 − ε_low, 1 + ε_high)) A log π, float32[B, T] (arXiv:2506.13585, eq. 4).

  The clip bounds the weight of a token and leaves it its gradient.
  """
  weight = jnp.clip(jnp.exp(log_ratio), 1.0 - low, 1.0 + high)
  return -jax.lax.stop_gradient(weight) * advantages * logps


def is_outside(log_ratio: Array, advantages: Array, *, low, high) -> Array:
  """1 where `surrogate` (without `dual`) has lost its gradient to the clip, float32[B, T]."""
  ratio = jnp.exp(log_ratio)
  above = (ratio > 1.0 + high) & (advantages > 0)
  below = (ratio < 1.0 - low) & (advantages < 0)
  return (above | below).astype(jnp.float32)


# How the losses of tokens float32[B, T] become one: each maps (losses, mask, L) to a `Mean`.
AGGREGATIONS = {
  # over the batch's tokens, so that a long response weighs more than a short one
  "token": lambda losses, mask, length: stats.masked_sum(losses, mask),
  # over responses, of each one's mean: a token of a long response weighs less
  "sequence": lambda losses, mask, length: stats.batch_mean(
    stats.row_sum(losses, mask) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
  ),
  # over responses, of each one's sum
  "sum": lambda losses, mask, length: stats.batch_mean(stats.row_sum(losses, mask)),
  # the same, divided by the longest response that could be: the scale of a mean without its bias
  "fixed_length": lambda losses, mask, length: stats.Mean(
    jnp.sum(stats.row_sum(losses, mask)), jnp.asarray(mask.shape[0] * length, jnp.float32)
  ),
}
