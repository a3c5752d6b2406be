"""DPO on rankings: Plackett and Luce's model of the implicit rewards (arXiv:2305.18290, appendix A.3, eq. 20).

    r_k = β log π(y_k|x) / π_ref(y_k|x)
    L(θ) = − E log Π_k exp(r_k) / Σ_{j not yet placed} exp(r_j)

The mean is over rankings. Two answers make it DPO. Equal ranks are a tie: the mean over the orders of the tied.
Answers without a rank are left out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import kl, reward, stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "rankings"


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)


def pl_dpo_loss(logps: Array, ref_logps: Array, ranks: Array, config: Config) -> Array:
  """Loss float32[B] from sequence log-probabilities float32[B, K]; `ranks` int[B, K], 1 best, 0 left out."""
  rewards = config.beta * (logps - ref_logps)
  return reward.plackett_luce_loss(rewards, ranks, jnp.zeros(ranks.shape, bool))


def make(policy: Policy) -> Algorithm:
  """Plackett-Luce DPO on batches of `RankingBatch`; the reference's log-probabilities are computed if absent."""

  def token_logps(params, frozen, answers) -> Array:
    """float32[B, K, T], from one pass over all answers."""
    shape = answers.tokens.shape
    rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), answers)
    return policy.evaluate(params, frozen, rows, 1.0).logps.reshape(shape)

  def annotate(params, frozen, batch, config, extra):
    if batch.ref_logps is None:
      batch = batch.replace(ref_logps=token_logps(frozen["reference"], frozen, batch.answers))
    return batch, {}

  def loss(params, frozen, batch, config, extra):
    mask, ranks = batch.answers.response_mask, batch.ranks
    now = token_logps(params, frozen, batch.answers)
    logps, ref_logps = stats.row_sum(now, mask), stats.row_sum(batch.ref_logps, mask)
    losses = pl_dpo_loss(logps, ref_logps, ranks, config)

    rewards, ranked = config.beta * (logps - ref_logps), ranks > 0
    best = (ranks == 1).astype(jnp.float32)
    worst = (ranked & (ranks == jnp.max(ranks, axis=1, keepdims=True))).astype(jnp.float32)
    better = ranked[:, :, None] & (ranks[:, :, None] < ranks[:, None])  # [B, i, j]: i before j
    ordered = rewards[:, :, None] > rewards[:, None]
    from_reference = stats.row_sum(kl.kl_k3(batch.ref_logps, now), mask)
    best_reward, worst_reward = (stats.row_sum(rewards, x) / jnp.sum(x, 1) for x in (best, worst))
    metrics = {
      "rewards/chosen": stats.masked_sum(rewards, best),
      "rewards/rejected": stats.masked_sum(rewards, worst),
      "rewards/margin": stats.batch_mean(best_reward - worst_reward),
      "rewards/accuracy": stats.masked_sum(ordered * 1.0, better * 1.0),
      "logps/chosen": stats.masked_sum(logps, best),
      "logps/rejected": stats.masked_sum(logps, worst),
      "policy/kl_reference": stats.masked_sum(from_reference, ranked * 1.0),
    }
    return {"pl_dpo": stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, annotate, loss, keep_extra)
