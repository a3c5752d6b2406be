"""REINFORCE++: PPO's reward and clip without its critic (arXiv:2501.03262).

    r_t = − β (log π_old(y_t) − log π_ref(y_t)) + [t is last] score
    A_t = Σ_{s ≥ t} γ^{s − t} r_s,   then normalised to mean 0, standard deviation 1 over the batch's tokens
    L(θ) = − E_t min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t)

The mean is over the batch's response tokens. With baseline="group_mean" (REINFORCE++-baseline) the score is first taken
less the mean of its group's; the paper then moves the KL into the loss as k2 (kl_in="loss"), whose gradient, for each token given those
before it, is that of KL(π ‖ π_ref). Normalisation is over the whole batch, so that the size of minibatches changes nothing
but the number of steps; where all advantages are equal they become 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import groups, kl, returns, stats
from rlhf_jax.types import Algorithm, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True


@hyperparameters
class Config(reinforce.Common):
  kl_coef: float = option(0.01, at_least=0)  # β
  kl_in: str = option("reward", choices=("reward", "loss"))  # k1 there, k2 here
  gamma: float = option(1.0, above=0, at_most=1)
  clip_eps: float = option(0.2, above=0)
  group: int = option(1, at_least=1)  # G, answers to each prompt
  baseline: str = option("none", choices=("none", "group_mean"))

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.baseline == "group_mean" and self.group < 2:
      raise ValueError(
        f"{where}.group={self.group} leaves nothing of a score less its group's mean; set it to at least 2, or "
        "baseline='none'."
      )


def reinforce_pp_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """Whitened sums of the rewards to come, float32[B, T]."""
  grouped = config.baseline == "group_mean"
  scores = groups.centred(seen.scores, config.group) if grouped else seen.scores
  rewards = returns.at_last(scores, seen.chosen)
  if config.kl_in == "reward":
    rewards = rewards - config.kl_coef * seen.kl
  nothing = jnp.zeros_like(rewards)
  to_come = returns.gae(
    rewards, nothing, seen.chosen, nothing[:, 0], gamma=config.gamma, lambda_=1.0
  )
  metrics = {"rewards/total": stats.batch_mean(stats.row_sum(rewards, seen.chosen))}
  if config.group > 1:
    metrics |= groups.metrics(seen.scores, config.group)
  return stats.whiten(to_come, seen.learned), metrics


def reinforce_pp_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """The clipped surrogate of every token, and β k2 where the KL is in the loss; means over tokens."""
  mask = batch.sequences.response_mask
  losses, metrics = reinforce.clipped_loss(
    logps - batch.old_logps, batch, low=config.clip_eps, high=config.clip_eps
  )
  terms = {"policy": stats.masked_sum(losses, mask)}
  if config.kl_in == "loss":
    terms["kl"] = stats.masked_sum(config.kl_coef * kl.kl_k2(logps, batch.ref_logps), mask)
  return terms, metrics


def make(policy: Policy) -> Algorithm:
  """REINFORCE++ on `Rollout`s; with a group's mean as baseline, its answers stand in adjacent rows."""
  return reinforce.make_by(policy, reinforce_pp_advantages, reinforce_pp_loss)
