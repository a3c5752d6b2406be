"""Nash-MD: towards the policy that no other is preferred to (arXiv:2312.00886, as Nash-MD-PG).

    y ~ π_θ,  y' ~ μ ∝ π_θ^(1 − c) π_ref^c,   P = σ(score(y) − score(y'))
    A_t = P − ½ − β Σ_{s ≥ t} (log π_old(y_s) − log π_ref(y_s))
    L(θ) = − E Σ_t A_t log π_θ(y_t)

The mean is over the policy's answers, of the sum over each one's tokens; μ, the mixture of both a token at a time, only answers beside
it and is not learned from. −∇L is on average the gradient of P(π ≻ μ) − β KL(π ‖ π_ref) with μ held fixed, ½ being a baseline.

The paper asks a preference model. A reward model is one by Bradley and Terry, σ of the difference of its scores: then
preferences have no cycles, and what is learned is the win rate against μ in place of the mean score.

With kl_in="loss" the KL is k2 in the loss, whose gradient is that of the KL of each token given those before it: so does TRL, where a
token answers for its own log-ratio and not for those after it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import kl, policy_gradients, returns, stats
from rlhf_jax.types import Algorithm, Policy, Rollout

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
SECOND = "mixture"
PAIRED = True


@hyperparameters
class Config(reinforce.Common):
  kl_coef: float = option(0.1, at_least=0)  # β
  kl_in: str = option("reward", choices=("reward", "loss"))  # k1 there, k2 here
  mixture_coef: float = option(0.5, at_least=0, at_most=1)  # c, the reference's share


def nash_md_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """P − ½, less β of the KL to come, float32[B, T]."""
  preferred = jax.nn.sigmoid(seen.scores - seen.rollout.baseline)
  rewards = returns.at_last(preferred - 0.5, seen.chosen)
  if config.kl_in == "reward":
    rewards = rewards - config.kl_coef * seen.kl
  nothing = jnp.zeros_like(rewards)
  to_come = returns.gae(rewards, nothing, seen.chosen, nothing[:, 0], gamma=1.0, lambda_=1.0)
  metrics = {
    "rewards/preference": stats.batch_mean(preferred),
    "rewards/mixture": stats.batch_mean(seen.rollout.baseline),
  }
  return to_come, metrics


def nash_md_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """−A log π, and β k2 where the KL is in the loss; sums over each answer's tokens, means over answers."""
  terms, metrics = reinforce.reinforce_loss(logps, batch, config)
  if config.kl_in == "loss":
    penalty = config.kl_coef * kl.kl_k2(logps, batch.ref_logps)
    mask = batch.sequences.response_mask
    terms["kl"] = policy_gradients.AGGREGATIONS["sum"](penalty, mask, None)
  return terms, metrics


def make(policy: Policy) -> Algorithm:
  """Nash-MD on `Rollout`s whose rows are in turn by the policy and by the mixture."""
  of_one = reinforce.make_by(policy, nash_md_advantages, nash_md_loss)

  def compared(rollout: Rollout, config) -> Rollout:
    """The policy's own answers, with the scores of the mixture's as baseline."""
    own, other = (jax.tree.map(lambda x, i=i: x[i::2], rollout) for i in range(2))
    mask = other.sequences.response_mask
    scores, lengths = stats.row_sum(other.rewards, mask), jnp.sum(mask, axis=-1)
    own = own.replace(baseline=reinforce.shaped_score(scores, lengths, other.truncated, config))
    if config.truncation == "mask":  # neither answer of the pair may be cut
      own = own.replace(truncated=own.truncated | other.truncated)
    return own

  def annotate(params, frozen, rollout: Rollout, config, extra):
    return of_one.annotate(params, frozen, compared(rollout, config), config, extra)

  def at_once(params, frozen, rollout: Rollout, config, extra):
    return of_one.at_once(params, frozen, compared(rollout, config), config, extra)

  return of_one._replace(annotate=annotate, at_once=at_once)
