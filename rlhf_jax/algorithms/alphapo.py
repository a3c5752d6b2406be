"""AlphaPO: SimPO with a reward whose shape α sets (arXiv:2501.03884).

    r(y) = β (1 − p(y)^−α) / α,   p(y) = π(y|x)^(1/|y|)
    L(θ) = − E log σ(r(y_w) − r(y_l) − γ)

The mean is over pairs. α → 0 is SimPO, α > 0 flattens the reward of probable answers, α < 0 that of improbable ones.
Smoothing and soft preferences are SimPO's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import simpo
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.types import Algorithm, Policy

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


def make(policy: Policy) -> Algorithm:
  """AlphaPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""
  return simpo.make_by_reward(policy, "alphapo", reward)
