"""Expert iteration: the best of a group of answers is imitated (RAFT, arXiv:2304.06767, algorithm 1).

    R(y) = score(y) − β Σ_t (log π_old(y_t) − log π_ref(y_t))
    L(θ) = − Σ_{y in the best k of each group} Σ_t log π_θ(y_t) / Σ |y|

The mean is over the tokens of what is imitated. With k = 1 and answers of equal length, −∇L is on average that of the cross-entropy
to the best-of-G policy, whose KL from the policy before is at most log G − (G − 1)/G. β is 0 in the paper's main experiments; above, the KL lowers the rank of
answers that the reference would not give, and is not in the gradient.

A group whose rewards are all equal has no best, and teaches nothing: its answers are the policy's own, whose likelihood has no slope on average.
Of answers that tie for the last place the earlier one is taken. A cut answer that is among the best is not imitated under truncation="mask".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import groups, stats
from rlhf_jax.types import Algorithm, Policy, Rollout

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True


@hyperparameters
class Config(reinforce.Common):
  kl_coef: float = option(0.0, at_least=0)  # β
  group: int = option(8, at_least=2)  # G, answers to each prompt
  keep: int = option(1, at_least=1)  # k, of which this many are imitated

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.keep >= self.group:
      raise ValueError(
        f"{where}.keep={self.keep} leaves nothing to choose from {where}.group={self.group} answers; lower it or raise group."
      )


def raft_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """1 in the tokens of the best `keep` answers of each group, else 0; float32[B, T]."""
  rewards = seen.rewards(config.kl_coef)
  best = groups.is_among_best(rewards, config.group, config.keep)
  metrics = {
    "rewards/total": stats.batch_mean(rewards),
    "rewards/best": stats.masked_sum(seen.scores, best),
    **groups.metrics(seen.scores, config.group),
  }
  return seen.on_tokens(best), metrics


def raft_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """−log π of what is imitated, where A is 1 or an importance weight; the mean over its tokens."""
  return {"nll": stats.masked_sum(-batch.advantages * logps, batch.sequences.response_mask)}, {}


def make(policy: Policy) -> Algorithm:
  """RAFT on `Rollout`s with the answers to each prompt in adjacent rows."""
  of_all = reinforce.make_by(policy, raft_advantages, raft_loss)

  def annotate(params, frozen, rollout: Rollout, config, extra):
    batch, metrics = of_all.annotate(params, frozen, rollout, config, extra)
    imitated = batch.sequences.response_mask * (batch.advantages > 0)
    batch = batch.replace(sequences=batch.sequences.replace(response_mask=imitated))
    best = jnp.max(batch.advantages, axis=1).reshape(-1, config.group)
    _, places = jax.lax.top_k(best, config.keep)  # the first ones where there is no best
    rows = jnp.arange(0, best.size, config.group)[:, None] + places
    return jax.tree.map(lambda x: x[rows.ravel()], batch), metrics

  # A pass over all answers is needed to know which are learned from.
  return of_all._replace(annotate=annotate, at_once=None)
