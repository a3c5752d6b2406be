"""Losses of clipped policy optimisation, per token and unreduced (arXiv:1707.06347)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def clipped_surrogate(logps: Array, old_logps: Array, advantages: Array, *, clip_eps) -> Array:
  """The loss −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = π / π_old, float32[B, T] (eq. 7)."""
  ratio = jnp.exp(logps - old_logps)
  clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def is_clipped(logps: Array, old_logps: Array, advantages: Array, *, clip_eps) -> Array:
  """1 where the clip takes the gradient away, float32[B, T]."""
  ratio = jnp.exp(logps - old_logps)
  above = (ratio > 1.0 + clip_eps) & (advantages > 0)
  below = (ratio < 1.0 - clip_eps) & (advantages < 0)
  return (above | below).astype(jnp.float32)


def clipped_value_loss(values: Array, old_values: Array, returns: Array, *, clip_eps) -> Array:
  """½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), float32[B, T].

  The clip is OpenAI's, not the paper's; the ½ follows lm-human-preferences.
  """
  clipped = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
  return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
