"""Heads that read numbers from a hidden state: the reward of a text, its ratings, the value before a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.types import Params

Array = jax.Array


def init_head(key: Array, size: int, std: float, outputs: int | None = None) -> Params:
  """A linear head of `size` inputs, its weights normal with deviation `std`; 0 makes it output 0.

  It says one number, or with `outputs` a vector of that many.
  """
  shape = (size,) if outputs is None else (size, outputs)
  return {"kernel": std * jax.random.normal(key, shape), "bias": jnp.zeros(shape[1:])}


def apply_head(head: Params, hidden: Array) -> Array:
  """hidden[..., D] · kernel + bias, float32[...], or float32[..., A] of a head with A outputs."""
  hidden = hidden.astype(jnp.float32)
  said = jnp.matmul(hidden, head["kernel"], precision=jax.lax.Precision.HIGHEST)
  return said + jnp.broadcast_to(head["bias"], said.shape)


def unnormalized() -> Params:
  """The gain and bias that change nothing."""
  return {"gain": jnp.ones(()), "bias": jnp.zeros(())}


def normalize(normalization: Params, scores: Array) -> Params:
  """Gain and bias after which `scores` would have mean 0 and std 1; `scores` were read under `normalization`.

  `scores` float32[N] are the reward model's own on samples of the reference policy (arXiv:1909.08593,
  section 2.1). The head keeps the scale that it learned, which is that of its probabilities. Raises
  ValueError when the scores are all equal or not finite.
  """
  mean, std = jnp.mean(scores), jnp.std(scores)
  if not (jnp.isfinite(mean) and std > 1e-6):
    raise ValueError(
      f"the reward model scores {scores.shape[0]} reference samples with mean {float(mean)} and standard "
      f"deviation {float(std)}; it cannot be normalized. Train it longer or check its feedback."
    )
  gain, bias = normalization["gain"], normalization["bias"]
  return {"gain": gain / std, "bias": (bias - mean) / std}
