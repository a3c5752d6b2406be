"""Supervised fine-tuning: maximum likelihood of the responses.

    L(θ) = − Σ_t log π_θ(y_t | x, y_<t) / Σ_t 1

The mean is over all response tokens of the batch, not over sequences.
"""

from __future__ import annotations

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import logprobs, stats
from rlhf_jax.types import Algorithm, Policy, keep_extra, no_annotation, no_extra

TRAINS = "sft"
DATA = "texts"


@hyperparameters
class Config:
  learning_rate: float = option(1e-5, above=0)


def make(policy: Policy) -> Algorithm:
  """SFT on batches of `Sequences`."""

  def loss(params, frozen, batch, config, extra):
    tokens = policy.evaluate(params, frozen, batch, 1.0)
    # A segment's first token is nobody's prediction.
    mask = batch.response_mask * logprobs.predicted(batch.segments)
    return {"nll": stats.masked_sum(-tokens.logps, mask)}, {}

  return Algorithm(no_extra, no_annotation, loss, keep_extra)
