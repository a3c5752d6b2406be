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

Every other published detail is an option, with its source beside it: LHPD is lm-human-preferences (arXiv:1909.08593) and
SFFD summarize-from-feedback (arXiv:2009.01325), as their reproductions by Huang et al. have them. `preset` fills in a
whole recipe, `PRESETS`; temperature and length of responses are set in `rollout`, 0.7 and 24 tokens for LHPD, 0.7 and 53
for SFFD, 1 for the others.

On whose gradient a KL estimator is, in the reward or in the loss, see `ops/kl.py`. Of everything subtracted from the
reward, k1 alone makes PPO climb E[score] − β KL(π ‖ π_ref).

Defined outcomes: an empty response earns nothing and teaches nothing; a batch whose scores are all equal is left as it
is by `scale_rewards`, and one whose advantages are all equal is whitened to 0; a reward that is not finite stops the
run with the prompt named (`training.online`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import kl, policy_gradients, returns, stats
from rlhf_jax.types import Algorithm, Mean, Policy, Rollout, Sequences, TokenStats

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"

_OPENAI = dict(
  prompts=512,
  steps=1953,  # a million episodes
  epochs=4,
  minibatches=1,
  schedule="linear",
  warmup=0.0,
  b1=0.9,
  b2=0.999,
  eps=1e-5,
  clip_norm=None,
  clip_eps=0.2,
  value_clip_eps=0.2,
  value_coef=0.1,
  gamma=1.0,
  gae_lambda=0.95,
  kl_in="reward",
  kl_estimator="k1",
  whiten_advantages="batch",
  truncation="fixed_score",
  truncation_score=-1.0,
)
# What each recipe sets; what a config sets itself stands.
PRESETS = {
  # OpenAI 2019. There, sampling goes on until a full stop at the 17th token or later and whatever has none scores −1;
  # here rollout.stop_tokens end a response, and one that ends before its 17th token scores −1.
  "lhpd": dict(
    **_OPENAI,
    learning_rate=1e-5,
    optimizer="adam_tf",
    weight_decay=0.0,
    kl_coef=0.15,
    kl_target=6.0,
    kl_horizon=10_000.0,
    kl_error_clip=0.2,
    whiten_rewards="scale",
    min_tokens=17,
    short_score=-1.0,
    critic="shared",
    value_head_std=0.0,
  ),
  # OpenAI 2020. Weight decay is torch's default, and the loop anneals linearly whatever the option `scheduler` says.
  "sffd": dict(
    **_OPENAI,
    learning_rate=3e-6,
    optimizer="adamw",
    weight_decay=0.01,
    kl_coef=0.05,
    reward_at="after_last",
    whiten_rewards="none",
    critic="separate",
    critic_init="reward_model",
  ),
  # arXiv:2203.02155, appendix C.4, without its mixture of pretraining data, its average of weights, and the critic's own
  # learning rate of 9e-6. What it leaves open is as above.
  "instructgpt": dict(
    prompts=512,
    steps=500,  # 256,000 episodes
    epochs=1,
    minibatches=8,
    learning_rate=9.65e-6,
    schedule="constant",
    warmup=0.02,  # the first 10 batches
    optimizer="adamw",
    weight_decay=0.0,
    b1=0.9,
    b2=0.95,
    clip_norm=None,
    clip_eps=0.2,
    value_clip_eps=0.2,
    gamma=1.0,
    gae_lambda=0.95,
    kl_coef=0.02,
    kl_in="reward",
    kl_estimator="k1",
    critic="separate",
    critic_init="reward_model",
  ),
  # What verl 0.9 and OpenRLHF 0.11 do by default; the clamp is OpenRLHF's, the dual clip and batches are verl's. The critic
  # has ten times the learning rate there.
  "modern": dict(
    prompts=1024,
    epochs=1,
    minibatches=4,
    learning_rate=1e-6,
    schedule="constant",
    warmup=0.0,
    optimizer="adamw",
    weight_decay=0.01,
    b1=0.9,
    b2=0.999,
    clip_norm=1.0,
    clip_eps=0.2,
    dual_clip=3.0,
    value_clip_eps=0.5,
    value_coef=1.0,
    gamma=1.0,
    gae_lambda=1.0,
    kl_coef=0.001,
    kl_in="reward",
    kl_estimator="k1",
    kl_clamp=10.0,
    whiten_advantages="batch",
    aggregation="token",
    critic="separate",
  ),
}


@hyperparameters
class Config(reinforce.Common):
  PRESETS = PRESETS
  preset: str = option("none", choices=("none", *PRESETS))
  learning_rate: float = option(1e-5, above=0)
  epochs: int = option(4, at_least=1)  # passes over each batch of rollouts
  clip_eps: float = option(0.2, above=0)  # ε, below 1, and above where the next is None
  clip_eps_high: float | None = option(None, above=0)  # "clip higher" (arXiv:2503.14476, eq. 10)
  # The most that a ratio weighs where A < 0 (arXiv:1912.09729, eq. 5); verl's is 3.
  dual_clip: float | None = option(None, above=1)
  # How the losses of tokens become one: a mean over the batch's tokens, or over responses, of each one's mean, sum,
  # or sum divided by rollout.max_new_tokens (arXiv:2503.20783).
  aggregation: str = option("token", choices=tuple(policy_gradients.AGGREGATIONS))
  value_clip_eps: float | None = option(0.2, above=0)  # None leaves values unclipped
  value_coef: float = option(0.1, at_least=0)  # c_v
  critic_warmup: int = option(0, at_least=0)  # iterations in which the critic alone learns; verl
  gamma: float = option(1.0, above=0, at_most=1)
  gae_lambda: float = option(0.95, at_least=0, at_most=1)
  # To mean 0 and variance 1 over the response tokens of a batch (LHPD as reproduced), of each minibatch (OpenAI's own
  # code), or not.
  whiten_advantages: str = option("batch", choices=("batch", "minibatch", "none"))
  # The rewards of tokens, KL and all, divided by their deviation over the batch ("scale", LHPD), or brought to mean 0 as
  # well, which pays long and short responses differently.
  whiten_rewards: str = option("none", choices=("none", "scale", "shift_and_scale"))
  # Scores divided by the deviation of all scores of the run so far (trlx), or of the batch, before anything else.
  scale_rewards: str = option("none", choices=("none", "running", "batch"))
  # The score falls on the last token, or one after it (SFFD, TRL up to 1.12), where V is learned too and an end mark is
  # no longer charged with what comes of it; a cut response has it on its last token either way.
  reward_at: str = option("last", choices=("last", "after_last"))
  kl_coef: float = option(0.05, at_least=0)  # β, the initial one when adaptive
  kl_in: str = option("reward", choices=("reward", "loss"))
  kl_estimator: str = option("k1", choices=(*kl.KL_ESTIMATORS, "exact"))
  kl_clamp: float | None = option(None, above=0)  # the most a token is charged, either way
  kl_target: float | None = option(None, above=0)  # nats a response; None keeps kl_coef fixed
  # Episodes over which kl_coef may change by about the error; None is a fiftieth of the run's. LHPD's is 10,000.
  kl_horizon: float | None = option(None, above=0)
  kl_error_clip: float = option(0.2, above=0)  # of KL / target − 1
  # As above; with "bootstrap" a cut response has no score, and the value after its last token instead.
  truncation: str = option("score", choices=("score", "fixed_score", "penalty", "bootstrap"))

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.kl_in == "loss" and self.kl_estimator == "k1":
      raise ValueError(
        f"{where}.kl_estimator='k1' with kl_in='loss' has an expected gradient of 0 and adds noise alone; use 'k2', "
        "'k3' or 'exact' there, or kl_in='reward'."
      )
    if self.kl_target is not None and self.kl_coef == 0:
      raise ValueError(
        f"{where}.kl_coef=0 stays 0 whatever {where}.kl_target={self.kl_target} asks for, which multiplies it; "
        "start it above 0."
      )
    if self.kl_target is None and self.kl_horizon is not None:
      raise ValueError(
        f"{where}.kl_horizon={self.kl_horizon} has no effect without kl_target; set both or leave it out."
      )

  @property
  def clip(self) -> dict:
    high = self.clip_eps if self.clip_eps_high is None else self.clip_eps_high
    return {"low": self.clip_eps, "high": high}

  @property
  def looks_beyond(self) -> bool:
    """Whether the critic speaks of what comes after a response's last token."""
    return self.truncation == "bootstrap" or self.reward_at == "after_last"

  def for_run(self, where: str, *, steps: int, episodes: int) -> Config:
    """With what depends on a run's length: `steps` of `episodes` each.

    Raises ValueError for a horizon so short that one step could turn the KL coefficient negative.
    """
    if self.kl_target is None:
      return self
    horizon = self.kl_horizon
    if horizon is None:
      horizon = float(episodes * max(steps / 50, 2 * self.kl_error_clip))
    least = self.kl_error_clip * episodes
    if horizon <= least:
      raise ValueError(
        f"{where}.kl_horizon={horizon} is so short that one step of {episodes} episodes, whose error counts up to "
        f"{self.kl_error_clip}, could turn kl_coef negative; set it above {least:g}."
      )
    return dataclasses.replace(self, kl_horizon=horizon)


@struct.dataclass
class End:
  """The place after each response where its score may fall; [B] each."""

  column: Array  # int32
  weight: Array  # float32, 1 where the score fell there and V is learned
  old_values: Array  # float32
  returns: Array  # float32

  def put(self, x: Array, at_end: Array) -> Array:
    """`x` float32[B, T] with `at_end` float32[B] in those places."""
    here = (jnp.arange(x.shape[1])[None] == self.column[:, None]) & (self.weight > 0)[:, None]
    return jnp.where(here, at_end[:, None], x)


@struct.dataclass
class Batch:
  """A rollout with everything that stays fixed while it is learned from; float32[B, T] each."""

  sequences: Sequences
  old_logps: Array
  old_values: Array
  advantages: Array
  returns: Array
  ref_logps: Array | None = None  # where the KL is in the loss
  end: End | None = None  # where the score falls after the last token
  weights: Array | None = None  # of importance, on advantages that are whitened already


def make(policy: Policy) -> Algorithm:
  """PPO on `Rollout`s; `policy` needs a value head."""

  def init_extra(params, config):
    if config.kl_target is not None and config.kl_horizon is None:
      raise ValueError("ppo.kl_horizon=None depends on the run; make the config by its `for_run`.")
    extra = {"kl_coef": jnp.asarray(config.kl_coef, jnp.float32)}
    if config.scale_rewards == "running":
      extra["scores"] = stats.Moments.none()
    if config.critic_warmup:
      extra["iteration"] = jnp.zeros((), jnp.int32)
    return extra

  def annotate(params, frozen, rollout: Rollout, config, extra):
    _, _, batch, noted = first_look(params, frozen, rollout, config, extra)
    return batch, noted

  def at_once(params, frozen, rollout: Rollout, config, extra):
    new, exact_kl, batch, noted = first_look(params, frozen, rollout, config, extra)
    terms, metrics = learned(new, exact_kl, per_update(batch, config), config, extra)
    return terms, metrics, batch, noted

  def first_look(params, frozen, rollout: Rollout, config, extra):
    """What the first update learns from, `TokenStats` and the exact KL, and then the batch and what is known of it."""
    after = None
    if config.looks_beyond:
      # One more token lets the critic speak after a response that nothing follows.
      rollout, after = _one_longer(rollout)
    rollout, of_scores = _scaled(rollout, config, extra)
    new, exact_kl, seen = reinforce.first_pass(policy, params, frozen, rollout, config)
    mask, values = seen.chosen, seen.values

    steps, bootstrap, end = mask, jnp.zeros(mask.shape[0]), None
    if after is not None:
      value_after = jnp.take_along_axis(values, after[:, None], axis=1)[:, 0]
    if config.truncation == "bootstrap":
      bootstrap = jnp.where(rollout.truncated, value_after, bootstrap)
    if config.reward_at == "after_last":
      ended = ~rollout.truncated & jnp.any(mask > 0, axis=1)
      end = End(after, ended.astype(jnp.float32), value_after, jnp.zeros_like(value_after))
      steps = end.put(mask, end.weight)

    penalty = kl.penalty(
      config.kl_estimator, seen.logps, seen.ref_logps, seen.exact_kl, config.kl_clamp
    )
    penalty = stats.masked(penalty, mask)
    rewards = returns.at_last(seen.scores, steps)
    if config.kl_in == "reward":
      rewards = rewards - extra["kl_coef"] * penalty
    total = stats.row_sum(rewards, steps)
    if config.whiten_rewards != "none":
      rewards = stats.whiten(rewards, steps, shift_mean=config.whiten_rewards == "shift_and_scale")
    advantages = returns.gae(
      rewards, values, steps, bootstrap, gamma=config.gamma, lambda_=config.gae_lambda
    )
    targets = stats.masked(advantages + values, steps)
    if end is not None:
      at_end = jnp.take_along_axis(targets, after[:, None], axis=1)[:, 0]
      end = end.replace(returns=at_end)
      advantages = stats.masked(advantages, mask)
    weights, used = reinforce.weights_of(seen, config)
    batch = Batch(
      sequences=rollout.sequences,
      old_logps=seen.logps,
      old_values=values,
      advantages=stats.whiten(advantages, mask)
      if config.whiten_advantages == "batch"
      else advantages,
      weights=weights,
      returns=targets,
      ref_logps=seen.ref_logps if config.kl_in == "loss" else None,
      end=end,
    )
    one = jnp.ones((), jnp.float32)
    explained = stats.explained_variance(values, targets, steps)
    own = {
      "rewards/shaped": stats.batch_mean(jnp.where(jnp.any(mask > 0, axis=1), seen.scores, 0.0)),
      "rewards/total": stats.batch_mean(total),
      "policy/kl_penalty": stats.batch_mean(stats.row_sum(penalty, mask)),
      "policy/kl_coef": Mean(extra["kl_coef"], one),
      "value/explained_variance": Mean(explained, one),
    }
    return new, exact_kl, batch, {**reinforce.logged(seen), **of_scores, **own, **used}

  def per_update(batch: Batch, config):
    if config.whiten_advantages != "minibatch":
      return batch
    mask = batch.sequences.response_mask
    return batch.replace(advantages=stats.whiten(batch.advantages, mask))

  def loss(params, frozen, batch: Batch, config, extra):
    if config.kl_in == "loss" and config.kl_estimator == "exact":
      new, _, exact_kl = policy.compare(
        params, frozen["reference"], frozen, batch.sequences, config.temperature
      )
    else:
      new, exact_kl = policy.evaluate(params, frozen, batch.sequences, config.temperature), None
    return learned(new, exact_kl, batch, config, extra)

  def learned(new: TokenStats, exact_kl: Array | None, batch: Batch, config, extra):
    mask = batch.sequences.response_mask
    aggregate = policy_gradients.AGGREGATIONS[config.aggregation]
    aggregated = lambda losses, where: aggregate(losses, where, config.max_new_tokens)
    # What stands outside the mask would reach the gradient as 0 · inf.
    clean = lambda x: stats.masked(x, mask)
    advantages = clean(batch.advantages)
    if batch.weights is not None:
      advantages = advantages * clean(batch.weights)
    batch = batch.replace(old_logps=clean(batch.old_logps), advantages=advantages)
    losses, metrics = reinforce.clipped_loss(
      new.logps - batch.old_logps, batch, **config.clip, dual=config.dual_clip
    )
    learned, old_values, targets = mask, clean(batch.old_values), clean(batch.returns)
    if batch.end is not None:
      learned = batch.end.put(learned, batch.end.weight)
      old_values = batch.end.put(old_values, batch.end.old_values)
      targets = batch.end.put(targets, batch.end.returns)
    of_values = dict(values=new.values, old_values=old_values, returns=targets)
    clip = dict(clip_eps=config.value_clip_eps)
    value_losses = policy_gradients.clipped_value_loss(**of_values, **clip)
    terms = {
      "policy": aggregated(losses, mask),
      "value": aggregated(config.value_coef * value_losses, learned),
    }
    if config.kl_in == "loss":
      ref_logps = clean(batch.ref_logps)
      penalty = kl.penalty(
        config.kl_estimator, clean(new.logps), ref_logps, exact_kl, config.kl_clamp
      )
      terms["kl"] = aggregated(extra["kl_coef"] * penalty, mask)
    if config.entropy_coef is not None:
      terms["entropy"] = aggregated(-config.entropy_coef * new.entropy, mask)
    if config.critic_warmup:
      now = (extra["iteration"] >= config.critic_warmup).astype(jnp.float32)
      terms = {
        name: term if name == "value" else Mean(now * term.sum, term.count)
        for name, term in terms.items()
      }
    value_clipped = policy_gradients.is_value_clipped(**of_values, **clip)
    metrics |= {
      # KL(old || new) from samples of old: k3 with the roles exchanged.
      "policy/approx_kl": stats.masked_sum(kl.kl_k3(batch.old_logps, new.logps), mask),
      "policy/entropy": stats.masked_sum(new.entropy, mask),
      "value/loss": stats.masked_sum(value_losses, learned),
      "value/mean": stats.masked_sum(new.values, learned),
      "value/clip_fraction": stats.masked_sum(value_clipped, learned),
    }
    return terms, metrics

  def update_extra(extra, params, metrics, config):
    extra = dict(extra)
    if config.kl_target is not None:
      coefficient = kl.adaptive_coefficient(
        extra["kl_coef"],
        metrics["policy/kl_k1"],
        metrics["rollout/episodes"],
        target=config.kl_target,
        horizon=config.kl_horizon,
        error_clip=config.kl_error_clip,
      )
      if config.critic_warmup:  # a policy that stands still is no reason to loosen its bond
        warm = extra["iteration"] >= config.critic_warmup
        coefficient = jnp.where(warm, coefficient, extra["kl_coef"])
      extra["kl_coef"] = coefficient
    if config.scale_rewards == "running":
      count = metrics["rollout/episodes"]
      batch = stats.Moments(count, metrics["scale/mean"], metrics["scale/var"])
      extra["scores"] = extra["scores"].and_of(batch)
    if config.critic_warmup:
      extra["iteration"] = extra["iteration"] + 1
    return extra

  return Algorithm(init_extra, annotate, loss, update_extra, per_update, at_once)


def _scaled(rollout: Rollout, config: Config, extra) -> tuple[Rollout, dict[str, Mean]]:
  """The rollout with its scores scaled as configured, and what they were before."""
  if config.scale_rewards == "none":
    return rollout, {}
  scores = stats.row_sum(rollout.rewards, rollout.sequences.response_mask)
  moments = stats.Moments.of(scores)
  if config.scale_rewards == "running":
    moments = extra["scores"].and_of(moments)
  std = jnp.sqrt(moments.var)
  scale = jnp.where(std > 1e-6, std, 1.0)  # scores that are all equal stay as they are
  one = jnp.ones((), jnp.float32)
  return rollout.replace(rewards=rollout.rewards / scale), {
    "rewards/mean": stats.batch_mean(scores),
    "rewards/std": Mean(jnp.std(scores), one),
    "scale/mean": stats.batch_mean(scores),
    "scale/var": Mean(jnp.var(scores), one),
    "scale/divisor": Mean(scale, one),
  }


def _one_longer(rollout: Rollout) -> tuple[Rollout, Array]:
  """Each row's last segment continued by one token that is nobody's choice, and its column int32[B]."""
  sequences = rollout.sequences
  widen = lambda x: jnp.pad(x, ((0, 0), (0, 1)))
  positions, segments = widen(sequences.positions), widen(sequences.segments)
  columns = jnp.arange(segments.shape[1])[None]
  last = jnp.max(jnp.where(segments > 0, columns, 0), axis=1, keepdims=True)  # [B, 1]
  further = columns == last + 1
  at_last = lambda x: jnp.take_along_axis(x, last, axis=1)
  continued = sequences.replace(
    tokens=widen(sequences.tokens),
    positions=jnp.where(further, at_last(positions) + 1, positions),
    segments=jnp.where(further, at_last(segments), segments),
    response_mask=widen(sequences.response_mask),
    packing=None,  # which has no room
  )
  longer = rollout.replace(
    sequences=continued, logps=widen(rollout.logps), rewards=widen(rollout.rewards)
  )
  return longer, last[:, 0] + 1
