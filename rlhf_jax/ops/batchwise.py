"""Losses of a whole batch, taken apart into rows, so that micro-batches and devices change nothing.

A loss such as a correlation or a sorted comparison is a function F of all rows' numbers at once, and
no sum over rows. Its gradient is one, ∇F = Σ_i ∂F/∂x_i · ∇x_i, so F is computed where the whole batch
is seen (an algorithm's `annotate`) and learned from row by row:

    f_i = F(x) + B Σ_j ∂F/∂x_ij (x_ij − stop_gradient(x_ij))

The mean of f_i over the batch has F's value and, at the parameters that x was computed with, its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Linear:
  """F(x) on the rows of its batch; an algorithm's batch carries it from `annotate` to `loss`."""

  value: Array  # float32[B], F(x) in every row
  slopes: tuple[Array, ...]  # B · ∂F/∂x, each float32[B, ...] like its x


def linearize(function: Callable[..., Array], *xs: Array) -> Linear:
  """`function(*xs)`, float32[], of arrays with the batch in front; carries no gradient."""
  B = xs[0].shape[0]
  xs = jax.lax.stop_gradient(xs)
  value, slopes = jax.value_and_grad(function, argnums=tuple(range(len(xs))))(*xs)
  return Linear(jnp.full(B, value), tuple(B * slope for slope in slopes))


def per_row(linear: Linear, *xs: Array) -> Array:
  """f_i of the rows at hand, float32[B], from the same `xs` computed again, this time with a gradient."""
  rows = linear.value
  for slope, x in zip(linear.slopes, xs, strict=True):
    moved = slope * (x - jax.lax.stop_gradient(x))
    rows = rows + jnp.sum(moved.reshape(moved.shape[0], -1), axis=-1)
  return rows
