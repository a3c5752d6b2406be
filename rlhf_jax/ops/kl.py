"""KL divergence from samples, and the controller that holds it at a target.

With x drawn from the policy π and r = π_ref(x) / π(x), three estimators of KL(π ‖ π_ref)
(J. Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html). Subtracted from a
reward, only k1 gives the gradient of the true KL penalty.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def kl_k1(logps: Array, ref_logps: Array) -> Array:
  """−log r: unbiased, may be negative."""
  return logps - ref_logps


def kl_k2(logps: Array, ref_logps: Array) -> Array:
  """(log r)² / 2: biased, small variance."""
  return 0.5 * jnp.square(logps - ref_logps)


def kl_k3(logps: Array, ref_logps: Array) -> Array:
  """(r − 1) − log r: unbiased and never negative."""
  log_ratio = ref_logps - logps
  return jnp.expm1(log_ratio) - log_ratio


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def adaptive_coefficient(coefficient: Array, kl: Array, episodes, *, target, horizon) -> Array:
  """The next KL coefficient, float32[] (arXiv:1909.08593, section 2.2).

    e = clip(KL / target − 1, −0.2, 0.2)
    β ← β (1 + e · episodes / horizon)

  `kl` is the mean over episodes of the response's summed k1.
  """
  error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
  return coefficient * (1.0 + error * episodes / horizon)
