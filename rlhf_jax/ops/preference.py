"""Losses on comparisons, per pair and unreduced."""

from __future__ import annotations

import jax

Array = jax.Array


def bradley_terry_loss(chosen: Array, rejected: Array, *, label_smoothing=0.0) -> Array:
  """−log σ(r_w − r_l), float32[B] (Bradley & Terry 1952; arXiv:1909.08593, eq. 1 for two answers).

  With `label_smoothing` ε: (1 − ε) times that and ε times the loss of the pair turned round.
  """
  margin = chosen - rejected
  log_sigmoid = jax.nn.log_sigmoid
  return -(1.0 - label_smoothing) * log_sigmoid(margin) - label_smoothing * log_sigmoid(-margin)
