"""A reward model from ratings on one or several scales, by regression (arXiv:2311.09528, section 3).

    L(θ) = E (o_θ(x, y)_a − y_a)²

with an output for each scale, in the scale's own units; the mean is over the ratings that were
given, and a missing one (NaN) counts nowhere. huber: Huber's loss instead, ½ e² up to |e| = δ and
linear beyond, for ratings with slips of the pen.

The reward is a weighted sum of the outputs, their mean unless `weights` says otherwise. The head
begins at each scale's mean rating, so that small learning rates need not find it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import reward, stats
from rlhf_jax.types import (
  Algorithm,
  Beginning,
  Reading,
  Scorer,
  keep_extra,
  no_annotation,
  no_extra,
)

Array = jax.Array

TRAINS = "reward_model"
DATA = "ratings"

LOSSES = {
  "squared": lambda predicted, labels, c: reward.squared_loss(predicted, labels),
  "huber": lambda predicted, labels, c: reward.huber_loss(predicted, labels, c.huber_delta),
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  loss: str = option("squared", choices=tuple(LOSSES))
  huber_delta: float = option(1.0, above=0)  # in the units of the ratings
  weights: tuple[float, ...] | None = None  # of the scales in the reward


def reading(config: Config) -> Reading:
  return Reading(weights=config.weights)


def begin(config: Config, labels: np.ndarray) -> Beginning:
  """An output for each column of `labels` float[N, A]."""
  A = labels.shape[1]
  if config.weights is not None and len(config.weights) != A:
    raise ValueError(
      f"reward_from_ratings.weights={config.weights} has {len(config.weights)} numbers and the "
      f"ratings have {A} scales; give one for each."
    )
  empty = [a for a in range(A) if np.isnan(labels[:, a]).all()]
  if empty:
    raise ValueError(f"nobody rated anything on scale {empty[0]} of {A}; take it out of the data.")
  return Beginning(outputs=A, bias=np.nanmean(labels, axis=0))


def make(scorer: Scorer) -> Algorithm:
  """Regression on batches of `LabelledBatch` with labels float32[B, A]."""

  def loss(params, frozen, batch, config, extra):
    predicted = scorer.outputs(params, frozen, batch.answers)
    given = (~jnp.isnan(batch.labels)).astype(jnp.float32)
    labels = stats.masked(batch.labels, given)
    losses = LOSSES[config.loss](predicted, labels, config)
    metrics = {
      "ratings/error": stats.masked_sum(jnp.abs(predicted - labels), given),
      "rewards/mean": stats.batch_mean(jnp.mean(predicted, axis=1)),
    }
    return {config.loss: stats.masked_sum(losses, given)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
