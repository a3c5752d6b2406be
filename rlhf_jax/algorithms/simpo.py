"""Simple preference optimisation: no reference, and log-probabilities a token (arXiv:2405.14734, eq. 6).

    r(y) = β log π(y|x) / |y|
    L(θ) = − E log σ(r(y_w) − r(y_l) − γ)

The mean is over pairs. γ is the margin by which the rewards should differ. `label_smoothing` ε makes it
−(1 − ε) log σ(z) − ε log σ(−z), as the authors' code does; a pair of `preference` p has the loss p f(y_w, y_l) +
(1 − p) f(y_l, y_w).
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.ops import reward as reward_ops
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


def reward(logps: Array, config: Config) -> Array:
  """r(y) float32[B] from log-probabilities averaged over each response, float32[B]."""
  return config.beta * logps


def margin_loss(reward_w: Array, reward_l: Array, config) -> Array:
  """Loss float32[B] of rewards float32[B] that should differ by `config.gamma`."""
  margin = reward_w - reward_l - config.gamma
  return reward_ops.logistic_loss(margin, 1.0 - config.label_smoothing)


def make(policy: Policy) -> Algorithm:
  """SimPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""
  return make_by_reward(policy, "simpo", reward)


def make_by_reward(policy: Policy, name: str, reward: Callable) -> Algorithm:
  """`margin_loss` on another `reward(logps, config)` of the average log-probability."""

  def loss(params, frozen, pairs, config, extra):
    side_w, side_l = preference.of_both(
      lambda rows: policy.evaluate(params, frozen, rows, 1.0), pairs
    )
    average = lambda side, rows: preference.average_logps(side.logps, rows.response_mask)
    rewards = (
      reward(average(side_w, pairs.chosen), config),
      reward(average(side_l, pairs.rejected), config),
    )
    losses = preference.both_ways(
      lambda w, l: margin_loss(w, l, config), *rewards, pairs.preference
    )
    metrics = preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)
    return {name: stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
