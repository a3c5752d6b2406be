"""A reward model from labels of an answer's parts: marked spans, or steps of its reasoning (arXiv:2305.20050, section 2.5).

    L(θ) = − Σ_t [y_t log σ(z_t) + (1 − y_t) log σ(−z_t)] / Σ_t 1,    z_t = r_θ(x, y_≤t)

over the labelled tokens t of all responses; the mean is over tokens, so a long answer weighs more. A
label between 0 and 1 is the probability that the part is right, such as the share of an estimate's rollouts
that reached the answer. The label of a span is on its tokens, that of a step on its last visible one.

The reward of an answer makes one number of its token scores, as `aggregate` says ("product" is the
log-probability that all are right, and the paper's choice; "min" was nearly as good), over all tokens of the response
or, with `over="steps"`, over the last of each line.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import reward_from_marks
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

TRAINS = "reward_model"
DATA = "tokens"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  aggregate: str = option("mean", choices=tuple(reward.AGGREGATES))
  over: str = option("tokens", choices=("tokens", "steps"))


def reading(config: Config) -> Reading:
  return Reading(aggregate=config.aggregate, steps=config.over == "steps")


def begin(config: Config, labels: np.ndarray) -> Beginning:
  return Beginning(bias=reward_from_marks.log_odds(labels, "reward_from_tokens"))


def make(scorer: Scorer) -> Algorithm:
  """Logistic regression on batches of `LabelledBatch` with labels float32[B, T]."""

  def loss(params, frozen, batch, config, extra):
    scores, chosen = scorer.tokens(params, frozen, batch.answers), batch.answers.response_mask
    given = jnp.where(jnp.isnan(batch.labels), 0.0, chosen)
    labels = stats.masked(batch.labels, given)
    right = (scores > 0) == (labels > 0.5)
    metrics = {
      "rewards/accuracy": stats.masked_sum(right.astype(jnp.float32), given),
      "rewards/mean": stats.masked_sum(scores, chosen),
    }
    losses = reward.logistic_loss(scores, labels)
    return {"logistic": stats.masked_sum(losses, given)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
