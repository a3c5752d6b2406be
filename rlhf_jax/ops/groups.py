"""Statistics of the G answers to each prompt, which stand in adjacent rows of a batch, B = N · G.

Every function maps float32[B] to float32[B]: each row gets what concerns its own group. Where all scores of a
group are equal, differences from its mean are 0 and not what rounding leaves of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def centred(scores: Array, group: int) -> Array:
  """Each score less its group's mean."""
  rows = scores.reshape(-1, group)
  return jnp.where(_equal(rows), 0.0, rows - jnp.mean(rows, axis=1, keepdims=True)).ravel()


def less_the_others(scores: Array, group: int) -> Array:
  """Each score less the mean of the others of its group (arXiv:2402.14740, eq. 9); G is at least 2.

  R_i − 1/(G − 1) Σ_{j ≠ i} R_j  =  G/(G − 1) (R_i − mean R)
  """
  return group / (group - 1) * centred(scores, group)


def std(scores: Array, group: int) -> Array:
  """The standard deviation of each row's group, with the divisor G − 1."""
  squares = jnp.square(centred(scores, group)).reshape(-1, group)
  return jnp.repeat(jnp.sqrt(jnp.sum(squares, axis=1) / max(group - 1, 1)), group)


def without_variance(scores: Array, group: int) -> Array:
  """1 where all of a row's group score the same, and nothing can be learned from it."""
  return jnp.repeat(_equal(scores.reshape(-1, group))[:, 0], group).astype(scores.dtype)


def _equal(rows: Array) -> Array:
  return jnp.max(rows, axis=1, keepdims=True) == jnp.min(rows, axis=1, keepdims=True)
