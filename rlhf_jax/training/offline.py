"""Learning from a dataset: rows -> batch -> train step, for SFT, reward models and DPO alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rlhf_jax import sharding
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Logps, Record
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
  widths: int = option(2, at_least=1)  # of padded batches; each compiles once


class Batches(NamedTuple):
  """A run's batches as functions of the step, so that the data cursor is the step itself."""

  steps: int
  at: Callable[[int], Any]  # step -> host batch
  ids: Callable[[int], list]  # step -> the names of its rows


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
  batches: Batches,
  finish: Callable = lambda state: state,
) -> TrainState:
  """Trains through `batches` from the newest checkpoint on; returns the last state."""
  assert_divides(setup, stage, settings)
  tx = optimizer.make_optimizer(optim, batches.steps)
  step_function = make_train_step(algorithm, tx, accumulate=settings.accumulate)
  state, train_step = start(setup, stage, algorithm, tx, config, params, step_function)

  def iterate(state, step):
    batch = setup.place_batch(batches.at(step))
    state, metrics = train_step(state, frozen, batch, config)
    return state, metrics, None

  return loop.run(
    state,
    iterate,
    stage=stage,
    steps=batches.steps,
    workdir=setup.workdir,
    checkpoints=Checkpoints(setup.workdir / "checkpoints" / stage),
    checkpoint_every=settings.checkpoint_every,
    row_ids=batches.ids,
    finish=finish,
  )


def assert_divides(setup: Setup, stage: str, settings: Settings) -> None:
  """Raises ValueError unless a batch splits evenly over devices and micro-batches."""
  name = f"{stage}.batch_size"
  assert_multiple(name, settings.batch_size, "accumulate", settings.accumulate)
  each = f"{name} / accumulate" if settings.accumulate > 1 else name
  sharding.assert_divides(each, settings.batch_size // settings.accumulate, setup.mesh)


def packed(
  rows: list[list[Example]], width: int, settings: Settings, seed: tuple[int, ...]
) -> Batches:
  """Rows of packed examples, in another order every epoch."""
  chosen = lambda step: [
    rows[i] for i in examples.batch_rows(len(rows), settings.batch_size, seed, step)
  ]
  return Batches(
    steps=_steps(settings, len(rows) / settings.batch_size),
    at=lambda step: examples.collate(chosen(step), width),
    ids=lambda step: [example.id for row in chosen(step) for example in row],
  )


def padded(
  records: Callable[[int], list[Record]],
  settings: Settings,
  seed: tuple[int, ...],
  ref_logps: Logps | None = None,
) -> Batches:
  """Records, `records(epoch)` for each epoch, in batches of few widths.

  With `ref_logps` the reference's log-probabilities come with the batch.
  """
  epochs = []
  for epoch in range(math.ceil(settings.epochs)):
    epochs.append(
      examples.batches_by_width(
        records(epoch), settings.batch_size, settings.widths, (*seed, epoch)
      )
    )
  batches = [batch for epoch in epochs for batch in epoch]
  return Batches(
    steps=min(len(batches), _steps(settings, len(epochs[0]))),
    at=lambda step: examples.collate_records(batches[step][1], batches[step][0], ref_logps),
    ids=lambda step: [record.id for record in batches[step][1]],
  )


def _steps(settings: Settings, an_epoch: float) -> int:
  return max(1, round(settings.epochs * an_epoch))
