"""A reward model from comparisons (Bradley & Terry 1952; arXiv:1909.08593, section 2.1).

    L(θ) = − E log σ(r_θ(x, y_w) − r_θ(x, y_l))

The mean is over pairs. A reward is known only up to a constant, so `normalize` afterwards fixes its
gain and bias on samples of the reference policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, Scorer, keep_extra, no_annotation, no_extra

TRAINS = "reward_model"
DATA = "pairs"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  label_smoothing: float = option(0.0, at_least=0, below=0.5)


def make(scorer: Scorer) -> Algorithm:
  """Bradley-Terry on batches of `PreferenceBatch`."""

  def loss(params, frozen, batch, config, extra):
    both = jax.tree.map(lambda w, l: jnp.concatenate([w, l]), batch.chosen, batch.rejected)
    chosen, rejected = jnp.split(scorer.score(params, frozen, both), 2)
    losses = preference.bradley_terry_loss(chosen, rejected, label_smoothing=config.label_smoothing)
    metrics = {
      "rewards/accuracy": stats.batch_mean((chosen > rejected).astype(jnp.float32)),
      "rewards/margin": stats.batch_mean(chosen - rejected),
      "rewards/mean": stats.batch_mean(0.5 * (chosen + rejected)),
    }
    return {"bradley_terry": stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
