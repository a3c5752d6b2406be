"""Learning from a dataset: rows -> batch -> train step, for SFT, reward models and DPO alike."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_jax import sharding
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.training import loop, optimizer
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.setup import Setup, assert_multiple
from rlhf_jax.training.step import make_train_step, start
from rlhf_jax.types import Algorithm, Params, TrainState


@hyperparameters
class Settings:
  """Passes over the data, and what a step takes of it."""

  epochs: float = option(1.0, above=0)
  batch_size: int = option(16, at_least=1)
  accumulate: int = option(1, at_least=1)  # parts a batch is split into, to save memory
  checkpoint_every: int = option(50, at_least=1)  # steps


def run(
  setup: Setup,
  stage: str,
  algorithm: Algorithm,
  config,
  settings: Settings,
  optim: optimizer.Settings,
  *,
  params: Params,
  frozen: Params,
  size: int,
  batch: Callable,
  ids: Callable,
  finish: Callable = lambda state: state,
) -> TrainState:
  """Trains over `size` rows; `batch(rows, epoch)` makes a host batch and `ids(rows, epoch)` names them."""
  sharding.assert_divides(f"{stage}.batch_size", settings.batch_size, setup.mesh)
  assert_multiple(f"{stage}.batch_size", settings.batch_size, "accumulate", settings.accumulate)
  steps = max(1, round(settings.epochs * size / settings.batch_size))
  rows_at = lambda step: examples.batch_rows(size, settings.batch_size, setup.seed, step)
  epoch_at = lambda step: step * settings.batch_size // size
  tx = optimizer.make_optimizer(optim, steps)
  step_function = make_train_step(algorithm, tx, accumulate=settings.accumulate)
  state, train_step = start(setup, stage, algorithm, tx, config, params, step_function)

  def iterate(state, step):
    host = batch(rows_at(step), epoch_at(step))
    state, metrics = train_step(state, frozen, setup.place_batch(host), config)
    return state, metrics, None

  return loop.run(
    state,
    iterate,
    stage=stage,
    steps=steps,
    workdir=setup.workdir,
    checkpoints=Checkpoints(setup.workdir / "checkpoints" / stage),
    checkpoint_every=settings.checkpoint_every,
    row_ids=lambda step: ids(rows_at(step), epoch_at(step)),
    finish=finish,
  )
