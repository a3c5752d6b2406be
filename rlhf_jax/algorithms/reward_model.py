"""A reward model from comparisons (Bradley & Terry 1952; arXiv:1909.08593, section 2.1).

    d = r_θ(x, y_w) − r_θ(x, y_l)
    L(θ) = − E [p log σ(d) + (1 − p) log σ(−d)]

p is how likely y_w is the better one, 1 where people simply preferred it, and label_smoothing ε makes
it (1 − ε) p + ε (1 − p). The mean is over pairs. It is the same function as OpenRLHF's LogExpLoss,
log(1 + exp(r_l − r_w)).

margin: d − m for d, where m says by how much y_w is better (Llama 2, arXiv:2307.09288, eq. 2).
centering: c (r_w + r_l)² is added, since the likelihood does not say where zero is (arXiv:2312.09244, section 3).
ties: what p = ½ means.
  half         both ways by half: the formula above
  rao_kupper   P(w ≻ l) = σ(d − η), and a tie is what remains (Rao & Kupper 1967)
  davidson     P(w ≻ l) : P(l ≻ w) : P(tie) = e^{d/2} : e^{−d/2} : ν (Davidson 1970)
η > 0 and ν > 0 are learned, as `params["link"]`, and begin where equal answers tie as often as the data do.

A reward is known only up to a constant, so `normalize` afterwards fixes its gain and bias on samples of
the reference policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, reward, stats
from rlhf_jax.types import Algorithm, Beginning, Scorer, keep_extra, no_annotation, no_extra

Array = jax.Array

TRAINS = "reward_model"
DATA = "pairs"

# Each maps the difference d float32[B], preferences float32[B], ties bool[B] and the link to float32[B].
TIES = {
  "half": lambda d, p, tied, link: reward.logistic_loss(d, p),
  "rao_kupper": lambda d, p, tied, link: reward.rao_kupper_loss(
    d, p, tied, jnp.exp(link["log_threshold"])
  ),
  "davidson": lambda d, p, tied, link: reward.davidson_loss(d, p, tied, link["log_nu"]),
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)
  label_smoothing: float = option(0.0, at_least=0, below=0.5)
  margin: bool = False
  centering: float | None = option(None, at_least=0)
  ties: str = option("half", choices=tuple(TIES))


def begin(config: Config, labels: np.ndarray) -> Beginning:
  """`labels` float[N, 1] are the preferences."""
  tied = (np.sum(labels == 0.5) + 0.5) / (
    len(labels) + 1
  )  # the share of ties, and never none or all
  if config.ties == "rao_kupper":  # at d = 0, P(tie) = (θ − 1) / (θ + 1)
    return Beginning(link={"log_threshold": np.log(np.log((1 + tied) / (1 - tied)))})
  if config.ties == "davidson":  # at d = 0, P(tie) = ν / (ν + 2)
    return Beginning(link={"log_nu": np.log(2 * tied / (1 - tied))})
  return Beginning()


def pair_loss(difference: Array, batch, link: dict | None, config: Config) -> Array:
  """Loss float32[B] of the pairs of a `PreferenceBatch` from r_w − r_l, float32[B]."""
  d = difference - batch.margin if config.margin else difference
  p, eps = batch.preference, config.label_smoothing
  return TIES[config.ties](d, (1.0 - eps) * p + eps * (1.0 - p), p == 0.5, link)


def pair_metrics(chosen: Array, rejected: Array, batch) -> dict:
  """Of rewards float32[B]; accuracy is over pairs that were decided, equal rewards counting half."""
  decided = jnp.sign(batch.preference - 0.5)
  right = 0.5 + 0.5 * jnp.sign(chosen - rejected) * decided
  return {
    "rewards/accuracy": stats.masked_sum(right, jnp.abs(decided)),
    "rewards/margin": stats.batch_mean(chosen - rejected),
    "rewards/mean": stats.batch_mean(0.5 * (chosen + rejected)),
  }


def make(scorer: Scorer) -> Algorithm:
  """Bradley-Terry on batches of `PreferenceBatch`."""

  def loss(params, frozen, batch, config, extra):
    chosen, rejected = preference.of_both(lambda rows: scorer.score(params, frozen, rows), batch)
    losses = pair_loss(chosen - rejected, batch, params.get("link"), config)
    terms = {"bradley_terry": stats.batch_mean(losses)}
    if config.centering is not None:
      terms["centering"] = stats.batch_mean(config.centering * jnp.square(chosen + rejected))
    return terms, pair_metrics(chosen, rejected, batch)

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
