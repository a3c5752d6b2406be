"""REINFORCE with the other answers to the same prompt as baseline (arXiv:2402.14740; Kool et al. 2019).

    R(y) = score(y) − β Σ_t (log π_old(y_t) − log π_ref(y_t))
    A_i = R_i − 1/(G − 1) Σ_{j ≠ i} R_j
    L(θ) = − E min(ρ A, clip(ρ, 1 ± ε) A),   ρ = π(y) / π_old(y)

The mean is over answers, and ρ is the ratio of whole answers. At the first update after writing, −∇L is A ∇log π(y), and on average the
exact gradient of E[score] − β KL(π ‖ π_ref). The paper has no ratio, which only matters from the second update of
a batch on; clip and defaults follow TRL. A group whose answers all score the same has advantages 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import groups, policy_gradients, stats
from rlhf_jax.types import Algorithm, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True


@hyperparameters
class Config(reinforce.Common):
  group: int = option(2, at_least=2)  # G, answers to each prompt
  clip_eps: float = option(0.2, above=0)  # of the ratio of whole answers
  normalize_advantages: bool = False  # to mean 0, standard deviation 1 over the batch


def rloo_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """R_i less the mean of the others of its group, in every token; float32[B, T]."""
  rewards = seen.rewards(config.kl_coef)
  advantages = groups.less_the_others(rewards, config.group)
  if config.normalize_advantages:
    centred = advantages - jnp.mean(advantages)
    advantages = centred / (jnp.std(advantages, ddof=1) + 1e-4)
  metrics = {
    "rewards/total": stats.batch_mean(rewards),
    **groups.metrics(seen.scores, config.group),
  }
  return seen.on_tokens(advantages), metrics


def rloo_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """The clipped surrogate of whole answers; the mean over answers."""
  mask = batch.sequences.response_mask
  log_ratio = policy_gradients.sequence_log_ratio(logps, batch.old_logps, mask)
  losses, metrics = reinforce.clipped_loss(
    log_ratio, batch, low=config.clip_eps, high=config.clip_eps
  )
  # Every token of an answer holds the answer's loss, and their mean is that again.
  return {"policy": policy_gradients.AGGREGATIONS["sequence"](losses, mask, None)}, metrics


def make(policy: Policy) -> Algorithm:
  """RLOO on `Rollout`s with the answers to each prompt in adjacent rows."""
  return reinforce.make_by(policy, rloo_advantages, rloo_loss)
