"""Learning from a dataset: rows -> batch -> train step, for SFT, reward models and DPO alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Layout, Logps, Ranking, Record
from rlhf_jax.sharding import processes
from rlhf_jax.training import loop, optimizer, progress
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.setup import Setup, Weights, assert_multiple
from rlhf_jax.training.step import make_train_step, start
from rlhf_jax.types import Algorithm, Params, TrainState


@hyperparameters
class Settings:
  """Passes over the data, and what a step takes of it."""

  epochs: float = option(1.0, above=0)
  batch_size: int = option(16, at_least=1)
  accumulate: int = option(1, at_least=1)  # parts a batch is split into, to save memory
  checkpoint_every: int = option(50, at_least=1)  # steps
  widths: int = option(2, at_least=1)  # of padded batches; each compiles once; 1 packs pairs best
  # The prompt of a pair is computed once, both answers in one row, where that is narrower than two; and such rows are
  # packed into fewer where that leaves less to compute and a batch is not split.
  share_prompt: bool = True
  evaluate_every: int = option(0, at_least=0)  # steps, a policy on held-out prompts; 0 is never


# Steps that take as long as to compile one. On two cores DPO of M compiles in 14.5 s and takes 1.25 a step; on an H200 a
# Llama of 1B takes 24 s and 0.54.
COMPILING_ON_CPU, COMPILING = 16, 48


class Batches(NamedTuple):
  """A run's batches as functions of the step, so that the data cursor is the step itself."""

  steps: int
  at: Callable[..., Any]  # step -> host batch; or step and some of its rows -> those
  ids: Callable[[int], list]  # step -> the names of its rows


def run(
  setup: Setup,
  stage: str,
  algorithm: Algorithm,
  config,
  settings: Settings,
  optim: optimizer.Settings,
  *,
  params: Weights,
  frozen: Params,
  batches: Batches,
  finish: Callable = lambda state: state,
  members: Callable = lambda tx, train_step: (tx, train_step),
) -> TrainState:
  """Trains `params()` through `batches` from the newest checkpoint on; returns the last state.

  `members` makes the optimizer and the step of one model those of several at once.
  """
  progress.assert_possible(setup, stage, settings.evaluate_every)
  tx = optimizer.make_optimizer(optim, batches.steps)
  tx, step_function = members(tx, make_train_step(algorithm, tx, accumulate=settings.accumulate))
  state, train_step = start(setup, stage, algorithm, tx, optim, config, params, step_function)

  def iterate(state, step):
    size = settings.batch_size
    own = batches.at(step, processes.own_rows(setup.mesh, size))
    batch = processes.place_own_rows(own, setup.mesh, size)
    state, metrics = train_step(state, frozen, batch, config)
    if progress.due(settings.evaluate_every, step, batches.steps):
      metrics = metrics | progress.measure(setup, state.params, frozen, updates=step + 1)
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
  asked = examples.asked_of(rows, width)
  return Batches(
    steps=_steps(settings, len(rows) / settings.batch_size),
    at=lambda step, own=None: examples.collate(_own(chosen(step), own), width, asked),
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
  plan = _plan(records, settings, seed)
  layouts = examples.layouts(plan, share_prompt=settings.share_prompt)
  shards = sharding.shards_in_scope()
  compiling = COMPILING_ON_CPU if sharding.platform() == "cpu" else COMPILING
  heights = {
    width: examples.heights(layout, [chosen for w, chosen in plan if w == width], shards, compiling)
    for width, layout in layouts.items()
    if settings.accumulate == 1
  }

  def at(step: int, own: np.ndarray | None = None):
    width, chosen = plan[step]
    layout = examples.packed(layouts[width], chosen, heights.get(width, ()), shards)
    return _collated(chosen, own, layout, ref_logps)

  return Batches(
    steps=len(plan),
    at=at,
    ids=lambda step: [record.id for record in plan[step][1]],
  )


def bootstrapped(
  records: Callable[[int], list[Record]], settings: Settings, seed: tuple[int, ...], members: int
) -> Batches:
  """`padded` for several members that each draw their own records, with replacement (Efron 1979).

  A member draws the same places in the records of every epoch. In every array of a batch the members
  stand second, after the rows: [B, M, ...].
  """

  def drawn(member: int, epoch: int) -> list[Record]:
    known = records(epoch)
    places = np.random.default_rng((*seed, member)).integers(0, len(known), len(known))
    return [known[i] for i in places]

  plans = [_plan(lambda epoch, m=m: drawn(m, epoch), settings, (*seed, m)) for m in range(members)]
  widths = sorted({width for width, _ in _plan(records, settings, seed)})
  rows = lambda step: [record for plan in plans for record in plan[step][1]]
  steps = min(len(plan) for plan in plans)

  def width_of(step: int) -> int:
    needed = max(plan[step][0] for plan in plans)
    return min([w for w in widths if w >= needed], default=needed)  # few, for each compiles

  batches = [(width_of(step), rows(step)) for step in range(steps)]
  layouts = examples.layouts(batches, share_prompt=settings.share_prompt)

  def at(step: int, own: np.ndarray | None = None):
    width, chosen = batches[step]
    batch = examples.collate_records(chosen, layouts[width])
    apart = lambda x: np.swapaxes(x.reshape(members, -1, *x.shape[1:]), 0, 1)
    return _taken(jax.tree.map(apart, batch), own)

  return Batches(
    steps=steps,
    at=at,
    ids=lambda step: [record.id for record in batches[step][1]],
  )


def _collated(
  records: list[Record], own: np.ndarray | None, layout: Layout, ref_logps: Logps | None
):
  """The batch of `records`, or its rows `own`, which alone are collated; but of rankings the longest is as long as all, and packing is of all."""
  if isinstance(records[0], Ranking) or layout.packed is not None:
    return _taken(examples.collate_records(records, layout, ref_logps), own)
  return examples.collate_records(_own(records, own), layout, ref_logps)


def _own(things: list, rows: np.ndarray | None) -> list:
  return things if rows is None else [things[i] for i in rows]


def _taken(batch, rows: np.ndarray | None):
  return batch if rows is None else jax.tree.map(lambda x: x[rows], batch)


def _plan(
  records: Callable[[int], list[Record]], settings: Settings, seed: tuple[int, ...]
) -> list[tuple[int, list[Record]]]:
  """Of each step, the width of its batch and the batch's records."""
  epochs = [
    examples.batches_by_width(records(epoch), settings.batch_size, settings.widths, (*seed, epoch))
    for epoch in range(math.ceil(settings.epochs))
  ]
  steps = _steps(settings, len(epochs[0]))
  return [batch for epoch in epochs for batch in epoch][:steps]


def _steps(settings: Settings, an_epoch: float) -> int:
  return max(1, round(settings.epochs * an_epoch))
