"""Direct preference optimisation (arXiv:2305.18290, eq. 7) and its simplest relatives.

    h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)
    L(θ) = E f(h)

with log-probabilities summed over the response. The mean is over pairs.

sigmoid: f = −log σ(β h). With label_smoothing ε it is cDPO, (1 − ε) f(h) + ε f(−h)
(https://ericmitchell.ai/cdpo.pdf, eq. 3). hinge: max(0, 1 − β h) (SLiC, arXiv:2305.10425, eq. 4, on
DPO's margin). ipo: (h − 1/(2β))² (arXiv:2310.12036, eq. 17), where TRL averages over tokens instead
of summing: `average_logps` does the same here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_extra

Array = jax.Array

TRAINS = "policy"
DATA = "pairs"

# Each maps the margin h, the difference of the two log-ratios, float32[B] -> float32[B].
MARGIN_LOSSES = {
  "sigmoid": lambda h, c: -jax.nn.log_sigmoid(c.beta * h),
  "ipo": lambda h, c: jnp.square(h - 1.0 / (2.0 * c.beta)),
  "hinge": lambda h, c: jax.nn.relu(1.0 - c.beta * h),
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)
  label_smoothing: float = option(0.0, at_least=0, below=0.5)
  loss_type: str = option("sigmoid", choices=tuple(MARGIN_LOSSES))
  average_logps: bool = False  # per token instead of summed, as TRL does for IPO


def dpo_loss(logps_w, logps_l, ref_logps_w, ref_logps_l, config: Config) -> Array:
  """Per-pair loss float32[B] from sequence log-probabilities float32[B]. No model in sight."""
  h = (logps_w - ref_logps_w) - (logps_l - ref_logps_l)
  loss, eps = MARGIN_LOSSES[config.loss_type], config.label_smoothing
  return (1.0 - eps) * loss(h, config) + eps * loss(-h, config)


def make(policy: Policy) -> Algorithm:
  """DPO on batches of `PreferenceBatch`; the reference's log-probabilities are computed if absent."""

  def token_logps(params, frozen, batch):
    both = jax.tree.map(lambda w, l: jnp.concatenate([w, l]), batch.chosen, batch.rejected)
    return jnp.split(policy.evaluate(params, frozen, both, 1.0).logps, 2)

  def annotate(params, frozen, batch, config, extra):
    if batch.ref_chosen_logps is None:
      ref_w, ref_l = token_logps(frozen["reference"], frozen, batch)
      batch = batch.replace(ref_chosen_logps=ref_w, ref_rejected_logps=ref_l)
    return batch, {}

  def loss(params, frozen, batch, config, extra):
    logps_w, logps_l = token_logps(params, frozen, batch)
    mask_w, mask_l = batch.chosen.response_mask, batch.rejected.response_mask

    def total(logps, mask):
      summed = stats.row_sum(logps, mask)
      return summed / jnp.maximum(jnp.sum(mask, axis=-1), 1.0) if config.average_logps else summed

    sums = (
      total(logps_w, mask_w),
      total(logps_l, mask_l),
      total(batch.ref_chosen_logps, mask_w),
      total(batch.ref_rejected_logps, mask_l),
    )
    reward_w, reward_l = config.beta * (sums[0] - sums[2]), config.beta * (sums[1] - sums[3])
    metrics = {
      "rewards/chosen": stats.batch_mean(reward_w),
      "rewards/rejected": stats.batch_mean(reward_l),
      "rewards/margin": stats.batch_mean(reward_w - reward_l),
      "rewards/accuracy": stats.batch_mean((reward_w > reward_l).astype(jnp.float32)),
      "logps/chosen": stats.batch_mean(sums[0]),
      "logps/rejected": stats.batch_mean(sums[1]),
    }
    return {"dpo": stats.batch_mean(dpo_loss(*sums, config))}, metrics

  return Algorithm(no_extra, annotate, loss, keep_extra)
