"""REINFORCE with a baseline (Williams, Machine Learning 8, 1992), and what its relatives share with it.

A whole answer y is one action, with the score less a KL penalty as its reward:

    R(y) = score(y) − β Σ_t (log π_old(y_t) − log π_ref(y_t))
    L(θ) = − E (R(y) − b) log π_θ(y)

The mean is over answers, of the sum over each one's tokens, so that −∇L is the gradient of E[score] − β KL(π ‖ π_ref)
itself. Learning rates are therefore smaller than PPO's, whose loss is a mean over tokens, by about an answer's length. A baseline b
of the batch's own mean takes 1/B of the gradient along; "running_mean" is that of the batches before. There is no
ratio: with more than one update a batch, the later ones are off-policy by a little and uncorrected.

Defined outcomes: an empty response scores 0 and teaches nothing; a reward that is not finite stops the run with the
prompt named (`training.online`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import importance, kl, policy_gradients, stats
from rlhf_jax.types import (
  Algorithm,
  Mean,
  Policy,
  Rollout,
  Sequences,
  TokenStats,
  keep_extra,
  no_extra,
)

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True


@hyperparameters
class Scored:
  """What everything that learns from scored answers can be told."""

  group = 1  # answers to each prompt, in adjacent rows; an option where they are compared
  learning_rate: float = option(1e-6, above=0)
  epochs: int = option(1, at_least=1)  # passes over each batch of rollouts
  minibatches: int = option(1, at_least=1)  # optimizer steps in a pass
  reward_clip: float | None = option(None, above=0)
  # A response cut by the length limit: scored like any other; given `truncation_score` instead;
  # `truncation_penalty` subtracted; or masked, so that it teaches nothing but still counts in its
  # group's mean and among the responses of a mean over responses (arXiv:2503.14476, section 3.4).
  truncation: str = option("score", choices=("score", "fixed_score", "penalty", "mask"))
  truncation_score: float = option(-1.0)
  truncation_penalty: float = option(1.0, at_least=0)
  # A response that stops by itself before `min_tokens` gets `short_score` instead of its score, as
  # OpenAI scored texts without a full stop where one was due (arXiv:1909.08593).
  min_tokens: int = option(0, at_least=0)
  short_score: float = option(-1.0)
  temperature: float = option(1.0, above=0)  # of the sampler and the learner alike
  max_new_tokens: int = option(48, at_least=1)  # of the sampler


@hyperparameters
class Common(Scored):
  """What every algorithm of this family can be told."""

  kl_coef: float = option(0.05, at_least=0)  # β
  entropy_coef: float | None = option(None, at_least=0)  # None leaves its gradient uncomputed
  # The updates of a batch end with one whose KL(old || new) a token, or mean ratio, exceeds these. TRL skips such a
  # minibatch (its `ratio_threshold`, 10) and goes on to the next.
  stop_kl: float | None = option(None, above=0)
  stop_ratio: float | None = option(None, above=1)
  # Advantages weigh π_old / π_sampler, of tokens or whole answers, where another policy or precision wrote
  # (`ops/importance.py`); truncated at the bounds, or 0 outside them.
  importance_level: str = option("none", choices=("none", *importance.LEVELS))
  importance_mode: str = option("truncate", choices=tuple(importance.MODES))
  importance_low: float = option(0.0, at_least=0)
  importance_high: float = option(2.0, above=0)

  def assert_sound(self, where: str) -> None:
    if self.importance_low >= self.importance_high:
      raise ValueError(
        f"{where}.importance_low={self.importance_low} is not below importance_high={self.importance_high}; no weight would "
        "be between them."
      )
    for rule in ("stop_kl", "stop_ratio"):
      limit = getattr(self, rule)
      if limit is not None and self.epochs * self.minibatches == 1:
        raise ValueError(
          f"{where}.{rule}={limit} has no effect on the only update of a batch; raise {where}.epochs or {where}.minibatches, "
          "or leave it out."
        )


@hyperparameters
class Config(Common):
  # What is subtracted from every reward: nothing, the mean of the batch, or a running mean.
  baseline: str = option("batch_mean", choices=("none", "batch_mean", "running_mean"))
  baseline_decay: float = option(0.9, at_least=0, below=1)  # of the running mean, a batch


@struct.dataclass
class Batch:
  """A rollout with everything that stays fixed while it is learned from; float32[B, T] each."""

  sequences: Sequences  # whose response mask leaves out what should teach nothing
  old_logps: Array
  ref_logps: Array
  advantages: Array
  returns: Array | None = None  # what a critic should have said


class Seen(NamedTuple):
  """What is known of a batch of answers before anything is learned from it."""

  scores: Array  # float32[B], clipped, and by the rule for cut responses
  logps: Array  # float32[B, T], by the learner's own function
  ref_logps: Array  # float32[B, T]
  chosen: Array  # float32[B, T], 1 on the response
  learned: Array  # float32[B, T], 1 where it is learned from
  rollout: Rollout
  values: Array | None = None  # float32[B, T]
  exact_kl: Array | None = None  # float32[B, T], over the whole vocabulary

  @property
  def kl(self) -> Array:
    """k1 of every token, float32[B, T]; 0 outside the response."""
    return stats.masked(kl.kl_k1(self.logps, self.ref_logps), self.chosen)

  def rewards(self, kl_coef) -> Array:
    """score − β Σ k1, float32[B]."""
    return self.scores - kl_coef * jnp.sum(self.kl, axis=-1)

  def on_tokens(self, advantages: Array) -> Array:
    """One advantage an answer, float32[B], in each of its tokens: float32[B, T]."""
    return stats.masked(jnp.broadcast_to(advantages[:, None], self.chosen.shape), self.chosen)


def shaped_score(scores: Array, lengths: Array, truncated: Array, config: Scored) -> Array:
  """The score after clipping and the rules for responses that are too short or cut, float32[B].

  `lengths` float32[B] counts each response's tokens.
  """
  if config.reward_clip is not None:
    scores = jnp.clip(scores, -config.reward_clip, config.reward_clip)
  cut = {
    "score": scores,
    "fixed_score": jnp.full_like(scores, config.truncation_score),
    "penalty": scores - config.truncation_penalty,
    "mask": scores,
    "bootstrap": jnp.zeros_like(scores),
  }[config.truncation]
  short = ~truncated & (lengths < config.min_tokens)
  return jnp.where(truncated, cut, jnp.where(short, config.short_score, scores))


def reinforce_advantages(seen: Seen, config: Config, extra) -> tuple[Array, dict]:
  """R − b in every token, float32[B, T]."""
  rewards = seen.rewards(config.kl_coef)
  baseline = {
    "none": 0.0,
    "batch_mean": jnp.mean(rewards),
    "running_mean": extra["sum"] / jnp.maximum(extra["weight"], 1e-8),
  }[config.baseline]
  metrics = {"rewards/total": stats.batch_mean(rewards)}
  return seen.on_tokens(rewards - baseline), metrics


def reinforce_loss(logps: Array, batch: Batch, config: Config) -> tuple[dict, dict]:
  """−A log π, summed over each answer's tokens; the mean over answers."""
  losses, mask = -batch.advantages * logps, batch.sequences.response_mask
  return {"policy": policy_gradients.AGGREGATIONS["sum"](losses, mask, None)}, {}


def make(policy: Policy) -> Algorithm:
  """REINFORCE on `Rollout`s."""

  def init_extra(params, config):
    return {"sum": jnp.zeros(()), "weight": jnp.zeros(())}

  def update_extra(extra, params, metrics, config):
    if config.baseline != "running_mean":
      return extra
    # Divided by its weight, the sum is a mean of the batches seen, from the first one on.
    keep, new = config.baseline_decay, 1.0 - config.baseline_decay
    return {
      "sum": keep * extra["sum"] + new * metrics["rewards/total"],
      "weight": keep * extra["weight"] + new,
    }

  return make_by(policy, reinforce_advantages, reinforce_loss, init_extra, update_extra)


def make_by(
  policy: Policy,
  advantages: Callable,
  loss: Callable,
  init_extra: Callable = no_extra,
  update_extra: Callable = keep_extra,
  value_loss: Callable | None = None,
) -> Algorithm:
  """The algorithm with these advantages and this loss, on `Rollout`s.

  `advantages(seen, config, extra) -> (float32[B, T] with zeros outside the response, metrics)`
  `loss(logps, batch, config) -> (terms, metrics)`, of a batch with zeros outside the response mask
  `value_loss(values, batch, config) -> (terms, metrics)`, where there is a critic
  """

  def annotate(params, frozen, rollout: Rollout, config, extra):
    _, batch, noted = first_look(params, frozen, rollout, config, extra)
    return batch, noted

  def first_look(params, frozen, rollout: Rollout, config, extra):
    """What the first update learns from, and then the batch and what is known of it."""
    new, _, seen = first_pass(policy, params, frozen, rollout, config)
    batch, own = prepared(seen, config, extra)
    return new, batch, {**logged(seen), **own}

  def prepared(seen: Seen, config, extra) -> tuple[Batch, dict]:
    found, own = advantages(seen, config, extra)
    weights, used = weights_of(seen, config)
    batch = Batch(
      sequences=seen.rollout.sequences.replace(response_mask=seen.learned),
      old_logps=seen.logps,
      ref_logps=seen.ref_logps,
      advantages=found if weights is None else found * weights,
      returns=None if value_loss is None else stats.masked(found + seen.values, seen.chosen),
    )
    return batch, {**own, **used}

  def of_batch(params, frozen, batch: Batch, config, extra):
    new = policy.evaluate(params, frozen, batch.sequences, config.temperature)
    return learned(new, batch, config)

  def learned(new: TokenStats, batch: Batch, config):
    mask = batch.sequences.response_mask
    # What stands outside the mask would reach the gradient as 0 · inf.
    clean = lambda x: None if x is None else stats.masked(x, mask)
    batch = batch.replace(
      old_logps=clean(batch.old_logps),
      ref_logps=clean(batch.ref_logps),
      advantages=clean(batch.advantages),
      returns=clean(batch.returns),
    )
    logps = stats.masked(new.logps, mask)
    terms, metrics = loss(logps, batch, config)
    if value_loss is not None:
      of_values, measured = value_loss(clean(new.values), batch, config)
      terms, metrics = terms | of_values, metrics | measured
    if config.entropy_coef is not None:
      terms["entropy"] = stats.masked_sum(-config.entropy_coef * new.entropy, mask)
    metrics["policy/entropy"] = stats.masked_sum(new.entropy, mask)
    if "policy/ratio" not in metrics:  # a loss that clips ratios says its own
      metrics["policy/ratio"] = stats.masked_sum(jnp.exp(logps - batch.old_logps), mask)
    # KL(old || new) from samples of old: k3 with the roles exchanged.
    metrics["policy/approx_kl"] = stats.masked_sum(kl.kl_k3(batch.old_logps, logps), mask)
    return terms, metrics

  def at_once(params, frozen, rollout: Rollout, config, extra):
    new, batch, noted = first_look(params, frozen, rollout, config, extra)
    terms, metrics = learned(new, batch, config)
    return terms, metrics, batch, noted

  return Algorithm(init_extra, annotate, of_batch, update_extra, at_once=at_once)


def beside_reference(policy: Policy, params, frozen, sequences: Sequences, config: Scored):
  """(TokenStats of the policy, those of the reference, float32[B, T] KL(policy || reference)), by one pass each.

  What the answers of a group have in common is computed once.
  """
  compare = lambda rows: policy.compare(
    params, frozen["reference"], frozen, rows, config.temperature
  )
  if config.group == 1 or sequences.asked is None or sequences.packing is not None:
    return compare(sequences)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  return jax.tree.map(flat, compare(sequences.in_groups(config.group)))


def look(
  policy: Policy, params, frozen, rollout: Rollout, config: Scored
) -> tuple[Seen, dict[str, Mean]]:
  """What is known of a rollout before anything is learned from it, and what every algorithm logs of that."""
  _, _, seen = first_pass(policy, params, frozen, rollout, config)
  return seen, logged(seen)


def first_pass(
  policy: Policy, params, frozen, rollout: Rollout, config: Scored
) -> tuple[TokenStats, Array, Seen]:
  """What is learned from in the first update, `TokenStats` and float32[B, T] KL(policy || reference), and what is known before it.

  The policy that wrote is the one that learns: π_old is π without its gradient.
  """
  new, ref, exact_kl = beside_reference(policy, params, frozen, rollout.sequences, config)
  old, old_kl = jax.lax.stop_gradient((new, exact_kl))
  seen = known(rollout, old.logps, ref.logps, old_kl, config)
  return new, exact_kl, seen._replace(values=old.values)


def known(
  rollout: Rollout, logps: Array, ref_logps: Array, exact_kl: Array, config: Scored
) -> Seen:
  """`Seen`, from the learner's own log-probabilities and KL, float32[B, T] each."""
  mask = rollout.sequences.response_mask
  raw = stats.row_sum(rollout.rewards, mask)
  cut = rollout.truncated if config.truncation == "mask" else jnp.zeros_like(rollout.truncated)
  return Seen(
    scores=shaped_score(raw, jnp.sum(mask, axis=-1), rollout.truncated, config),
    logps=logps,
    ref_logps=ref_logps,
    chosen=mask,
    learned=jnp.where(cut[:, None], 0.0, mask),
    rollout=rollout,
    exact_kl=exact_kl,
  )


def logged(seen: Seen) -> dict[str, Mean]:
  raw = stats.row_sum(seen.rollout.rewards, seen.chosen)
  mean_of_rows = lambda x: stats.batch_mean(stats.row_sum(x, seen.chosen))
  return {
    "rewards/mean": stats.batch_mean(raw),
    "rewards/std": Mean(jnp.std(raw), jnp.ones((), jnp.float32)),
    "policy/kl_k1": mean_of_rows(seen.kl),
    "policy/kl_k3": mean_of_rows(kl.kl_k3(seen.logps, seen.ref_logps)),
    "policy/kl_exact": mean_of_rows(seen.exact_kl),
    **importance.mismatch(seen.logps, seen.rollout.logps, seen.chosen),
  }


def weights_of(seen: Seen, config: Common) -> tuple[Array | None, dict[str, Mean]]:
  """The importance weights of `config`, float32[B, T], None where it has none; and what they are."""
  if config.importance_level == "none":
    return None, {}
  weights = importance.weights(
    seen.logps,
    seen.rollout.logps,
    seen.chosen,
    level=config.importance_level,
    mode=config.importance_mode,
    low=config.importance_low,
    high=config.importance_high,
  )
  return weights, importance.used(weights, seen.chosen)


def clipped_loss(
  log_ratio: Array, batch: Batch, *, low, high, dual=None
) -> tuple[Array, dict[str, Mean]]:
  """`surrogate` of every token, float32[B, T], and how often it was clipped."""
  mask = batch.sequences.response_mask
  outside = policy_gradients.is_outside(log_ratio, batch.advantages, low=low, high=high)
  metrics = {
    "policy/clip_fraction": stats.masked_sum(outside, mask),
    "policy/ratio": stats.masked_sum(jnp.exp(log_ratio), mask),
  }
  losses = policy_gradients.surrogate(log_ratio, batch.advantages, low=low, high=high, dual=dual)
  return losses, metrics
