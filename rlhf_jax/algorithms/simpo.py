"""Simple preference optimisation: no reference, and log-probabilities a token (arXiv:2405.14734, eq. 6).

    z = β (log π(y_w|x) / |y_w| − log π(y_l|x) / |y_l|) − γ
    L(θ) = − E log σ(z)

The mean is over pairs. γ is the margin by which the rewards should differ. `label_smoothing` ε makes it
−(1 − ε) log σ(z) − ε log σ(−z), as the authors' code does; a pair of `preference` p has the loss p f(y_w, y_l) +
(1 − p) f(y_l, y_w).
"""

from __future__ import annotations

import jax

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_annotation, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "pairs"


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(2.0, above=0)
  gamma: float = option(1.0, at_least=0)
  label_smoothing: float = option(0.0, at_least=0, below=0.5)


def simpo_loss(logps_w: Array, logps_l: Array, config: Config) -> Array:
  """Loss float32[B] from log-probabilities averaged over each response, float32[B]."""
  margin = config.beta * (logps_w - logps_l) - config.gamma
  return preference.smoothed_log_sigmoid_loss(margin, config.label_smoothing)


def make(policy: Policy) -> Algorithm:
  """SimPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""

  def loss(params, frozen, pairs, config, extra):
    side_w, side_l = preference.split(policy.evaluate(params, frozen, pairs.both, 1.0))
    logps_w = preference.average_logps(side_w.logps, pairs.chosen.response_mask)
    logps_l = preference.average_logps(side_l.logps, pairs.rejected.response_mask)
    losses = preference.both_ways(
      lambda w, l: simpo_loss(w, l, config), logps_w, logps_l, pairs.preference
    )
    rewards = config.beta * logps_w, config.beta * logps_l
    metrics = preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)
    return {"simpo": stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
