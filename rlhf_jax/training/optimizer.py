"""Optimizers by config. Schedules peak at 1 and the learning rate multiplies last, in the train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import hyperparameters, option


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
  """Gradients of a norm above `most` scaled down to it.

  By one factor that is 1 below, where `optax.clip_by_global_norm` divides every number: a product is computed where it is used, and
  quotients are kept, which takes a second tree of gradients (466 of 1,027 MB of a step of SmolLM2-135M's temporary memory).
  """

  def update(gradients, state, params=None):
    norm = optax.global_norm(gradients)
    return jax.tree.map(lambda g: g * _within(most, norm).astype(g.dtype), gradients), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _within(most: float, norm: jax.Array) -> jax.Array:
  """The factor that makes a norm above `most` equal to it, and 1 for others."""
  return jnp.where(norm < most, 1.0, most / norm)


def scale_by_adam_tf(
  b1: float, b2: float, eps: float, mu_dtype: str = "float32"
) -> optax.GradientTransformation:
  """Adam as TensorFlow 1 computes it, which OpenAI's early curves need (arXiv:1412.6980, end of section 2).

    √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

  ε is outside the bias correction: in the first steps it weighs more, by 1 / √(1 − β₂ᵗ), than in `optax.scale_by_adam`.
  """
  plain = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

  def update(gradients, state, params=None):
    _, state = plain.update(gradients, state, params)
    count = state.count.astype(jnp.float32)
    scale = jnp.sqrt(1.0 - b2**count) / (1.0 - b1**count)
    direction = lambda m, v: scale * m / (jnp.sqrt(v) + eps)
    return jax.tree.map(direction, state.mu, state.nu), state

  return optax.GradientTransformation(plain.init, update)


def scale_by_adafactor() -> optax.GradientTransformation:
  """Adafactor without momentum (arXiv:1804.04235): of a matrix's second moments, the means of its rows and columns.

  The decay is 1 − t^−0.8 and an update's root mean square is at most 1 in each matrix, as in the paper; the learning rate is
  absolute, as that of the others, and not a share of the parameters' own scale. Matrices thinner than 128 are kept whole.
  """
  return optax.chain(
    optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128),
    optax.stateless_with_tree_map(lambda u, _: u * _within(1.0, jnp.sqrt(jnp.mean(u * u)))),
  )


def in_host_memory(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx`, whose state lies in the host's memory and comes to the device for each update."""
  move = lambda tree, to: jax.tree.map(lambda x: jax.device_put(x, to) if x.ndim else x, tree)

  def update(gradients, state, params=None):
    updates, state = tx.update(gradients, move(state, jax.memory.Space.Device), params)
    return updates, move(state, jax.memory.Space.Host)

  return optax.GradientTransformation(tx.init, update)


HOST = "pinned_host"  # the kind of memory
DIRECTIONS = {
  "adamw": lambda s: optax.scale_by_adam(s.b1, s.b2, s.eps, mu_dtype=s.momentum_dtype),
  "adam_tf": lambda s: scale_by_adam_tf(s.b1, s.b2, s.eps, s.momentum_dtype),
  "adafactor": lambda s: scale_by_adafactor(),
  "lion": lambda s: optax.scale_by_lion(s.b1, s.b2, mu_dtype=s.momentum_dtype),
  "sgd": lambda s: optax.trace(decay=s.b1, accumulator_dtype=s.momentum_dtype),
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
  b1: float = option(0.9, at_least=0, below=1)  # momentum, of all but adafactor
  b2: float = option(0.95, at_least=0, below=1)  # adamw, adam_tf and lion
  eps: float = option(1e-8, above=0)  # adamw and adam_tf
  weight_decay: float = option(0.0, at_least=0)  # on matrices
  clip_norm: float | None = option(1.0, above=0)
  momentum_dtype: str = option("float32", choices=("float32", "bfloat16"))  # what it is kept in
  # Where moments wait between updates; from the host's memory they travel to the device and back for each.
  optimizer_memory: str = option("device", choices=("device", "host"))

  def assert_sound(self, where: str) -> None:
    if self.optimizer == "adafactor" and self.momentum_dtype != "float32":
      raise ValueError(
        f"{where}.momentum_dtype={self.momentum_dtype!r} has no effect on adafactor, which has no momentum; leave it out."
      )
    if self.optimizer_memory == "host":
      kinds = kinds_of_memory()
      if HOST not in kinds:
        raise ValueError(
          f"{where}.optimizer_memory='host' needs memory of the kind {HOST}, and this {jax.default_backend()} device has "
          f"{', '.join(kinds)}; leave it out."
        )


def kinds_of_memory() -> list[str]:
  """That devices here can address, such as `HOST`."""
  return [memory.kind for memory in jax.local_devices()[0].addressable_memories()]


def make_optimizer(settings: Settings, updates: int) -> optax.GradientTransformation:
  """Gradients to descent directions of unit learning rate, over a run of `updates` updates.

  The train step multiplies them by −`config.learning_rate`, which is traced.
  """
  warmup = int(settings.warmup * updates)
  schedule = SCHEDULES[settings.schedule](max(updates - warmup, 1))
  if warmup:
    rise = optax.linear_schedule(1.0 / warmup, 1.0, warmup)
    schedule = optax.join_schedules([rise, schedule], [warmup])
  clip = optax.identity() if settings.clip_norm is None else clip_by_global_norm(settings.clip_norm)
  direction = DIRECTIONS[settings.optimizer](settings)
  if settings.optimizer_memory == "host":
    direction = in_host_memory(direction)
  return optax.chain(
    clip,
    direction,
    optax.add_decayed_weights(settings.weight_decay, mask=_matrices),
    optax.scale_by_schedule(schedule),
  )


def _matrices(params):
  """Weight decay leaves out norms, biases and heads' vectors."""
  return jax.tree.map(lambda p: p.ndim >= 2, params)
