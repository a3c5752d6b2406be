"""Optimizers by config. Schedules peak at 1 and the learning rate multiplies last, in the train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import hyperparameters, option


def scale_by_adam_tf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam as TensorFlow 1 computes it, which OpenAI's early curves need (arXiv:1412.6980, end of section 2).

    √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

  ε is outside the bias correction: in the first steps it weighs more, by 1 / √(1 − β₂ᵗ), than in `optax.scale_by_adam`.
  """
  plain = optax.scale_by_adam(b1, b2, eps)

  def update(gradients, state, params=None):
    _, state = plain.update(gradients, state, params)
    count = state.count.astype(jnp.float32)
    scale = jnp.sqrt(1.0 - b2**count) / (1.0 - b1**count)
    direction = lambda m, v: scale * m / (jnp.sqrt(v) + eps)
    return jax.tree.map(direction, state.mu, state.nu), state

  return optax.GradientTransformation(plain.init, update)


DIRECTIONS = {
  "adamw": lambda s: optax.scale_by_adam(s.b1, s.b2, s.eps),
  "adam_tf": lambda s: scale_by_adam_tf(s.b1, s.b2, s.eps),
  "lion": lambda s: optax.scale_by_lion(s.b1, s.b2),
  "sgd": lambda s: optax.trace(decay=s.b1),
}

SCHEDULES = {
  "constant": lambda steps: optax.constant_schedule(1.0),
  "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
  "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
}


@hyperparameters
class Settings:
  """How a stage turns gradients into updates. Static: changing one recompiles."""

  optimizer: str = option("adamw", choices=tuple(DIRECTIONS))
  schedule: str = option("linear", choices=tuple(SCHEDULES))
  warmup: float = option(0.0, at_least=0, below=1)  # fraction of all updates
  b1: float = option(0.9, at_least=0, below=1)  # momentum
  b2: float = option(0.95, at_least=0, below=1)  # adamw, adam_tf and lion
  eps: float = option(1e-8, above=0)  # adamw and adam_tf
  weight_decay: float = option(0.0, at_least=0)  # on matrices
  clip_norm: float | None = option(1.0, above=0)


def make_optimizer(settings: Settings, updates: int) -> optax.GradientTransformation:
  """Gradients to descent directions of unit learning rate, over a run of `updates` updates.

  The train step multiplies them by −`config.learning_rate`, which is traced.
  """
  warmup = int(settings.warmup * updates)
  schedule = SCHEDULES[settings.schedule](max(updates - warmup, 1))
  if warmup:
    rise = optax.linear_schedule(1.0 / warmup, 1.0, warmup)
    schedule = optax.join_schedules([rise, schedule], [warmup])
  clip = (
    optax.identity()
    if settings.clip_norm is None
    else optax.clip_by_global_norm(settings.clip_norm)
  )
  return optax.chain(
    clip,
    DIRECTIONS[settings.optimizer](settings),
    optax.add_decayed_weights(settings.weight_decay, mask=_matrices),
    optax.scale_by_schedule(schedule),
  )


def _matrices(params):
  """Weight decay leaves out norms, biases and heads' vectors."""
  return jax.tree.map(lambda p: p.ndim >= 2, params)
