"""What losses on comparisons share, and what is logged of pairs and marks whatever the loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.ops import kl, stats

Array = jax.Array


def split(both):
  """A tree of float[2B, ...] as its two halves: what was computed of chosen and of rejected answers."""
  half = jax.tree.leaves(both)[0].shape[0] // 2
  return jax.tree.map(lambda x: x[:half], both), jax.tree.map(lambda x: x[half:], both)


def of_both(function: Callable, pairs):
  """`function(rows)` of the chosen and of the rejected answers of a `PreferenceBatch`, from one pass over both.

  `function` is a policy's or a scorer's and takes `Sequences` or `Shared`; what it says has the rows in front.
  """
  if pairs.together is None:
    return split(function(pairs.both))
  said = function(pairs.together)  # [B, 2, ...]
  return tuple(jax.tree.map(lambda x, side=side: x[:, side], said) for side in range(2))


def both_ways(loss: Callable[[Array, Array], Array], w: Array, l: Array, preference) -> Array:
  """p loss(w, l) + (1 − p) loss(l, w), float32[B]: the loss of a pair whose first answer is the better with probability p."""
  return preference * loss(w, l) + (1.0 - preference) * loss(l, w)


def average_logps(logps: Array, mask: Array) -> Array:
  """Log-probability a response token, float32[B]; 0 for an empty response."""
  return stats.row_sum(logps, mask) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)


def pair_metrics(reward_w: Array, reward_l: Array, logps_w: Array, logps_l: Array, pairs) -> dict:
  """What every algorithm on a `PreferenceBatch` logs; `Mean`s over pairs.

  Implicit rewards float32[B], token log-probabilities float32[B, T]. `policy/kl_reference` is the k3
  estimate of KL(π_ref ‖ π) on the data's own answers, in nats an answer: exact on average where the reference
  wrote them. A falling `logps/chosen` is discussed in docs/preferences.md.
  """
  mask_w, mask_l = pairs.chosen.response_mask, pairs.rejected.response_mask
  metrics = {
    "rewards/chosen": stats.batch_mean(reward_w),
    "rewards/rejected": stats.batch_mean(reward_l),
    "rewards/margin": stats.batch_mean(reward_w - reward_l),
    "rewards/accuracy": stats.batch_mean((reward_w > reward_l).astype(jnp.float32)),
    "logps/chosen": stats.batch_mean(stats.row_sum(logps_w, mask_w)),
    "logps/rejected": stats.batch_mean(stats.row_sum(logps_l, mask_l)),
  }
  if pairs.ref_chosen_logps is not None:
    from_reference = [
      stats.row_sum(kl.kl_k3(ref, now), mask)
      for ref, now, mask in (
        (pairs.ref_chosen_logps, logps_w, mask_w),
        (pairs.ref_rejected_logps, logps_l, mask_l),
      )
    ]
    metrics["policy/kl_reference"] = stats.batch_mean(jnp.concatenate(from_reference))
  return metrics


def mark_metrics(rewards: Array, logps: Array, marked) -> dict:
  """What every algorithm on marks logs: `pair_metrics` for right ("chosen") and wrong ("rejected") answers.

  Implicit rewards float32[B], token log-probabilities float32[B, T], `marked` a `LabelledBatch` of marks with
  `ref_logps`. Accuracy is the share of right answers with a reward above 0 and wrong ones below; the margin is the
  mean reward, wrong answers' counted negative.
  """
  mask, right = marked.answers.response_mask, marked.labels[:, 0]
  summed = stats.row_sum(logps, mask)
  return {
    "rewards/chosen": stats.masked_sum(rewards, right),
    "rewards/rejected": stats.masked_sum(rewards, 1.0 - right),
    "rewards/margin": stats.batch_mean((2.0 * right - 1.0) * rewards),
    "rewards/accuracy": stats.batch_mean(jnp.where(right > 0.5, rewards > 0, rewards < 0) * 1.0),
    "logps/chosen": stats.masked_sum(summed, right),
    "logps/rejected": stats.masked_sum(summed, 1.0 - right),
    "policy/kl_reference": stats.batch_mean(stats.row_sum(kl.kl_k3(marked.ref_logps, logps), mask)),
  }
