"""A reward model from rankings of k answers (Plackett 1975; Luce 1959; arXiv:1909.08593, eq. 1).

    plackett_luce   L(θ) = − E Σ_i log e^{r_i} / Σ_{j not yet placed} e^{r_j}
    top_one         L(θ) = − E log e^{r_b} / Σ_j e^{r_j}, b the best of k

Two answers make both Bradley-Terry. The mean is over rankings, so a ranking of many answers weighs
more than a pair does.

Equal ranks are a tie. half: the mean of the loss over all orders of the tied, which for two answers is
the soft label ½. breslow: the tied all stay in each other's sums (Breslow 1974), for long rankings.
unranked: answers that got no rank are known to be below all that did ("below", as of somebody who
named the best few), or nothing is known of them ("ignored").
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
  RankingBatch,
  Scorer,
  keep_extra,
  no_annotation,
  no_extra,
)

Array = jax.Array

TRAINS = "reward_model"
DATA = "rankings"

# Each maps scores float32[B, K], ranks int[B, K] and who stands below, bool[B, K], to float32[B].
LOSSES = {
  ("plackett_luce", "half"): reward.plackett_luce_loss,
  ("plackett_luce", "breslow"): reward.breslow_loss,
  ("top_one", "half"): reward.top_one_loss,
  ("top_one", "breslow"): reward.top_one_loss,
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  loss: str = option("plackett_luce", choices=("plackett_luce", "top_one"))
  ties: str = option("half", choices=("half", "breslow"))
  unranked: str = option("below", choices=("below", "ignored"))


def begin(config: Config, labels: np.ndarray) -> Beginning:
  """`labels` float[N, K] are the ranks."""
  K = labels.shape[1]
  if (config.loss, config.ties) == ("plackett_luce", "half") and K > reward.MOST_TIED:
    raise ValueError(
      f"a ranking has {K} answers, and reward_from_rankings.ties='half' goes through the subsets of at "
      f"most {reward.MOST_TIED}; set ties='breslow'."
    )
  if not (labels > 0).any():
    raise ValueError("no answer of any ranking has a rank.")
  return Beginning()


def make(scorer: Scorer) -> Algorithm:
  """Plackett-Luce or top-one on batches of `RankingBatch`."""

  def loss(params, frozen, batch: RankingBatch, config, extra):
    B, K, T = batch.answers.tokens.shape
    rows = jax.tree.map(lambda x: x.reshape(B * K, -1), batch.answers)
    scores = scorer.score(params, frozen, rows).reshape(B, K)
    below = (batch.ranks == 0) & (config.unranked == "below")
    losses = LOSSES[config.loss, config.ties](scores, batch.ranks, below)

    place = jnp.where(below, K + 1, batch.ranks)
    known = (place > 0).astype(jnp.float32)
    better = known[:, :, None] * known[:, None] * (place[:, :, None] < place[:, None])  # i before j
    difference = scores[:, :, None] - scores[:, None]
    metrics = {
      "rewards/accuracy": stats.masked_sum(0.5 + 0.5 * jnp.sign(difference), better),
      "rewards/margin": stats.masked_sum(difference, better),
      "rewards/mean": stats.masked_sum(scores, known),
    }
    return {config.loss: stats.batch_mean(losses)}, metrics

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
