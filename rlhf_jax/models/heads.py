"""Heads that read one number from a hidden state: reward of a text, or value before a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.types import Params

Array = jax.Array


def init_head(key: Array, size: int, std: float) -> Params:
  """A linear head of `size` inputs, its weights normal with deviation `std`; 0 makes it output 0."""
  return {"kernel": std * jax.random.normal(key, (size,)), "bias": jnp.zeros(())}


def apply_head(head: Params, hidden: Array) -> Array:
  """hidden[..., D] · kernel + bias, float32[...]."""
  hidden = hidden.astype(jnp.float32)
  return jnp.matmul(hidden, head["kernel"], precision=jax.lax.Precision.HIGHEST) + head["bias"]
