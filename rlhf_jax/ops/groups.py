"""Statistics of the G answers to each prompt, which stand in adjacent rows of a batch, B = N · G.

A function that maps float32[B] to float32[B] gives each row what concerns its own group. Where all scores of a
group are equal, differences from its mean are 0 and not what rounding leaves of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import stats

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


def metrics(scores: Array, group: int) -> dict[str, stats.Mean]:
  """How far apart the scores of a group are, and how many groups have nothing to compare."""
  return {
    "group/std": stats.batch_mean(std(scores, group)),
    "group/zero_variance": stats.batch_mean(without_variance(scores, group)),
  }


def is_among_best(scores: Array, group: int, count: int) -> Array:
  """1 for the best `count` of each group, the earlier ones of a tie; 0 for all where all score the same."""
  rows = scores.reshape(-1, group)
  _, places = jax.lax.top_k(rows, count)
  best = jnp.sum(jax.nn.one_hot(places, group, dtype=scores.dtype), axis=1)
  return jnp.where(_equal(rows), 0.0, best).ravel()


def extremes(scores: Array, group: int) -> tuple[Array, Array]:
  """The rows int32[N] of each group's best and worst answer: never the same one, even where all score the same."""
  rows = scores.reshape(-1, group)
  first = jnp.arange(0, scores.size, group)
  worst = group - 1 - jnp.argmin(rows[:, ::-1], axis=1)  # the last of a tie
  return first + jnp.argmax(rows, axis=1), first + worst


def _equal(rows: Array) -> Array:
  return jnp.max(rows, axis=1, keepdims=True) == jnp.min(rows, axis=1, keepdims=True)
