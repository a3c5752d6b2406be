"""A reward model from right and wrong, by logistic regression (arXiv:2110.14168, section 2: verifiers).

    L(θ) = − E [y log σ(r_θ(x, y)) + (1 − y) log σ(−r_θ(x, y))]

The mean is over answers that have a mark; a mark may lie between 0 and 1. The head begins at the log-odds
of a right answer in the data.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import reward, stats
from rlhf_jax.types import Algorithm, Beginning, Scorer, keep_extra, no_annotation, no_extra

TRAINS = "reward_model"
DATA = "marks"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)


def begin(config: Config, labels: np.ndarray) -> Beginning:
  return Beginning(bias=log_odds(labels, "reward_from_marks"))


def log_odds(labels: np.ndarray, name: str) -> float:
  """Of the mean label; ValueError unless labels are in [0, 1] and there is some of both."""
  given = labels[~np.isnan(labels)]
  outside = given[(given < 0) | (given > 1)]
  if len(outside):
    raise ValueError(
      f"{name} learns from labels between 0 (wrong) and 1 (right), and one is {outside[0]:g}."
    )
  mean = given.mean() if len(given) else 0.0
  if not 0 < mean < 1:
    raise ValueError(
      f"{name} needs labels of both kinds, and the mean of {len(given)} is {mean:g}."
    )
  return scipy.special.logit(mean)


def make(scorer: Scorer) -> Algorithm:
  """Logistic regression on batches of `LabelledBatch` with labels float32[B, 1]."""

  def loss(params, frozen, batch, config, extra):
    scores, labels = scorer.score(params, frozen, batch.answers), batch.labels[:, 0]
    given = (~jnp.isnan(labels)).astype(jnp.float32)
    labels = stats.masked(labels, given)
    right = (scores > 0) == (labels > 0.5)
    metrics = {
      "rewards/accuracy": stats.masked_sum(right.astype(jnp.float32), given),
      "rewards/mean": stats.batch_mean(scores),
    }
    losses = reward.logistic_loss(scores, labels)
    return {"logistic": stats.masked_sum(losses, given)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
