"""Masked statistics. A mask is 1 where a value counts; what lies outside never reaches the result."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Mean(NamedTuple):
  """A mean kept as its two sums, so that micro-batches of any size add up to the mean of the whole batch."""

  sum: Array  # float32[]
  count: Array  # float32[]

  @property
  def value(self) -> Array:
    return self.sum / jnp.maximum(self.count, 1e-8)


def masked(values: Array, mask: Array) -> Array:
  """`values` with zeros outside the mask, even where they were NaN or infinite."""
  return jnp.where(mask > 0, values, 0.0)


def masked_sum(values: Array, mask: Array) -> Mean:
  """Sum over the mask and the mask's sum, as one `Mean`."""
  return Mean(jnp.sum(masked(values, mask) * mask), jnp.sum(mask))


def masked_mean(values: Array, mask: Array) -> Array:
  """Mean over the mask, float32[]; 0 where the mask is empty."""
  return masked_sum(values, mask).value


def masked_var(values: Array, mask: Array) -> Array:
  """Biased variance over the mask, float32[]."""
  return masked_mean(jnp.square(masked(values, mask) - masked_mean(values, mask)), mask)


def whiten(values: Array, mask: Array, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Array:
  """Values scaled to variance 1 over the mask, and to mean 0 unless `shift_mean` is off; 0 outside.

  As in OpenAI's lm-human-preferences: biased variance, `rsqrt(var + 1e-8)`.
  """
  mean = masked_mean(values, mask)
  whitened = (masked(values, mask) - mean) * jax.lax.rsqrt(masked_var(values, mask) + epsilon)
  return masked(whitened if shift_mean else whitened + mean, mask)


def row_sum(values: Array, mask: Array) -> Array:
  """Sum over time within the mask, float32[B]."""
  return jnp.sum(masked(values, mask) * mask, axis=-1)


def batch_mean(values: Array) -> Mean:
  """The mean over all entries, as a `Mean`."""
  return Mean(jnp.sum(values), jnp.asarray(values.size, jnp.float32))


class Moments(NamedTuple):
  """Of all numbers seen so far, float32[] each."""

  count: Array
  mean: Array
  var: Array  # biased

  @classmethod
  def none(cls) -> Moments:
    return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

  @classmethod
  def of(cls, values: Array) -> Moments:
    return cls(jnp.asarray(values.size, jnp.float32), jnp.mean(values), jnp.var(values))

  def and_of(self, others: Moments) -> Moments:
    """Of both together (Chan, Golub and LeVeque, 1979)."""
    count = self.count + others.count
    share = others.count / jnp.maximum(count, 1.0)
    difference = others.mean - self.mean
    within = (1.0 - share) * self.var + share * others.var
    return Moments(
      count,
      self.mean + share * difference,
      within + share * (1.0 - share) * jnp.square(difference),
    )


def explained_variance(predictions: Array, targets: Array, mask: Array) -> Array:
  """1 − Var(targets − predictions) / Var(targets) over the mask, float32[]: 1 is perfect, 0 the mean."""
  residual = masked_var(targets - predictions, mask)
  return 1.0 - residual / jnp.maximum(masked_var(targets, mask), 1e-8)
