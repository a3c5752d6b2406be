"""Contrastive preference optimisation: DPO without a reference, held by imitation (arXiv:2401.08417).

    d = log π(y_w|x) − log π(y_l|x)
    L(θ) = E f(d) + c E[− log π(y_w|x) / |y_w|]

`loss_type` names f: sigmoid −log σ(β d); hinge max(0, 1 − β d); ipo (d − 1/(2β))², with log-probabilities averaged
over the response as TRL does. Both means are over pairs; c is `nll_coef`. The paper sums −log π(y_w|x) over the response;
we average it over its tokens, as its code does, so that c does not depend on the length. `label_smoothing` and
`preference` are DPO's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import preference, stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_annotation, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "pairs"

# Each maps the difference of two log-probabilities, float32[B] -> float32[B].
LOSSES = {
  "sigmoid": lambda d, c: -jax.nn.log_sigmoid(c.beta * d),
  "hinge": lambda d, c: jax.nn.relu(1.0 - c.beta * d),
  "ipo": lambda d, c: jnp.square(d - 1.0 / (2.0 * c.beta)),
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)
  loss_type: str = option("sigmoid", choices=tuple(LOSSES))
  label_smoothing: float = option(0.0, at_least=0, below=0.5)
  nll_coef: float = option(1.0, at_least=0)


def cpo_loss(logps_w: Array, logps_l: Array, config: Config) -> Array:
  """f float32[B] from log-probabilities of each response (averaged for ipo), float32[B]."""
  loss, eps = (lambda w, l: LOSSES[config.loss_type](w - l, config)), config.label_smoothing
  return preference.both_ways(loss, logps_w, logps_l, 1.0 - eps)


def make(policy: Policy) -> Algorithm:
  """CPO on batches of `PreferenceBatch`; a reference is only measured against, where there is one."""

  def loss(params, frozen, pairs, config, extra):
    side_w, side_l = preference.of_both(
      lambda rows: policy.evaluate(params, frozen, rows, 1.0), pairs
    )
    reduce = preference.average_logps if config.loss_type == "ipo" else stats.row_sum
    logps_w = reduce(side_w.logps, pairs.chosen.response_mask)
    logps_l = reduce(side_l.logps, pairs.rejected.response_mask)
    losses = preference.both_ways(
      lambda w, l: cpo_loss(w, l, config), logps_w, logps_l, pairs.preference
    )
    nll = -preference.average_logps(side_w.logps, pairs.chosen.response_mask)
    terms = {"cpo": stats.batch_mean(losses), "nll": stats.batch_mean(config.nll_coef * nll)}
    rewards = config.beta * logps_w, config.beta * logps_l
    return terms, preference.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
