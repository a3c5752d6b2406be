"""Q-learning of tokens (Watkins, PhD thesis, 1989), and what its relatives share with it.

Choosing token a after the text s is an action, and the score is the reward of an answer's last token. A head Q(s, ·) on the policy's trunk
says what every token is worth, and the policy writes by both:

    π(a | s) ∝ π_LM(a | s) exp(Q(s, a) / α)
    L(θ) = E ½ (r + γ V(s') − Q(s, a))² + c KL(π_ref ‖ π_LM)

The means are over tokens, and the target carries no gradient. V(s') is maxₐ Q(s', a), or with backup="soft" α log Σₐ π_LM(a | s') exp(Q(s', a) / α)
(arXiv:1702.08165, and arXiv:1512.08562 with a prior): then π is π_ref exp(r / α) / Z, the optimum of E[score] − α KL(π ‖ π_ref), where the
loss has its minimum and γ = 1. The head begins at 0, and the policy at the reference.

α says how greedy the policy is, and its chance is all the exploration. The last term, a KL over the whole vocabulary, holds π_LM to the
reference while the trunk learns Q; without it (`reference_coef=None`) nothing but α keeps the policy near its text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.algorithms import reinforce
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import q_learning, returns, stats
from rlhf_jax.types import Algorithm, Mean, Policy, Rollout, Sequences, ValueHeads, Words

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
HEADS = ValueHeads(q=1, acts=True)


@hyperparameters
class Common(reinforce.Scored):
  """What every algorithm of this family can be told."""

  learning_rate: float = option(1e-5, above=0)
  alpha: float = option(0.1, above=0)  # α, in the units of the score
  gamma: float = option(1.0, above=0, at_most=1)
  # λ of the targets: 0 looks one token ahead, 1 to the answer's end (`ops.q_learning.targets`).
  td_lambda: float = option(0.0, at_least=0, at_most=1)
  reference_coef: float | None = option(1.0, at_least=0)  # c; None leaves the term uncomputed

  @property
  def scale(self) -> float:
    return 1.0 / self.alpha


@hyperparameters
class Config(Common):
  backup: str = option("max", choices=("max", "soft"))


@struct.dataclass
class Batch:
  """A rollout and what the Q of its tokens is drawn to."""

  sequences: Sequences  # whose response mask leaves out what should teach nothing
  targets: Array  # float32[B, T]


class Worth(NamedTuple):
  """What the states of chosen tokens are worth, float32[B, w] each."""

  values: Array  # V(s)
  # α log π(a | s) / p(a | s), what the chosen token cost where V counts such costs; else 0.
  costs: Array


def acting_logp(words: Words, config: Common) -> Array:
  """log π(· | s), float32[B, w, V]."""
  return jax.nn.log_softmax(words.logits + words.q[0] / (config.alpha * config.temperature))


def compared(logp: Array, reference: Words, tokens: Array) -> tuple[Array, Array, Array]:
  """log π and log π_ref of the chosen tokens, and KL(π ‖ π_ref) over the vocabulary, float32[B, w] each."""
  ref_logp = jax.nn.log_softmax(reference.logits)
  kl = q_learning.expected_value(logp - ref_logp, logp)
  return q_learning.taken(logp, tokens), q_learning.taken(ref_logp, tokens), kl


def hard(values: Array) -> Worth:
  return Worth(values, jnp.zeros_like(values))


def soft(words: Words, tokens: Array, config: Common) -> Worth:
  """The value of acting by Q itself, less the KL to the prior π_LM that it costs."""
  # Logits stand over the temperature, and so does Q beside them.
  alpha, prior = config.alpha * config.temperature, jax.nn.log_softmax(words.logits)
  log_ratio = acting_logp(words, config) - prior
  return Worth(
    values=q_learning.softmax_value(words.q[0], prior, alpha),
    costs=alpha * q_learning.taken(log_ratio, tokens),
  )


def worth(mine: Words, target: Words, tokens: Array, config: Config) -> Worth:
  if config.backup == "soft":
    return soft(mine, tokens, config)
  return hard(q_learning.double_value(mine.q[0], mine.q[0]))


def make(policy: Policy) -> Algorithm:
  """Q-learning on `Rollout`s; `policy` needs `HEADS`."""
  return make_by(policy, worth)


def make_by(policy: Policy, worth: Callable, *, target_network: bool = False) -> Algorithm:
  """The algorithm whose targets are made with these values of states.

  `worth(mine, target, tokens, config) -> Worth` sees the `Words` of the policy and of its target network, which are
  one without `target_network`; with it the config has `target_every` and `target_rate`.
  """

  def init_extra(params, config):
    return q_learning.target_network(params) if target_network else {}

  def annotate(params, frozen, rollout: Rollout, config, extra):
    def look(words: tuple[Words, ...], tokens):
      mine, target, reference = words[0], words[-2], words[-1]
      beside = compared(acting_logp(mine, config), reference, tokens)
      return beside, q_learning.taken(mine.q[0], tokens), worth(mine, target, tokens, config)

    networks = (params, extra["target"]) if target_network else (params,)
    beside, q, states = policy.over_vocabulary(
      look, (*networks, frozen["reference"]), frozen, rollout.sequences, config.temperature
    )
    seen = reinforce.known(rollout, *beside, config)
    rewards = returns.at_last(seen.scores, seen.chosen)
    targets = td_targets(rewards, states, seen.chosen, config)
    batch = Batch(rollout.sequences.replace(response_mask=seen.learned), targets)
    own = {
      "value/mean": stats.masked_sum(states.values, seen.learned),
      "value/q": stats.masked_sum(q, seen.learned),
      "value/explained_variance": Mean(
        stats.explained_variance(q, targets, seen.learned), jnp.ones(())
      ),
    }
    return batch, {**reinforce.logged(seen), **own}

  def loss(params, frozen, batch: Batch, config, extra):
    mask = batch.sequences.response_mask
    anchored = config.reference_coef is not None

    def look(words: tuple[Words, ...], tokens):
      mine = words[0]
      q = q_learning.taken(mine.q[0], tokens)
      if not anchored:
        return q, None
      ref_logp = jax.nn.log_softmax(words[1].logits)
      log_ratio = ref_logp - jax.nn.log_softmax(mine.logits)
      return q, q_learning.expected_value(log_ratio, ref_logp)

    trees = (params, frozen["reference"]) if anchored else (params,)
    q, divergence = policy.over_vocabulary(look, trees, frozen, batch.sequences, config.temperature)
    # What stands outside the mask would reach the gradient as 0 · inf.
    errors = stats.masked(batch.targets, mask) - q
    terms = {"q": stats.masked_sum(0.5 * jnp.square(errors), mask)}
    metrics = {"value/td_error": stats.masked_sum(jnp.abs(errors), mask)}
    if anchored:
      terms["reference"] = stats.masked_sum(config.reference_coef * divergence, mask)
    return terms, metrics

  def update_extra(extra, params, metrics, config):
    if not target_network:
      return extra
    return q_learning.follow(extra, params, rate=config.target_rate, every=config.target_every)

  return Algorithm(init_extra, annotate, loss, update_extra)


def td_targets(rewards: Array, states: Worth, mask: Array, config: Common) -> Array:
  """G_t of `q_learning.targets`, in which every later token pays its costs; float32[B, T]."""
  costs = stats.masked(states.costs, mask)
  paid = q_learning.targets(
    rewards - costs, states.values, mask, gamma=config.gamma, lambda_=config.td_lambda
  )
  return paid + costs
