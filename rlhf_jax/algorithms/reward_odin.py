"""A reward model from comparisons that keeps length apart from quality (ODIN, arXiv:2402.07319, section 3).

Two heads share a trunk: r^Q is to say quality and r^L length, and together they explain what people preferred.

    L(θ) = − E log σ(r_w − r_l) + λ_L (|ρ(r^Q, n)| − ρ(r^L, n)) + λ_O |cos(W_Q, W_L)|,   r = r^Q + r^L

n is the response's number of tokens and ρ Pearson's correlation over all answers of the batch, whatever
micro-batches and devices it is split over. The paper's |W_Q W_Lᵀ| is taken of unit vectors, as its
authors' code does, or a small head alone would make it small. Soft and smoothed labels are those of
`reward_model`. Afterwards only r^Q is the reward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.algorithms import reward_model
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import batchwise, preference, reward, stats
from rlhf_jax.types import (
  Algorithm,
  Beginning,
  PreferenceBatch,
  Reading,
  Scorer,
  keep_extra,
  no_extra,
)

Array = jax.Array

TRAINS = "reward_model"
DATA = "pairs"
QUALITY, LENGTH = 0, 1  # outputs of the head


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  label_smoothing: float = option(0.0, at_least=0, below=0.5)
  length_coef: float = option(1.0, at_least=0)  # λ_L
  orthogonal_coef: float = option(1.0, at_least=0)  # λ_O


@struct.dataclass
class Batch(PreferenceBatch):
  """Pairs with the length term on their rows."""

  length_term: batchwise.Linear | None = None


def reading(config: Config) -> Reading:
  return Reading(weights=(1.0, 0.0))


def begin(config: Config, labels: np.ndarray) -> Beginning:
  return Beginning(outputs=2, bias=np.zeros(2))


def length_term(outputs_w: Array, outputs_l: Array, lengths: Array) -> Array:
  """|ρ(r^Q, n)| − ρ(r^L, n), float32[], of outputs float32[B, 2] each and lengths float32[2B]."""
  outputs = jnp.concatenate([outputs_w, outputs_l])
  of_quality = reward.correlation(outputs[:, QUALITY], lengths)
  return jnp.abs(of_quality) - reward.correlation(outputs[:, LENGTH], lengths)


def make(scorer: Scorer) -> Algorithm:
  """ODIN on batches of `PreferenceBatch`; the head has two outputs."""

  def annotate(params, frozen, batch, config, extra):
    lengths = jnp.sum(batch.both.response_mask, axis=-1)
    outputs = preference.of_both(lambda rows: scorer.outputs(params, frozen, rows), batch)
    term = batchwise.linearize(lambda w, l: length_term(w, l, lengths), *outputs)
    fields = {name: getattr(batch, name) for name in PreferenceBatch.__dataclass_fields__}
    all_of_them = jnp.concatenate(outputs)
    one = jnp.ones((), jnp.float32)
    metrics = {
      f"length/{name}_correlation": stats.Mean(reward.correlation(all_of_them[:, i], lengths), one)
      for name, i in (("quality", QUALITY), ("length", LENGTH))
    }
    return Batch(**fields, length_term=term), metrics

  def loss(params, frozen, batch: Batch, config, extra):
    outputs_w, outputs_l = preference.of_both(
      lambda rows: scorer.outputs(params, frozen, rows), batch
    )
    difference = jnp.sum(outputs_w - outputs_l, axis=1)
    p, eps = batch.preference, config.label_smoothing
    ranking = reward.logistic_loss(difference, (1.0 - eps) * p + eps * (1.0 - p))
    kernel = params["reward_head"]["kernel"]
    alike = jnp.abs(reward.cosine(kernel[:, QUALITY], kernel[:, LENGTH]))
    terms = {
      "bradley_terry": ranking,
      "length": config.length_coef * batchwise.per_row(batch.length_term, outputs_w, outputs_l),
      "orthogonal": jnp.full_like(ranking, config.orthogonal_coef * alike),
    }
    metrics = reward_model.pair_metrics(outputs_w[:, QUALITY], outputs_l[:, QUALITY], batch)
    return {name: stats.batch_mean(rows) for name, rows in terms.items()}, metrics

  return Algorithm(no_extra, annotate, loss, keep_extra)
