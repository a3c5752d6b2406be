"""Proximal policy optimisation of a language model against a score (arXiv:1707.06347, arXiv:1909.08593).

The reward of a token is a KL penalty, and the score falls on the response's last token:

    r_t = − β (log π_old(y_t) − log π_ref(y_t)) + [t is last] score

Advantages are GAE (arXiv:1506.02438) over the policy's own tokens. The loss is the mean over the
batch's response tokens of

    − min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t) + c_v · ½ max((V − R)², (V_clip − R)²) − c_e · entropy

Differences from the papers: the value clip and whitened advantages follow OpenAI's
lm-human-preferences; whitening is over the whole batch, not each minibatch, so that the minibatch
size changes nothing but the number of steps; and π_old is recomputed by the learner's own function,
because a cached decoder in reduced precision is not quite the same function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import kl, policy_gradients, returns, stats
from rlhf_jax.types import Algorithm, Mean, Policy, Rollout, Sequences

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  epochs: int = option(4, at_least=1)  # passes over each batch of rollouts
  minibatches: int = option(1, at_least=1)  # optimizer steps in a pass
  clip_eps: float = option(0.2, above=0)
  value_clip_eps: float = option(0.2, above=0)
  value_coef: float = option(0.1, at_least=0)
  entropy_coef: float | None = option(None, at_least=0)  # None leaves its gradient uncomputed
  gamma: float = option(1.0, above=0, at_most=1)
  gae_lambda: float = option(0.95, at_least=0, at_most=1)
  whiten_advantages: bool = True
  kl_coef: float = option(0.05, at_least=0)  # the initial one, when adaptive
  kl_target: float | None = option(None, above=0)  # nats a response; None keeps kl_coef fixed
  kl_horizon: float = option(10_000.0, above=0)  # episodes
  stop_kl: float | None = option(None, above=0)  # KL(old || new) a token that ends an update early
  reward_clip: float | None = option(None, above=0)
  # A response cut by the length limit: scored like any other; given `truncation_score` instead;
  # `truncation_penalty` subtracted; or no score, and the value after its last token.
  truncation: str = option("score", choices=("score", "fixed_score", "penalty", "bootstrap"))
  truncation_score: float = option(-1.0)
  truncation_penalty: float = option(1.0, at_least=0)
  # A response that stops by itself before `min_tokens` gets `short_score` instead of its score, as
  # OpenAI scored texts without a full stop where one was due (arXiv:1909.08593).
  min_tokens: int = option(0, at_least=0)
  short_score: float = option(-1.0)
  temperature: float = option(1.0, above=0)  # of the sampler and the learner alike


@struct.dataclass
class Batch:
  """A rollout with everything that stays fixed while it is learned from; float32[B, T] each."""

  sequences: Sequences
  old_logps: Array
  old_values: Array
  advantages: Array
  returns: Array


def shaped_score(scores: Array, lengths: Array, truncated: Array, config: Config) -> Array:
  """The score after clipping and the rules for responses that are too short or cut, float32[B].

  `lengths` float32[B] counts each response's tokens.
  """
  if config.reward_clip is not None:
    scores = jnp.clip(scores, -config.reward_clip, config.reward_clip)
  cut = {
    "score": scores,
    "fixed_score": jnp.full_like(scores, config.truncation_score),
    "penalty": scores - config.truncation_penalty,
    "bootstrap": jnp.zeros_like(scores),
  }[config.truncation]
  short = ~truncated & (lengths < config.min_tokens)
  return jnp.where(truncated, cut, jnp.where(short, config.short_score, scores))


def make(policy: Policy) -> Algorithm:
  """PPO on `Rollout`s; `policy` needs a value head."""

  def init_extra(params, config):
    return {"kl_coef": jnp.asarray(config.kl_coef, jnp.float32)}

  def annotate(params, frozen, rollout: Rollout, config, extra):
    sequences = rollout.sequences
    mask = sequences.response_mask
    # One more token lets the critic speak after a response that nothing follows.
    wide, after = _one_longer(sequences) if config.truncation == "bootstrap" else (sequences, None)
    stats_of_all = policy.compare(params, frozen["reference"], frozen, wide, config.temperature)
    new, ref, exact_kl = jax.tree.map(lambda x: x[:, : mask.shape[1]], stats_of_all)
    bootstrap = jnp.zeros(mask.shape[0])
    if after is not None:
      value_after = jnp.take_along_axis(stats_of_all[0].values, after[:, None], axis=1)[:, 0]
      bootstrap = jnp.where(rollout.truncated, value_after, bootstrap)

    scores = stats.row_sum(rollout.rewards, mask)
    shaped = shaped_score(scores, jnp.sum(mask, axis=-1), rollout.truncated, config)
    k1 = stats.masked(kl.kl_k1(new.logps, ref.logps), mask)
    rewards = returns.at_last(shaped, mask) - extra["kl_coef"] * k1
    advantages = returns.gae(
      rewards, new.values, mask, bootstrap, gamma=config.gamma, lambda_=config.gae_lambda
    )
    targets = stats.masked(advantages + new.values, mask)
    batch = Batch(
      sequences=sequences,
      old_logps=new.logps,
      old_values=new.values,
      advantages=stats.whiten(advantages, mask) if config.whiten_advantages else advantages,
      returns=targets,
    )
    one = jnp.ones((), jnp.float32)
    mean_of_rows = lambda x: stats.batch_mean(stats.row_sum(x, mask))
    metrics = {
      "rewards/mean": stats.batch_mean(scores),
      "rewards/std": (jnp.std(scores), one),
      "rewards/total": mean_of_rows(rewards),
      "policy/kl_k1": mean_of_rows(k1),
      "policy/kl_k3": mean_of_rows(kl.kl_k3(new.logps, ref.logps)),
      "policy/kl_exact": mean_of_rows(exact_kl),
      "policy/kl_coef": (extra["kl_coef"], one),
      "value/explained_variance": (stats.explained_variance(new.values, targets, mask), one),
      "rollout/mismatch": stats.masked_sum(jnp.abs(rollout.logps - new.logps), mask),
    }
    return batch, {name: Mean(*value) for name, value in metrics.items()}

  def loss(params, frozen, batch: Batch, config, extra):
    mask = batch.sequences.response_mask
    # What stands outside the mask would reach the gradient as 0 · inf.
    old_logps, old_values, advantages, targets = (
      stats.masked(x, mask)
      for x in (batch.old_logps, batch.old_values, batch.advantages, batch.returns)
    )
    new = policy.evaluate(params, frozen, batch.sequences, config.temperature)
    surrogate = policy_gradients.clipped_surrogate(
      new.logps, old_logps, advantages, clip_eps=config.clip_eps
    )
    value_loss = policy_gradients.clipped_value_loss(
      new.values, old_values, targets, clip_eps=config.value_clip_eps
    )
    terms = {
      "policy": stats.masked_sum(surrogate, mask),
      "value": stats.masked_sum(config.value_coef * value_loss, mask),
    }
    if config.entropy_coef is not None:
      terms["entropy"] = stats.masked_sum(-config.entropy_coef * new.entropy, mask)
    clipped = policy_gradients.is_clipped(
      new.logps, old_logps, advantages, clip_eps=config.clip_eps
    )
    metrics = {
      "policy/clip_fraction": stats.masked_sum(clipped, mask),
      # KL(old || new) from samples of old: k3 with the roles exchanged.
      "policy/approx_kl": stats.masked_sum(kl.kl_k3(old_logps, new.logps), mask),
      "policy/ratio": stats.masked_sum(jnp.exp(new.logps - old_logps), mask),
      "policy/entropy": stats.masked_sum(new.entropy, mask),
      "value/loss": stats.masked_sum(value_loss, mask),
      "value/mean": stats.masked_sum(new.values, mask),
    }
    return terms, metrics

  def update_extra(extra, params, metrics, config):
    if config.kl_target is None:
      return extra
    coefficient = kl.adaptive_coefficient(
      extra["kl_coef"],
      metrics["policy/kl_k1"],
      metrics["rollout/episodes"],
      target=config.kl_target,
      horizon=config.kl_horizon,
    )
    return {**extra, "kl_coef": coefficient}

  return Algorithm(init_extra, annotate, loss, update_extra)


def _one_longer(sequences: Sequences) -> tuple[Sequences, Array]:
  """Each row's last segment continued by one token that is nobody's choice, and its column int32[B]."""
  widen = lambda x: jnp.pad(x, ((0, 0), (0, 1)))
  positions, segments = widen(sequences.positions), widen(sequences.segments)
  columns = jnp.arange(segments.shape[1])[None]
  last = jnp.max(jnp.where(segments > 0, columns, 0), axis=1, keepdims=True)  # [B, 1]
  further = columns == last + 1
  at_last = lambda x: jnp.take_along_axis(x, last, axis=1)
  continued = Sequences(
    tokens=widen(sequences.tokens),
    positions=jnp.where(further, at_last(positions) + 1, positions),
    segments=jnp.where(further, at_last(segments), segments),
    response_mask=widen(sequences.response_mask),
  )
  return continued, last[:, 0] + 1
