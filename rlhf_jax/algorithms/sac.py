"""Discrete soft actor-critic of tokens (arXiv:1910.07207), off-policy, with the reference in the place of its entropy.

The policy is the actor, and two heads on its trunk are the critic:

    V(s) = Σₐ π(a | s) (Q̂(s, a) − α log π(a | s) / p(a | s)),     Q̂ = minᵢ Q̂ᵢ of the target network
    L_Q = Σᵢ ½ (r + γ V(s') − Qᵢ(s, a))²
    L_π = Σₐ π(a | s) (α log π(a | s) / p(a | s) − minᵢ Qᵢ(s, a)),     Q without gradient

The means are over the tokens of answers drawn from the last `replay` batches. Both sums over the vocabulary are exact, so that the actor needs no
sample and no importance weight. With prior="reference", p is the reference and the policy tends to π_ref exp(r / α) / Z;
"entropy" is the paper's p = 1, which draws every token of the vocabulary alike, nonsense too.

α is fixed, or with `kl_target` follows the mean KL(π ‖ π_ref) of an answer by PPO's controller. The paper learns α by a
gradient to a target of entropy; a KL of an answer is what the others here are told. The target network is a copy of the whole
policy; V takes its Q̂ and the policy itself.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import q_learning as family
from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import kl, q_learning, returns, stats
from rlhf_jax.types import Algorithm, Mean, Policy, Rollout, ValueHeads, Words

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True  # the values of tokens, Q heads, are not PPO's critic
HEADS = ValueHeads(q=2, acts=False)


@hyperparameters
class Config(reinforce.Scored):
  learning_rate: float = option(1e-5, above=0)
  alpha: float = option(
    0.1, above=0
  )  # α, in the units of the score; the initial one, when adaptive
  kl_target: float | None = option(None, above=0)  # nats a response; None keeps alpha fixed
  kl_horizon: float = option(10_000.0, above=0)  # episodes
  prior: str = option("reference", choices=("reference", "entropy"))  # p
  gamma: float = option(1.0, above=0, at_most=1)
  # λ of the targets: 0 looks one token ahead, 1 to the answer's end (`ops.q_learning.targets`).
  td_lambda: float = option(0.0, at_least=0, at_most=1)
  replay: int = option(
    8, at_least=1
  )  # batches of rollouts that are drawn from; 1 is the newest alone
  target_every: int = option(1, at_least=1)  # steps between updates of the target network
  target_rate: float = option(0.2, above=0, at_most=1)  # of the way to the policy that it goes

  def assert_sound(self, where: str) -> None:
    if self.kl_target is not None and self.prior == "entropy":
      raise ValueError(
        f"{where}.kl_target={self.kl_target} is a KL to the reference, which prior='entropy' leaves out; leave one of them out."
      )


class Actor(NamedTuple):
  """What the actor's loss is made of; float32[B, T] each, a tuple of Q heads' each."""

  q: tuple[Array, ...]  # Qᵢ(s, a) of the chosen token
  losses: Array  # L_π
  entropy: Array


def logps(mine: Words, reference: Words, config: Config) -> tuple[Array, Array | float]:
  """log π and log p, float32[B, w, V]."""
  prior = 0.0 if config.prior == "entropy" else jax.nn.log_softmax(reference.logits)
  return jax.nn.log_softmax(mine.logits), prior


def worth(words: tuple[Words, ...], tokens: Array, alpha: Array, config: Config) -> family.Worth:
  """Of the `Words` of the policy, its target network and its reference."""
  mine, target, reference = words
  logp, prior = logps(mine, reference, config)
  return family.Worth(
    values=q_learning.soft_value(jnp.min(target.q, axis=0), logp, prior, alpha),
    costs=alpha * q_learning.taken(logp - prior, tokens),
  )


def actor(words: tuple[Words, ...], tokens: Array, alpha: Array, config: Config) -> Actor:
  """Of the `Words` of the policy and its reference."""
  mine, reference = words
  logp, prior = logps(mine, reference, config)
  critic = jax.lax.stop_gradient(jnp.min(mine.q, axis=0))
  return Actor(
    q=tuple(q_learning.taken(q, tokens) for q in mine.q),
    losses=-q_learning.soft_value(critic, logp, prior, alpha),
    entropy=-q_learning.expected_value(logp, logp),
  )


def make(policy: Policy) -> Algorithm:
  """SAC on `Rollout`s; `policy` needs `HEADS`."""

  def init_extra(params, config):
    alpha = jnp.asarray(config.alpha, jnp.float32)
    return {**q_learning.target_network(params), "alpha": alpha}

  def annotate(params, frozen, rollout: Rollout, config, extra):
    alpha = extra["alpha"]

    def look(words: tuple[Words, Words, Words], tokens):
      mine, _, reference = words
      logp = jax.nn.log_softmax(mine.logits)
      return family.compared(logp, reference, tokens), worth(words, tokens, alpha, config)

    trees = params, extra["target"], frozen["reference"]
    beside, states = policy.over_vocabulary(
      look, trees, frozen, rollout.sequences, config.temperature
    )
    seen = reinforce.known(rollout, *beside, config)
    rewards = returns.at_last(seen.scores, seen.chosen)
    targets = family.td_targets(rewards, states, seen.chosen, config)
    batch = family.Batch(rollout.sequences.replace(response_mask=seen.learned), targets)
    own = {
      "value/mean": stats.masked_sum(states.values, seen.learned),
      "policy/alpha": Mean(alpha, jnp.ones(())),
    }
    return batch, {**reinforce.logged(seen), **own}

  def loss(params, frozen, batch: family.Batch, config, extra):
    mask = batch.sequences.response_mask
    said = policy.over_vocabulary(
      lambda words, tokens: actor(words, tokens, extra["alpha"], config),
      (params, frozen["reference"]),
      frozen,
      batch.sequences,
      config.temperature,
    )
    # What stands outside the mask would reach the gradient as 0 · inf.
    targets = stats.masked(batch.targets, mask)
    errors = [targets - q for q in said.q]
    terms = {
      "q": stats.masked_sum(sum(0.5 * jnp.square(e) for e in errors), mask),
      "policy": stats.masked_sum(said.losses, mask),
    }
    metrics = {
      "value/td_error": stats.masked_sum(jnp.abs(errors[0]), mask),
      "policy/entropy": stats.masked_sum(said.entropy, mask),
    }
    return terms, metrics

  def update_extra(extra, params, metrics, config):
    extra = q_learning.follow(extra, params, rate=config.target_rate, every=config.target_every)
    if config.kl_target is None:
      return extra
    alpha = kl.adaptive_coefficient(
      extra["alpha"],
      # The exact one: answers drawn from the memory were written by other policies.
      metrics["policy/kl_exact"],
      metrics["rollout/episodes"],
      target=config.kl_target,
      horizon=config.kl_horizon,
    )
    return {**extra, "alpha": alpha}

  return Algorithm(init_extra, annotate, loss, update_extra)
