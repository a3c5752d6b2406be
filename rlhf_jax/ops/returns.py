"""Advantages and returns along responses. Tokens outside the mask are skipped, as if cut out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import stats

Array = jax.Array


def gae(rewards: Array, values: Array, mask: Array, bootstrap: Array, *, gamma, lambda_) -> Array:
  """Generalized advantage estimation, float32[B, T] (arXiv:1506.02438, eq. 16).

    δ_t = r_t + γ V_{t+1} − V_t
    A_t = δ_t + γλ A_{t+1}

  t + 1 is the next token *inside the mask* (a tool's turn between two of the policy's is stepped
  over), and the value after the last one is `bootstrap`, float32[B]: 0 where the response ended,
  V where the length limit cut it.
  """

  def backward(carry, step):
    next_advantage, next_value = carry
    reward, value, inside = step
    delta = reward + gamma * next_value - value
    advantage = delta + gamma * lambda_ * next_advantage
    carry = (
      jnp.where(inside, advantage, next_advantage),
      jnp.where(inside, value, next_value),
    )
    return carry, jnp.where(inside, advantage, 0.0)

  steps = (stats.masked(rewards, mask).T, stats.masked(values, mask).T, mask.T > 0)
  _, advantages = jax.lax.scan(
    backward, (jnp.zeros_like(bootstrap), bootstrap), steps, reverse=True
  )
  return advantages.T


def at_last(values: Array, mask: Array) -> Array:
  """`values` float32[B] laid on the last masked token of each row, 0 elsewhere: float32[B, T]."""
  later = jnp.cumsum(mask[:, ::-1], axis=-1)[:, ::-1]  # masked tokens from here to the end
  last = (mask > 0) & (later == 1)
  return jnp.where(last, values[:, None], 0.0)
