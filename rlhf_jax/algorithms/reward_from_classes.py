"""A reward model from ordered classes, such as poor, fair, good (McCullagh, JRSS B 42, 1980: proportional odds).

    P(Y ≤ k) = σ(c_k − r_θ(x, y)),    c_0 < c_1 < …
    L(θ) = − E log P(Y = y)

The mean is over answers that have a class. The cutpoints are learned too, as `params["link"]`, and
begin where the reward 0 has the classes as often as the data do. Two classes make it logistic
regression.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import reward, stats
from rlhf_jax.types import Algorithm, Beginning, Scorer, keep_extra, no_annotation, no_extra

TRAINS = "reward_model"
DATA = "classes"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)


def begin(config: Config, labels: np.ndarray) -> Beginning:
  """Cutpoints for the classes 0 … K − 1 of `labels` float[N, 1]; ValueError where one is not there."""
  if labels.shape[1] != 1:
    raise ValueError(
      f"answers have {labels.shape[1]} classes each; reward_from_classes learns from one, "
      "reward_from_ratings from several scales."
    )
  given = labels[~np.isnan(labels)]
  found = np.unique(given)
  expected = np.arange(len(found))
  if len(found) < 2 or not np.array_equal(found, expected):
    raise ValueError(
      f"the classes in the data are {', '.join(f'{c:g}' for c in found) or 'none'}; they should be 0, 1, … "
      "without a gap, 0 the worst, and at least two."
    )
  share = np.bincount(given.astype(int)) / len(given)
  cutpoints = scipy.special.logit(np.cumsum(share)[:-1])
  gaps = {"log_gaps": np.log(np.diff(cutpoints))} if len(cutpoints) > 1 else {}
  return Beginning(link={"first": cutpoints[0], **gaps})


def make(scorer: Scorer) -> Algorithm:
  """Ordinal logistic regression on batches of `LabelledBatch` with labels float32[B, 1]."""

  def loss(params, frozen, batch, config, extra):
    scores, labels = scorer.score(params, frozen, batch.answers), batch.labels[:, 0]
    given = (~jnp.isnan(labels)).astype(jnp.float32)
    classes = stats.masked(labels, given).astype(jnp.int32)
    cutpoints = reward.cutpoints(params["link"])
    losses = reward.cumulative_link_loss(scores, classes, cutpoints)
    nearest = jnp.sum(scores[:, None] > cutpoints[None], axis=1)  # the median of P(Y)
    metrics = {
      "rewards/accuracy": stats.masked_sum((nearest == classes).astype(jnp.float32), given),
      "rewards/mean": stats.batch_mean(scores),
    }
    return {"cumulative_link": stats.masked_sum(losses, given)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
