"""ReMax: REINFORCE with the score of the greedy answer as baseline (arXiv:2310.10505, eq. 6).

    A_t = score(y) − score(ŷ) − β Σ_{s ≥ t} (log π_old(y_s) − log π_ref(y_s)),   ŷ the greedy answer of π_old
    L(θ) = − E Σ_t A_t log π_θ(y_t)

The mean is over answers, of the sum over each one's tokens. ŷ depends on the prompt alone, so that −∇L is on average the
exact gradient of E[score] − β KL(π ‖ π_ref). Every step writes each prompt's answer twice, once greedily. The greedy
answer's score is clipped like others, but no rule for cut answers is applied to it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters
from rlhf_jax.ops import returns, stats
from rlhf_jax.types import Algorithm, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
SECOND = "greedy"  # fills Rollout.baseline


@hyperparameters
class Config(reinforce.Common):
  pass


def remax_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """The rewards to come less the greedy answer's, float32[B, T]."""
  raw, cut = seen.rollout.baseline, seen.rollout.truncated
  # Clipped alone: a baseline needs no rule for answers that are cut or too short.
  greedy = reinforce.shaped_score(raw, jnp.full_like(raw, jnp.inf), jnp.zeros_like(cut), config)
  rewards = returns.at_last(seen.scores - greedy, seen.chosen) - config.kl_coef * seen.kl
  nothing = jnp.zeros_like(rewards)
  to_come = returns.gae(rewards, nothing, seen.chosen, nothing[:, 0], gamma=1.0, lambda_=1.0)
  metrics = {
    "rewards/total": stats.batch_mean(seen.rewards(config.kl_coef)),
    "rewards/greedy": stats.batch_mean(greedy),
  }
  return to_come, metrics


def make(policy: Policy) -> Algorithm:
  """ReMax on `Rollout`s with a baseline."""
  return reinforce.make_by(policy, remax_advantages, reinforce.reinforce_loss)
