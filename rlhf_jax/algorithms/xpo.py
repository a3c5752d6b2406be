"""Exploratory preference optimisation (arXiv:2405.21046, algorithm 1): online DPO that is drawn away from what the reference would say.

    y ~ π_θ,  y' ~ π_ref,  (y_w, y_l) = the two by their scores
    L(θ) = E [ −log σ(β (u_w − u_l)) + α log π_θ(y'|x) ],   u = log π(y|x) / π_ref(y|x)

The mean is over pairs, one a prompt. On average the second term is −α KL(π_ref ‖ π) but for a constant, whose gradient at the
reference is 0: it is optimism, which lowers what the reference's own answers are given. TRL's `loss_type="ipo"` is here too.
`labels`, ties and cut answers are as in `online_dpo`. A row of a rollout by the policy is followed by one of the reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.algorithms import dpo, online_dpo, reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, Policy, PreferenceBatch, Rollout, keep_extra, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
SECOND = "reference"
PAIRED = True


@hyperparameters
class Config(online_dpo.Compared):
  beta: float = option(0.1, above=0)
  alpha: float = option(1e-5, at_least=0)  # how much optimism; TRL's default
  loss_type: str = option("sigmoid", choices=("sigmoid", "ipo"))


@struct.dataclass
class Batch:
  pairs: PreferenceBatch
  own_won: Array  # bool[B], where the chosen answer is the policy's


def xpo_loss(
  logps_w, logps_l, ref_logps_w, ref_logps_l, own_won, config: Config, *, preference=1.0
) -> tuple[Array, Array]:
  """DPO's loss and the optimism, float32[B] each, from sequence log-probabilities float32[B]."""
  of = dpo.Config(beta=config.beta, loss_type=config.loss_type)
  losses = dpo.dpo_loss(logps_w, logps_l, ref_logps_w, ref_logps_l, of, preference=preference)
  return losses, config.alpha * jnp.where(own_won, logps_l, logps_w)


def make(policy: Policy) -> Algorithm:
  """XPO on `Rollout`s whose rows are in turn by the policy and by the reference."""

  def annotate(params, frozen, rollout: Rollout, config, extra):
    own, other = (jax.tree.map(lambda x, i=i: x[i::2], rollout) for i in range(2))
    seen, measured = reinforce.look(policy, params, frozen, own, config)
    ref = policy.evaluate(frozen["reference"], frozen, other.sequences, config.temperature)
    mask = other.sequences.response_mask
    raw = stats.row_sum(other.rewards, mask)
    scores = reinforce.shaped_score(raw, jnp.sum(mask, axis=-1), other.truncated, config)
    pairs, own_won = online_dpo.preferences(
      online_dpo.answers(own, seen.ref_logps, seen.scores, config),
      online_dpo.answers(other, ref.logps, scores, config),
      config.labels,
    )
    measured["rewards/reference"] = stats.batch_mean(raw)
    return Batch(pairs, own_won), measured

  def loss(params, frozen, batch: Batch, config, extra):
    pairs = batch.pairs
    side_w, side_l = preference.of_both(
      lambda rows: policy.evaluate(params, frozen, rows, config.temperature), pairs
    )
    mask_w, mask_l = pairs.chosen.response_mask, pairs.rejected.response_mask
    now = stats.row_sum(side_w.logps, mask_w), stats.row_sum(side_l.logps, mask_l)
    ref = (
      stats.row_sum(pairs.ref_chosen_logps, mask_w),
      stats.row_sum(pairs.ref_rejected_logps, mask_l),
    )
    losses, optimism = xpo_loss(*now, *ref, batch.own_won, config, preference=pairs.preference)
    terms = {"dpo": stats.batch_mean(losses), "optimism": stats.batch_mean(optimism)}
    rewards = config.beta * (now[0] - ref[0]), config.beta * (now[1] - ref[1])
    return terms, preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)

  return Algorithm(no_extra, annotate, loss, keep_extra)
