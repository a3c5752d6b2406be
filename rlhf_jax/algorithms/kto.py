"""Kahneman-Tversky optimisation: right and wrong answers, no pairs needed (arXiv:2402.01306, eq. 7).

    r(y) = β log π(y|x) / π_ref(y|x),   z = β max(0, mean of log π(y'|x) / π_ref(y'|x))
    right answers: λ_D (1 − σ(r − z)),   wrong answers: λ_U (1 − σ(z − r))

z stands for β KL(π ‖ π_ref); y' is another prompt's answer. It is the mean over the whole batch, carries no gradient
and is worked out in annotate(), so that micro-batches do not change it. The mean of the loss is over answers.
apo_zero_unpaired leaves z out (arXiv:2408.06266): 1 − σ(r) and σ(r).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, LabelledBatch, Policy, keep_extra, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "marks"


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)
  loss_type: str = option("kto", choices=("kto", "apo_zero_unpaired"))
  desirable_weight: float = option(1.0, at_least=0)  # λ_D
  undesirable_weight: float = option(1.0, at_least=0)  # λ_U


@struct.dataclass
class Batch:
  """Marked answers, and what they are measured against."""

  marked: LabelledBatch
  kl: Array  # float32[B], the batch's estimate of KL(π ‖ π_ref), the same in all rows


def kto_loss(logps: Array, ref_logps: Array, labels: Array, kl: Array, config: Config) -> Array:
  """Loss float32[B] from sequence log-probabilities float32[B]; `labels` are 1 (right) or 0 (wrong)."""
  value = config.beta * (logps - ref_logps - kl)
  right = config.desirable_weight * jax.nn.sigmoid(-value)
  wrong = config.undesirable_weight * jax.nn.sigmoid(value)
  return labels * right + (1.0 - labels) * wrong


def baseline(logps: Array, ref_logps: Array) -> Array:
  """max(0, mean log-ratio of mismatched answers), float32[], in nats an answer."""
  return jnp.maximum(jnp.mean(logps - ref_logps), 0.0)


def make(policy: Policy) -> Algorithm:
  """KTO on batches of `LabelledBatch` with marks, and `mismatched` answers for the baseline."""

  def sequence_logps(params, frozen, sequences) -> Array:
    token_logps = policy.evaluate(params, frozen, sequences, 1.0).logps
    return stats.row_sum(token_logps, sequences.response_mask)

  def annotate(params, frozen, marked, config, extra):
    if marked.ref_logps is None:
      reference = policy.evaluate(frozen["reference"], frozen, marked.answers, 1.0)
      marked = marked.replace(ref_logps=reference.logps)
    if config.loss_type == "apo_zero_unpaired":
      return Batch(marked, jnp.zeros(len(marked.labels))), {}
    mismatched = marked.mismatched
    if marked.ref_mismatched_logps is None:
      ref_logps = sequence_logps(frozen["reference"], frozen, mismatched)
    else:
      ref_logps = stats.row_sum(marked.ref_mismatched_logps, mismatched.response_mask)
    kl = baseline(sequence_logps(params, frozen, mismatched), ref_logps)
    metrics = {"policy/kl_mismatched": stats.Mean(kl, jnp.ones(()))}
    return Batch(marked, jnp.full(len(marked.labels), kl)), metrics

  def loss(params, frozen, batch, config, extra):
    marked, mask = batch.marked, batch.marked.answers.response_mask
    token_logps = policy.evaluate(params, frozen, marked.answers, 1.0).logps
    logps, ref_logps = stats.row_sum(token_logps, mask), stats.row_sum(marked.ref_logps, mask)
    labels = marked.labels[:, 0]
    losses = kto_loss(logps, ref_logps, labels, batch.kl, config)
    rewards = config.beta * (logps - ref_logps)
    metrics = preference.mark_metrics(rewards, token_logps, marked)
    return {"kto": stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, annotate, loss, keep_extra)
