"""Correction of rollouts that another policy wrote than the one that learns: an older one, or one in another precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import kl, policy_gradients, stats
from rlhf_jax.ops.stats import Mean

Array = jax.Array

# log π / π_sampler of every token, float32[B, T], or of its whole response in each of its tokens.
LEVELS = {
  "token": lambda logps, sampler_logps, mask: logps - sampler_logps,
  "sequence": policy_gradients.sequence_log_ratio,
}
# What becomes of a weight outside [low, high].
MODES = {
  "truncate": lambda weights, low, high: jnp.clip(weights, low, high),
  "mask": lambda weights, low, high: jnp.where((weights >= low) & (weights <= high), weights, 0.0),
}


def weights(
  logps: Array, sampler_logps: Array, mask: Array, *, level: str, mode: str, low, high
) -> Array:
  """π / π_sampler, truncated at or masked outside [low, high], float32[B, T]; 0 outside the mask.

  The level "sequence" without bounds is exact: the expectation over π_sampler of weights times anything is that over π.
  "token" leaves out that what stands before a token was drawn by the sampler too, for a smaller variance. A bound
  makes either biased and its variance finite (truncated importance sampling, Ionides 2008). The log-ratio stands
  still beyond ±20.
  """
  log_ratio = LEVELS[level](stats.masked(logps, mask), stats.masked(sampler_logps, mask), mask)
  return stats.masked(MODES[mode](jnp.exp(jnp.clip(log_ratio, -20.0, 20.0)), low, high), mask)


def mismatch(logps: Array, sampler_logps: Array, mask: Array) -> dict[str, Mean]:
  """How far the sampler's log-probabilities are from the learner's own, as metrics.

  The mean and the largest absolute difference of a token, and KL(π_sampler ‖ π) a token by k3.
  """
  logps, sampler_logps = stats.masked(logps, mask), stats.masked(sampler_logps, mask)
  difference = jnp.abs(sampler_logps - logps)
  return {
    "rollout/mismatch": stats.masked_sum(difference, mask),
    "rollout/mismatch_max": Mean(jnp.max(difference), jnp.ones(())),
    "rollout/mismatch_kl": stats.masked_sum(kl.kl_k3(sampler_logps, logps), mask),
  }


def used(weights: Array, mask: Array) -> dict[str, Mean]:
  """What the weights are on average, and the share of tokens whose weight is 0."""
  return {
    "rollout/weight": stats.masked_sum(weights, mask),
    "rollout/weightless": stats.masked_sum((weights == 0).astype(jnp.float32), mask),
  }
