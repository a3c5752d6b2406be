"""Binary classifier optimisation: DPO's reward as the logit of right against wrong (arXiv:2404.04656).

    r(y) = β log π(y|x) / π_ref(y|x)
    right answers: −log σ(r − δ),   wrong answers: −log σ(δ − r)

The mean of the loss is over answers. δ is the mean reward of all answers so far, this batch's included, as in TRL;
the paper has the mean of the two classes' means, which is the same where both are equally many. Its weights for right
and wrong answers to different prompts are not here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, LabelledBatch, Policy

Array = jax.Array

TRAINS = "policy"
DATA = "marks"


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)


@struct.dataclass
class Batch:
  """Marked answers, and the reward of an indifferent one."""

  marked: LabelledBatch
  delta: Array  # float32[B], the same in all rows


def bco_loss(logps: Array, ref_logps: Array, labels: Array, delta: Array, config: Config) -> Array:
  """Loss float32[B] from sequence log-probabilities float32[B]; `labels` are 1 (right) or 0 (wrong)."""
  logit = config.beta * (logps - ref_logps) - delta
  return labels * jax.nn.softplus(-logit) + (1.0 - labels) * jax.nn.softplus(logit)


def make(policy: Policy) -> Algorithm:
  """BCO on batches of `LabelledBatch` with marks."""

  def sums(params, frozen, marked):
    """Sequence log-probabilities of policy and reference, float32[B], and the policy's of tokens."""
    token_logps = policy.evaluate(params, frozen, marked.answers, 1.0).logps
    mask = marked.answers.response_mask
    return stats.row_sum(token_logps, mask), stats.row_sum(marked.ref_logps, mask), token_logps

  def init_extra(params, config):
    return {"delta": stats.Mean(jnp.zeros(()), jnp.zeros(()))}

  def annotate(params, frozen, marked, config, extra):
    if marked.ref_logps is None:
      reference = policy.evaluate(frozen["reference"], frozen, marked.answers, 1.0)
      marked = marked.replace(ref_logps=reference.logps)
    logps, ref_logps, _ = sums(params, frozen, marked)
    reward = config.beta * jnp.mean(logps - ref_logps)
    delta = stats.Mean(extra["delta"].sum + reward, extra["delta"].count + 1.0)
    metrics = {"rewards/mean": stats.Mean(reward, jnp.ones(()))}
    return Batch(marked, jnp.full(len(marked.labels), delta.value)), metrics

  def loss(params, frozen, batch, config, extra):
    marked = batch.marked
    logps, ref_logps, token_logps = sums(params, frozen, marked)
    losses = bco_loss(logps, ref_logps, marked.labels[:, 0], batch.delta, config)
    rewards = config.beta * (logps - ref_logps)
    metrics = preference.mark_metrics(rewards, token_logps, marked)
    return {"bco": stats.batch_mean(losses)}, metrics

  def update_extra(extra, params, metrics, config):
    seen = extra["delta"]
    return {"delta": stats.Mean(seen.sum + metrics["rewards/mean"], seen.count + 1.0)}

  return Algorithm(init_extra, annotate, loss, update_extra)
