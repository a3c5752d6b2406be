"""Online DPO: direct preference optimisation on pairs that the policy writes itself (arXiv:2402.04792, algorithm 1).

    y, y' ~ π_θ,  (y_w, y_l) = the two by their scores
    L(θ) = E f(u_w, u_l),   u = log π(y|x) / π_ref(y|x)

The mean is over pairs, one a prompt: of a group of more than two answers the best is compared with the worst. f and its
options are those of `dpo`, `margin` being the difference of the scores. The gradient is taken at the answers as they stand: none goes
through the sampling.

`labels` says what scores say of a pair. "hard" is 1 for the better answer; a tie counts ½, which draws the two log-ratios
together. "soft" is Bradley and Terry's σ(r_w − r_l); then π_ref exp(r / β) / Z, where the loss of every pair has no slope, is
where the policy stands still. A pair with an answer that is cut teaches nothing under truncation="mask".

TRL's penalty for a missing end mark is truncation="penalty" here. TRL 1.16 calls the first of a tie the better one, and reads
log-probabilities at temperature 1 whatever the sampler's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import dpo, reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import groups
from rlhf_jax.types import Algorithm, Policy, PreferenceBatch, Rollout, Sequences

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
PAIRED = True


@hyperparameters
class Compared(reinforce.Scored):
  """What algorithms on pairs of scored answers can be told."""

  labels: str = option("hard", choices=("hard", "soft"))


@hyperparameters
class Config(Compared, dpo.Config):
  group: int = option(2, at_least=2)  # G, answers to each prompt

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.loss_type in dpo.SORTED and self.epochs * self.minibatches > 1:
      raise ValueError(
        f"{where}.loss_type={self.loss_type!r} sorts a whole batch before it is learned from, so that it holds for one update; "
        f"set {where}.epochs=1 and minibatches=1."
      )


class Answers(NamedTuple):
  """Answers with what a comparison needs, a row each."""

  sequences: Sequences
  scores: Array  # float32[B]
  cut: Array  # bool[B], what teaches nothing
  ref_logps: Array  # float32[B, T]


def answers(rollout: Rollout, ref_logps: Array, scores: Array, config: Compared) -> Answers:
  """The answers of a rollout, those cut by the length limit set aside where configured."""
  cut = rollout.truncated & (config.truncation == "mask")
  return Answers(rollout.sequences, scores, cut, ref_logps)


def preferences(one: Answers, other: Answers, labels: str) -> tuple[PreferenceBatch, Array]:
  """Pairs of answers to one prompt, the better one chosen; and bool[B], where that is `one`."""
  difference = one.scores - other.scores
  won = difference >= 0
  choose = lambda x, y: jnp.where(won.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
  better, worse = jax.tree.map(choose, one, other), jax.tree.map(choose, other, one)
  gap = jnp.abs(difference)
  learned = ~(one.cut | other.cut)[:, None]
  side = lambda rows: rows.replace(response_mask=rows.response_mask * learned)
  pairs = PreferenceBatch(
    chosen=side(better.sequences),
    rejected=side(worse.sequences),
    preference={"hard": jnp.where(gap > 0, 1.0, 0.5), "soft": jax.nn.sigmoid(gap)}[labels],
    margin=gap,
    ref_chosen_logps=better.ref_logps,
    ref_rejected_logps=worse.ref_logps,
  )
  if pairs.chosen.asked is None:
    return pairs, won
  in_turn = lambda w, l: jnp.stack([w, l], axis=1).reshape(-1, w.shape[-1])
  rows = jax.tree.map(in_turn, pairs.chosen, pairs.rejected)
  return pairs.replace(together=rows.in_groups(2)), won


def make(policy: Policy) -> Algorithm:
  """Online DPO on `Rollout`s with the answers to each prompt in adjacent rows."""

  def learner(config) -> Algorithm:
    """DPO that reads log-probabilities at the sampler's temperature."""
    evaluate = lambda params, frozen, rows, _: policy.evaluate(
      params, frozen, rows, config.temperature
    )
    return dpo.make(policy._replace(evaluate=evaluate))

  def init_extra(params, config):
    return learner(config).init_extra(params, config)

  def annotate(params, frozen, rollout: Rollout, config, extra):
    seen, measured = reinforce.look(policy, params, frozen, rollout, config)
    written = answers(rollout, seen.ref_logps, seen.scores, config)
    best, worst = (
      jax.tree.map(lambda x, rows=rows: x[rows], written)
      for rows in groups.extremes(seen.scores, config.group)
    )
    pairs, _ = preferences(best, worst, config.labels)
    batch, own = learner(config).annotate(params, frozen, pairs, config, extra)
    return batch, {**measured, **groups.metrics(seen.scores, config.group), **own}

  def loss(params, frozen, batch, config, extra):
    return learner(config).loss(params, frozen, batch, config, extra)

  def update_extra(extra, params, metrics, config):
    return learner(config).update_extra(extra, params, metrics, config)

  return Algorithm(init_extra, annotate, loss, update_extra)
