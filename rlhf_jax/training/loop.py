"""The loop around the train step: progress, logs, checkpoints, signals, and a stop at the first NaN."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import jax
from tqdm import tqdm

from rlhf_jax.sharding import processes
from rlhf_jax.training import memory
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.log import open_log
from rlhf_jax.types import TrainState


class Interrupted(SystemExit):
  """A signal asked the run to stop; everything is saved. Uncaught, the exit code is the shell's for it."""

  def __init__(self, message: str, number: signal.Signals):
    super().__init__(message)
    self.code = 128 + number


class NotFinite(FloatingPointError):
  """The loss or its gradient is NaN or infinite."""


def run(
  state: TrainState,
  iterate: Callable[[TrainState, int], tuple],
  *,
  stage: str,
  steps: int,
  workdir: str | os.PathLike,
  checkpoints: Checkpoints,
  checkpoint_every: int,
  row_ids: Callable[[int], Sequence],
  finish: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
  """Iterates from the newest checkpoint to `steps`, and returns the last state.

  `iterate(state, step) -> (state, metrics, samples)`, where metrics is a dict of `Mean` still on the
  device and samples, if any, a function that fetches rows for samples.jsonl. Both are read one
  step late, so that the device never waits for a print. `finish` is applied to the last state before
  it is saved.

  Raises Interrupted after SIGTERM or SIGINT, on every process when one was sent it, NotFinite at a loss that is not finite.
  """
  if checkpoints.latest() is not None:
    state = checkpoints.restore(state, donate=True)
  first = int(state.step)
  if first >= steps:
    if processes.is_first():
      print(f"{stage}: finished, {first} steps", file=sys.stderr, flush=True)
    checkpoints.close()
    return state
  memory.give_back()
  log = open_log(workdir, stage, resume_step=first)
  bar = tqdm(
    total=steps,
    initial=first,
    desc=f"{stage:>12}",
    unit="step",
    dynamic_ncols=True,
    disable=not processes.is_first(),
  )
  pending = None
  clock = time.perf_counter()

  def flush():
    nonlocal pending, clock
    if pending is None:
      return
    step, metrics, samples = pending
    pending = None
    scalars = {k: _float(m) for k, m in sorted(processes.fetch(metrics).items())}
    _assert_finite(scalars, step, stage, row_ids(step - 1), checkpoints)
    now = time.perf_counter()
    log.metrics(step, {**scalars, "time/step": now - clock})
    clock = now
    if samples is not None:
      log.samples(step, samples())
    bar.update(1)
    bar.set_postfix_str(_summary(scalars))

  try:
    with _stop_signals() as stop:
      for step in range(first, steps):
        state, metrics, samples = iterate(state, step)
        flush()
        pending = (step + 1, metrics, samples)
        done = step + 1 == steps
        stopped = stop.agreed(now=done)
        if done or stopped or (step + 1) % checkpoint_every == 0:
          flush()
          log.flush()
          state = finish(state) if done else state
          checkpoints.save(step + 1, state)
        if stopped:
          break
      checkpoints.wait()
      if stopped:
        number = signal.Signals(stopped)
        raise Interrupted(
          f"stopped by {number.name} after step {step + 1} of {steps} of stage {stage}; "
          "everything is saved. Run the same command again to go on from there.",
          number,
        )
  finally:
    _settle(state)
    bar.close()
    log.close()
    checkpoints.close()
  return state


def _settle(state) -> None:
  """Waits for the step that still runs: programs are gone at the process's end, and it would be a segmentation fault."""
  if not processes.several():  # where others may have ended, and what is waited for never comes
    arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array) and not x.is_deleted()]
    with contextlib.suppress(RuntimeError):  # what went wrong is being told already
      jax.block_until_ready(arrays)


class _Stop:
  """A signal that asks for a stop, or 0."""

  requested = 0  # of this process
  _told = 0  # by all, at the step before

  def agreed(self, *, now: bool) -> int:
    """The signal that any process was sent, on all of them after the same step.

    With several this is what they told one another a step ago, which the devices know by now, unless all are to wait: `now`.
    """
    if not processes.several():
      return self.requested
    told, self._told = self._told, processes.greatest(self.requested)
    return max(int(told), int(self._told) if now else 0)


@contextlib.contextmanager
def _stop_signals():
  """Within, SIGTERM and SIGINT only ask for a stop at the end of the step; one that came too late for it is raised again.

  Main thread only.
  """
  stop = _Stop()

  def ask(number, frame):
    stop.requested = number

  try:
    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: a notebook's worker, say
    before = {}
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if stop.requested:  # while the last step was saved
    signal.raise_signal(stop.requested)


def _assert_finite(scalars, step: int, stage: str, ids, checkpoints: Checkpoints) -> None:
  loss, norm = scalars["loss/total"], scalars.get("optim/grad_norm", 0.0)
  if math.isfinite(loss) and math.isfinite(norm):
    return
  last = checkpoints.latest()
  good = f"step {last} in {checkpoints.folder}" if last is not None else "none"
  raise NotFinite(
    f"the loss is {loss}, its gradient's norm {norm}, at step {step} of stage {stage}; rows of its batch: "
    f"{', '.join(map(str, ids))}; last good checkpoint: {good}. Look at these rows, lower the "
    "learning rate or clip_norm, and run again to go on from that checkpoint."
  )


def _float(mean) -> float:
  return float(mean.sum / max(mean.count, 1e-8))


def _summary(scalars: dict[str, float]) -> str:
  names = ("loss/total", "rewards/accuracy", "rewards/mean", "policy/kl_exact")
  return " ".join(f"{n.split('/')[1]} {scalars[n]:.3g}" for n in names if n in scalars)
