"""PPO-Lagrangian: the most reward at which answers cost no more than a limit (arXiv:2310.12773, section 3; Ray et al. 2019).

    max_θ  E[r(x, y)] − β KL(π_θ ‖ π_ref)   subject to   E[c(x, y)] ≤ d

A multiplier λ ≥ 0 makes the constraint a price. PPO climbs

    A = (A_r − λ A_c) / (1 + λ)

and after every batch λ climbs, too, where the batch's mean cost exceeds d, and falls where it stays below:

    projected   λ ← max(0, λ + η (mean c − d))       gradient ascent (Ray et al. 2019)
    log         log λ ← log λ + η λ (mean c − d)      the same on log λ, which never reaches 0 (arXiv:2310.12773)

GAE is linear, so A is that of the one score (r − λ c) / (1 + λ) under a critic of that score, and all the rest is PPO.

Differences from the papers: they have one critic of r and one of c, whose targets stay when λ changes; the one critic here
has to follow λ, as it follows the policy. The KL penalty stands outside of the division, which is what the paper's comes to,
where half of it is taken from r and half added to c: their β is twice ours. The rules of `ppo.Config` for cut
and short answers, for clipping and for scaling hold for the combined score. The paper averages c over the last 128
episodes, which is about a batch.

Where c never exceeds d and λ begins at 0 this is PPO, number for number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import ppo
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import stats
from rlhf_jax.types import Algorithm, Mean, Policy, Rollout

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
COSTS = True  # needs `Rollout.costs`

# The next λ from (λ, η, mean c − d).
UPDATES = {
  "projected": lambda multiplier, rate, excess: jnp.maximum(multiplier + rate * excess, 0.0),
  "log": lambda multiplier, rate, excess: multiplier * jnp.exp(rate * multiplier * excess),
}


@hyperparameters
class Config(ppo.Config):
  # d, in the cost model's units: a probability where that learned from marks.
  cost_limit: float = option(0.5)
  multiplier: float = option(1.0, at_least=0)  # λ at the start
  multiplier_rate: float = option(0.1, at_least=0)  # η
  multiplier_update: str = option("projected", choices=tuple(UPDATES))

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.multiplier_update == "log" and self.multiplier == 0:
      raise ValueError(
        f"{where}.multiplier=0.0 stays 0 with multiplier_update='log'; start above 0, or use 'projected'."
      )


def combined(rewards: Array, costs: Array, multiplier: Array) -> Array:
  """(r − λ c) / (1 + λ), of the shape of both."""
  return (rewards - multiplier * costs) / (1.0 + multiplier)


def make(policy: Policy) -> Algorithm:
  """PPO-Lagrangian on `Rollout`s with costs; `policy` needs a value head."""
  unconstrained = ppo.make(policy)

  def init_extra(params, config):
    multiplier = jnp.asarray(config.multiplier, jnp.float32)
    return {**unconstrained.init_extra(params, config), "multiplier": multiplier}

  def annotate(params, frozen, rollout: Rollout, config, extra):
    batch, metrics = unconstrained.annotate(params, frozen, scored(rollout, extra), config, extra)
    return batch, measured(metrics, rollout, extra)

  def at_once(params, frozen, rollout: Rollout, config, extra):
    terms, learned, batch, metrics = unconstrained.at_once(
      params, frozen, scored(rollout, extra), config, extra
    )
    return terms, learned, batch, measured(metrics, rollout, extra)

  def scored(rollout: Rollout, extra) -> Rollout:
    scores = combined(rollout.rewards, rollout.costs, extra["multiplier"])
    return rollout.replace(rewards=scores, costs=None)

  def measured(metrics, rollout: Rollout, extra):
    mask = rollout.sequences.response_mask
    rewards = stats.row_sum(rollout.rewards, mask)
    one = jnp.ones((), jnp.float32)
    return {
      **metrics,
      "rewards/combined": metrics["rewards/mean"],
      "rewards/mean": stats.batch_mean(rewards),
      "rewards/std": Mean(jnp.std(rewards), one),
      "costs/mean": stats.batch_mean(stats.row_sum(rollout.costs, mask)),
      "costs/multiplier": Mean(extra["multiplier"], one),
    }

  def update_extra(extra, params, metrics, config):
    extra = unconstrained.update_extra(extra, params, metrics, config)
    update = UPDATES[config.multiplier_update]
    excess = metrics["costs/mean"] - config.cost_limit
    return {**extra, "multiplier": update(extra["multiplier"], config.multiplier_rate, excess)}

  return unconstrained._replace(
    init_extra=init_extra, annotate=annotate, update_extra=update_extra, at_once=at_once
  )
