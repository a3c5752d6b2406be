"""Odds-ratio preference optimisation: imitation and preference in one stage (arXiv:2403.07691, eq. 6 and 7).

    odds(y) = p(y) / (1 − p(y)),   p(y) = π(y|x)^(1/|y|)
    L(θ) = E[− log π(y_w|x) / |y_w|] − λ E log σ(log odds(y_w) − log odds(y_l))

Both means are over pairs; λ is `beta`. TRL takes the first over all tokens of the batch, the prompt's included; we take
each response's own mean, as the paper writes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_annotation, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "pairs"


@hyperparameters
class Config:
  learning_rate: float = option(8e-6, above=0)
  beta: float = option(0.1, at_least=0)


def log_odds(logps: Array) -> Array:
  """log p / (1 − p), float32[B], of log p float32[B] below 0."""
  # The most probable float32 below 1 stands for 1, whose odds are infinite.
  logps = jnp.minimum(logps, -jnp.finfo(jnp.float32).epsneg)
  return logps - jnp.log(-jnp.expm1(logps))


def odds_ratio_loss(logps_w: Array, logps_l: Array) -> Array:
  """−log σ of the log odds ratio, float32[B], from log-probabilities averaged over each response."""
  return -jax.nn.log_sigmoid(log_odds(logps_w) - log_odds(logps_l))


def make(policy: Policy) -> Algorithm:
  """ORPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""

  def loss(params, frozen, pairs, config, extra):
    side_w, side_l = preference.of_both(
      lambda rows: policy.evaluate(params, frozen, rows, 1.0), pairs
    )
    logps_w = preference.average_logps(side_w.logps, pairs.chosen.response_mask)
    logps_l = preference.average_logps(side_l.logps, pairs.rejected.response_mask)
    losses = preference.both_ways(odds_ratio_loss, logps_w, logps_l, pairs.preference)
    terms = {
      "nll": stats.batch_mean(-logps_w),
      "odds_ratio": stats.batch_mean(config.beta * losses),
    }
    rewards = config.beta * logps_w, config.beta * logps_l
    return terms, preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
