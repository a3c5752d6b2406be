"""AlphaPO: SimPO with a reward whose shape α sets (arXiv:2501.03884).

    r(y) = β (1 − p(y)^−α) / α,   p(y) = π(y|x)^(1/|y|)
    L(θ) = − E log σ(r(y_w) − r(y_l) − γ)

The mean is over pairs. α → 0 is SimPO, α > 0 flattens the reward of probable answers, α < 0 that of improbable ones.
Smoothing and soft preferences are SimPO's.
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
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(2.0, above=0)
  gamma: float = option(1.0, at_least=0)
  alpha: float = option(0.25)  # not 0, which is SimPO
  label_smoothing: float = option(0.0, at_least=0, below=0.5)

  def assert_sound(self, where: str) -> None:
    if self.alpha == 0:
      raise ValueError(f"{where}.alpha=0 divides by it; its limit there is algorithm.name=simpo.")


def reward(logps: Array, config: Config) -> Array:
  """r(y) float32[B] from log-probabilities averaged over each response, float32[B]."""
  return config.beta * -jnp.expm1(-config.alpha * logps) / config.alpha


def alphapo_loss(logps_w: Array, logps_l: Array, config: Config) -> Array:
  """Loss float32[B] from log-probabilities averaged over each response, float32[B]."""
  margin = reward(logps_w, config) - reward(logps_l, config) - config.gamma
  return preference.smoothed_log_sigmoid_loss(margin, config.label_smoothing)


def make(policy: Policy) -> Algorithm:
  """AlphaPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""

  def loss(params, frozen, pairs, config, extra):
    side_w, side_l = preference.split(policy.evaluate(params, frozen, pairs.both, 1.0))
    logps_w = preference.average_logps(side_w.logps, pairs.chosen.response_mask)
    logps_l = preference.average_logps(side_l.logps, pairs.rejected.response_mask)
    losses = preference.both_ways(
      lambda w, l: alphapo_loss(w, l, config), logps_w, logps_l, pairs.preference
    )
    rewards = reward(logps_w, config), reward(logps_l, config)
    metrics = preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)
    return {"alphapo": stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
