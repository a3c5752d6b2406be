"""Group relative policy optimisation (arXiv:2402.03300, eq. 3), and its relatives as options.

    A_i = (r_i − mean r) / std r                                          over the G answers to one prompt
    L(θ) = − E_i 1/|y_i| Σ_t [ min(ρ_t A_i, clip(ρ_t, 1 − ε_low, 1 + ε_high) A_i) − β k3_t ]

| variant | options |
|---|---|
| GRPO | the defaults |
| Dr.GRPO (arXiv:2503.20783) | scale="none", aggregation="fixed_length", kl_coef=0 |
| DAPO (arXiv:2503.14476) | clip_eps_high=0.28, aggregation="token", overlong_cache, kl_coef=0, and dynamic_sampling of the loop |
| GSPO (arXiv:2507.18071) | ratio="sequence", clip_eps=3e-4, clip_eps_high=4e-4, kl_coef=0 |
| CISPO (arXiv:2506.13585) | surrogate="cispo", aggregation="token", clip_eps=1, clip_eps_high=4, kl_coef=0 |

A standard deviation has the divisor G − 1 and `scale_eps` added, as in TRL; the paper says neither. Dividing by it
weighs prompts by how much their answers' scores agree, so that the expected gradient is that of no fixed objective;
without, the first update is REINFORCE with the group's mean as baseline, (G − 1)/G of RLOO's.

Whose gradient a KL estimator gives in the loss, at π = π_old and for each token given those before it: k1's is 0 on
average; k2's is that of KL(π ‖ π_ref); k3's that of KL(π_ref ‖ π). Weighted by the token's ρ (`kl_weighted`), k1's and k3's
are that of KL(π ‖ π_ref) (arXiv:2512.02556). In the reward, subtracted from the score before the
group's mean, k1's is that of KL(π ‖ π_ref) over whole answers, and the others' of nothing in particular.

A group whose answers all score the same has advantages 0 under every scaling.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import groups, kl, policy_gradients, stats
from rlhf_jax.types import Algorithm, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True

# log ρ of every token, float32[B, T], from (logps, old_logps, mask).
LOG_RATIOS = {
  "token": lambda logps, old_logps, mask: logps - old_logps,
  "sequence": policy_gradients.average_log_ratio,
}


@hyperparameters
class Config(reinforce.Common):
  kl_coef: float = option(0.04, at_least=0)  # β
  kl_in: str = option("loss", choices=("loss", "reward"))
  kl_estimator: str = option("k3", choices=tuple(kl.KL_ESTIMATORS))
  kl_weighted: bool = False  # by the ratio, in the loss
  group: int = option(8, at_least=2)  # G, answers to each prompt; the paper's is 64
  # What advantages are divided by: the standard deviation of their group, of the batch, or nothing.
  scale: str = option("group_std", choices=("group_std", "batch_std", "none"))
  scale_eps: float = option(1e-4, above=0)  # added to that standard deviation
  clip_eps: float = option(0.2, above=0)  # ε_low, and ε_high where that is None
  clip_eps_high: float | None = option(None, above=0)
  dual_clip: float | None = option(None, above=1)  # c, the most that a ratio weighs where A < 0
  ratio: str = option("token", choices=tuple(LOG_RATIOS))
  # "clip" takes the gradient of what is clipped away; "cispo" clips its weight alone.
  surrogate: str = option("clip", choices=("clip", "cispo"))
  # The mean over the batch's tokens; over responses, of each one's mean or of its sum; or of its sum
  # divided by rollout.max_new_tokens.
  aggregation: str = option("sequence", choices=tuple(policy_gradients.AGGREGATIONS))
  # The last tokens before the limit over which the score falls by 1 (arXiv:2503.14476, eq. 13); 0 is off.
  overlong_cache: int = option(0, at_least=0)

  @property
  def clip(self) -> dict:
    high = self.clip_eps if self.clip_eps_high is None else self.clip_eps_high
    return {"low": self.clip_eps, "high": high}

  def assert_sound(self, where: str) -> None:
    super().assert_sound(where)
    if self.kl_weighted and self.kl_in == "reward":
      raise ValueError(
        f"{where}.kl_weighted has no effect with kl_in='reward', which is part of the advantage; leave it out."
      )
    if self.surrogate == "cispo" and self.dual_clip is not None:
      raise ValueError(
        f"{where}.dual_clip={self.dual_clip} has no effect with surrogate='cispo', which bounds every weight; "
        "leave it out."
      )
    if self.overlong_cache > self.max_new_tokens:
      raise ValueError(
        f"{where}.overlong_cache={self.overlong_cache} exceeds rollout.max_new_tokens={self.max_new_tokens}; "
        "lower it."
      )


def overlong_penalty(lengths: Array, *, longest: int, cache: int) -> Array:
  """From 0 at `longest − cache` tokens to −1 at `longest`, float32[B] (arXiv:2503.14476, eq. 13)."""
  return -jnp.clip((lengths - (longest - cache)) / max(cache, 1), 0.0, 1.0)


def grpo_advantages(seen: reinforce.Seen, config: Config, extra) -> tuple[Array, dict]:
  """(r − mean r) / std r over each group, in every token; float32[B, T]."""
  scores = seen.scores
  if config.overlong_cache:
    lengths = jnp.sum(seen.chosen, axis=-1)
    scores = scores + overlong_penalty(
      lengths, longest=config.max_new_tokens, cache=config.overlong_cache
    )
  rewards = scores
  if config.kl_in == "reward":
    penalty = kl.KL_ESTIMATORS[config.kl_estimator](seen.logps, seen.ref_logps)
    rewards = scores - config.kl_coef * stats.row_sum(penalty, seen.chosen)
  advantages = groups.centred(rewards, config.group)
  if config.scale == "group_std":
    advantages = advantages / (groups.std(rewards, config.group) + config.scale_eps)
  if config.scale == "batch_std":
    advantages = advantages / (jnp.std(rewards, ddof=1) + config.scale_eps)
  metrics = {
    "rewards/total": stats.batch_mean(rewards),
    **groups.metrics(scores, config.group),
  }
  return seen.on_tokens(advantages), metrics


def grpo_loss(logps: Array, batch: reinforce.Batch, config: Config) -> tuple[dict, dict]:
  """The surrogate of every token and β KL, both aggregated as configured."""
  mask = batch.sequences.response_mask
  aggregate = policy_gradients.AGGREGATIONS[config.aggregation]
  log_ratio = LOG_RATIOS[config.ratio](logps, batch.old_logps, mask)
  losses, metrics = reinforce.clipped_loss(log_ratio, batch, **config.clip, dual=config.dual_clip)
  if config.surrogate == "cispo":
    losses = policy_gradients.cispo_surrogate(log_ratio, logps, batch.advantages, **config.clip)
  terms = {"policy": aggregate(losses, mask, config.max_new_tokens)}
  if config.kl_in == "loss":
    penalty = kl.KL_ESTIMATORS[config.kl_estimator](logps, batch.ref_logps)
    if config.kl_weighted:
      penalty = jnp.exp(log_ratio) * penalty
    terms["kl"] = aggregate(config.kl_coef * penalty, mask, config.max_new_tokens)
  return terms, metrics


def make(policy: Policy) -> Algorithm:
  """GRPO on `Rollout`s with the answers to each prompt in adjacent rows."""
  return reinforce.make_by(policy, grpo_advantages, grpo_loss)
