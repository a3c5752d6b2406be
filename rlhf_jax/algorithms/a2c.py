"""Advantage actor-critic: one on-policy update a batch, without ratio or clip (arXiv:1602.01783, section 4).

    r_t = − β (log π_old(y_t) − log π_ref(y_t)) + [t is last] score
    L(θ) = − E_t A_t log π_θ(y_t) + c_v ½ (V − R_t)² − c_e entropy,   R_t = A_t + V_t

The means are over the batch's response tokens. Advantages are GAE (arXiv:1506.02438) with λ = 1, the paper's returns to
the end of the episode less V; one synchronous batch stands for the paper's threads. A cut response is followed by
nothing: its last value is not bootstrapped, as PPO's may be.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import returns, stats
from rlhf_jax.types import Algorithm, Mean, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"


@hyperparameters
class Config(reinforce.Common):
  learning_rate: float = option(1e-5, above=0)
  entropy_coef: float | None = option(0.01, at_least=0)  # None leaves its gradient uncomputed
  value_coef: float = option(0.5, at_least=0)  # c_v
  gamma: float = option(1.0, above=0, at_most=1)
  gae_lambda: float = option(1.0, at_least=0, at_most=1)


def a2c_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """GAE of the token rewards, float32[B, T]."""
  rewards = returns.at_last(seen.scores, seen.chosen) - config.kl_coef * seen.kl
  end = jnp.zeros_like(seen.scores)
  advantages = returns.gae(
    rewards, seen.values, seen.chosen, end, gamma=config.gamma, lambda_=config.gae_lambda
  )
  explained = stats.explained_variance(seen.values, advantages + seen.values, seen.chosen)
  metrics = {
    "rewards/total": stats.batch_mean(stats.row_sum(rewards, seen.chosen)),
    "value/explained_variance": Mean(explained, jnp.ones(())),
  }
  return advantages, metrics


def a2c_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """−A log π; the mean over tokens."""
  mask = batch.sequences.response_mask
  return {"policy": stats.masked_sum(-batch.advantages * logps, mask)}, {}


def value_loss(values: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """c_v ½ (V − R)²; the mean over tokens."""
  mask = batch.sequences.response_mask
  losses = 0.5 * jnp.square(values - batch.returns)
  metrics = {
    "value/loss": stats.masked_sum(losses, mask),
    "value/mean": stats.masked_sum(values, mask),
  }
  return {"value": stats.masked_sum(config.value_coef * losses, mask)}, metrics


def make(policy: Policy) -> Algorithm:
  """A2C on `Rollout`s; `policy` needs a value head."""
  return reinforce.make_by(policy, a2c_advantages, a2c_loss, value_loss=value_loss)
