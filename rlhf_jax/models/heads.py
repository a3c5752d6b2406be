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


def normalize(params: dict, scores: Array) -> dict:
  """`params` with gain and bias folded into the head, so that `scores` would have mean 0 and std 1.

  `scores` float32[N] are the model's own on samples of the reference policy (arXiv:1909.08593,
  section 2.1). Raises ValueError when they are all equal or not finite.
  """
  mean, std = float(jnp.mean(scores)), float(jnp.std(scores))
  if not (jnp.isfinite(mean) and std > 1e-6):
    raise ValueError(
      f"the reward model scores {scores.shape[0]} reference samples with mean {mean} and standard "
      f"deviation {std}; it cannot be normalized. Train it longer or check its pairs."
    )
  head = params["reward_head"]
  folded = {"kernel": head["kernel"] / std, "bias": (head["bias"] - mean) / std}
  return {**params, "reward_head": folded}
