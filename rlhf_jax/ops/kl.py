"""KL divergence from samples, and the controller that holds it at a target.

With x drawn from the policy π and r = π_ref(x) / π(x), three estimators of KL(π ‖ π_ref)
(J. Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html), and the exact one, a sum
over the vocabulary. Whose gradient each gives in expectation, where π wrote the answers:

| | subtracted from the reward | added to the loss |
|---|---|---|
| k1 | of KL(π ‖ π_ref) over whole answers | 0 |
| k2 | of nothing in particular | of KL(π ‖ π_ref), each token given those before it |
| k3 | of nothing in particular | of KL(π_ref ‖ π), each token given those before it |
| exact | of the KL of later tokens, through the prefixes that lead there | as k2's, without its variance |

What stands in the loss misses that a token decides which prefixes follow; what stands in the reward as an exact number misses
the token's own distribution: both together would be whole. `tests/algorithms/bias_table.py` measures all of
them.
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


def penalty(
  estimator: str, logps: Array, ref_logps: Array, exact: Array | None = None, clamp=None
) -> Array:
  """What each token is charged for, float32[B, T]: an estimate, or with estimator "exact" that number.

  `clamp` bounds it to ±clamp, and takes its gradient away there. OpenRLHF bounds every estimator to 10, verl k3 alone.
  """
  if clamp is not None:
    # Before the exponential in k3 overflows, whose infinite gradient times the clamp's 0 is NaN.
    logps, ref_logps = jnp.clip(logps - ref_logps, -80.0, 80.0), jnp.zeros_like(logps)
  found = exact if estimator == "exact" else KL_ESTIMATORS[estimator](logps, ref_logps)
  return found if clamp is None else jnp.clip(found, -clamp, clamp)


def adaptive_coefficient(
  coefficient: Array, kl: Array, episodes, *, target, horizon, error_clip=0.2
) -> Array:
  """The next KL coefficient, float32[] (arXiv:1909.08593, section 2.2).

    e = clip(KL / target − 1, −0.2, 0.2)
    β ← β (1 + e · episodes / horizon)

  `kl` is the mean over episodes of the response's summed k1; `error_clip` is the paper's 0.2.
  """
  error = jnp.clip(kl / target - 1.0, -error_clip, error_clip)
  return coefficient * (1.0 + error * episodes / horizon)
