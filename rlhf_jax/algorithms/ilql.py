"""Implicit language Q-learning: offline, from answers and their ratings (arXiv:2206.11871, section 4).

Choosing token a after the text s is an action, and the answer's rating is the reward of its last token:

    L_Q = Σᵢ (r + γ V(s') − Qᵢ(s, a))²
    L_V = |τ − 1(Q̂ < V)| (Q̂(s, a) − V(s))²,     Q̂ = minᵢ Q̂ᵢ of the target network
    L_CQL = Σᵢ log Σ_a' exp Qᵢ(s, a') − Qᵢ(s, a)
    L_AWAC = −exp(β_w (Q̂(s, a) − V(s))) log π_LM(a | s)
    L = L_Q + L_V + c_CQL L_CQL + c_AWAC L_AWAC,    means over the answers' tokens

V is the expectile of Q over the tokens that the data has at s: for τ > ½ that of its better ones, without asking for the value of
tokens nobody wrote. Where it writes, the policy is reshaped by advantages, π(a | s) ∝ π_LM(a | s) exp(β minᵢ Qᵢ(s, a)), in which
V(s) moves all tokens alike (`models.q_heads`). β_w = 0 makes π_LM the clone of the data.

trlx differs in this: its generation asks the target network's Q and ours Q itself, which lags less; its target network is a copy of the heads alone and
ours of the whole policy; it moves the target by 0.001 every fifth step, which the heads of a run of some hundred steps never catch up with.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import q_learning, returns, stats
from rlhf_jax.types import Algorithm, LabelledBatch, Mean, Policy, Sequences, ValueHeads, Words

Array = jax.Array

TRAINS = "policy"
DATA = "ratings"
HEADS = ValueHeads(q=2, acts=True, v=True)


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  beta: float = option(4.0, at_least=0)  # β, of Q in what is written; in 1 / units of the ratings
  tau: float = option(0.7, above=0, below=1)  # τ, of the expectile
  gamma: float = option(0.99, above=0, at_most=1)
  cql_coef: float = option(0.1, at_least=0)
  awac_coef: float = option(1.0, at_least=0)
  awac_beta: float = option(0.0, at_least=0)  # β_w
  target_every: int = option(5, at_least=1)  # steps between updates of the target network
  target_rate: float = option(1.0, above=0, at_most=1)  # of the way to the policy that it goes

  @property
  def scale(self) -> float:
    return self.beta


LEARNED_FROM = ("targets", "target_q", "weights")  # of a batch


@struct.dataclass
class Batch:
  """Rated answers, and what their tokens' values are drawn to; float32[B, T] each."""

  sequences: Sequences  # whose response mask leaves out answers that nobody rated
  targets: Array  # r + γ V(s')
  target_q: Array  # Q̂(s, a)
  weights: Array  # exp(β_w (Q̂ − V))


class Said(NamedTuple):
  """What a policy says of the tokens that were chosen; float32[B, T] each, a tuple of Q heads' each."""

  logps: Array  # log π_LM(a | s)
  q: tuple[Array, ...]  # Qᵢ(s, a)
  cql: tuple[Array, ...]  # log Σ_a' exp Qᵢ(s, a') − Qᵢ(s, a)
  values: Array  # V(s)


def said_of(words: Words, tokens: Array) -> Said:
  return Said(
    logps=q_learning.taken(jax.nn.log_softmax(words.logits), tokens),
    q=tuple(q_learning.taken(q, tokens) for q in words.q),
    cql=tuple(q_learning.conservative_loss(q, tokens) for q in words.q),
    values=words.values,
  )


def ilql_losses(said: Said, batch: Batch, config: Config) -> dict[str, Array]:
  """The four terms of every token before their coefficients, float32[B, T]."""
  return {
    "q": sum(jnp.square(q - batch.targets) for q in said.q),
    "v": q_learning.expectile_loss(said.values, batch.target_q, config.tau),
    "cql": sum(said.cql),
    "awac": -batch.weights * said.logps,
  }


def make(policy: Policy) -> Algorithm:
  """ILQL on batches of `LabelledBatch`, whose first label is the reward; `policy` needs `HEADS`."""

  def init_extra(params, config):
    return q_learning.target_network(params)

  def annotate(params, frozen, rated: LabelledBatch, config, extra):
    labels = rated.labels[:, 0]
    given = (~jnp.isnan(labels)).astype(jnp.float32)
    mask = rated.answers.response_mask * given[:, None]

    def look(words: tuple[Words, Words], tokens):
      q, target_q = (q_learning.least_taken(each.q, tokens) for each in words)
      return q, target_q, words[0].values

    trees = params, extra["target"]
    q, target_q, values = policy.over_vocabulary(look, trees, frozen, rated.answers)
    rewards = returns.at_last(labels, mask)
    advantages = stats.masked(target_q - values, mask)
    batch = Batch(
      sequences=rated.answers.replace(response_mask=mask),
      targets=q_learning.targets(rewards, values, mask, gamma=config.gamma),
      target_q=target_q,
      weights=jnp.exp(config.awac_beta * advantages),
    )
    one = jnp.ones((), jnp.float32)
    metrics = {
      "rewards/mean": stats.masked_sum(labels, given),
      "value/mean": stats.masked_sum(values, mask),
      "value/q": stats.masked_sum(q, mask),
      "value/advantage": stats.masked_sum(advantages, mask),
      "value/explained_variance": Mean(stats.explained_variance(q, batch.targets, mask), one),
    }
    return batch, metrics

  def loss(params, frozen, batch: Batch, config, extra):
    mask = batch.sequences.response_mask
    # What stands outside the mask would reach the gradient as 0 · inf.
    clean = {name: stats.masked(getattr(batch, name), mask) for name in LEARNED_FROM}
    look = lambda words, tokens: said_of(words[0], tokens)
    said = policy.over_vocabulary(look, (params,), frozen, batch.sequences)
    losses = ilql_losses(said, batch.replace(**clean), config)
    coefficients = {"cql": config.cql_coef, "awac": config.awac_coef}
    terms = {n: stats.masked_sum(coefficients.get(n, 1.0) * x, mask) for n, x in losses.items()}
    return terms, {"policy/nll": stats.masked_sum(-said.logps, mask)}

  def update_extra(extra, params, metrics, config):
    return q_learning.follow(extra, params, rate=config.target_rate, every=config.target_every)

  return Algorithm(init_extra, annotate, loss, update_extra)
