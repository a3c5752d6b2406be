"""The loop's own promises that no run of an experiment shows."""

import signal

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.cli.train import interruptible
from rlhf_jax.training import loop
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.types import Mean, TrainState


@jax.jit
def slowly(x):
  return jax.lax.fori_loop(0, 300, lambda i, x: jnp.tanh(x @ x), x)


def test_a_step_that_still_runs_is_waited_for_before_an_error_ends_the_process(tmp_path):
  begun = []

  def iterate(state, step):
    if step == 1:
      raise OSError("the disk is full")
    begun.append(slowly(jnp.ones((500, 500))))
    assert not begun[0].is_ready()
    return state.replace(params=begun[0]), {}, None

  state = TrainState(jnp.zeros((), jnp.int32), {}, (), jax.random.key(0), {})
  slowly(jnp.ones((500, 500))).block_until_ready()
  with pytest.raises(OSError, match="the disk is full"):
    loop.run(
      state,
      iterate,
      stage="sft",
      steps=3,
      workdir=tmp_path,
      checkpoints=Checkpoints(tmp_path / "checkpoints"),
      checkpoint_every=5,
      row_ids=lambda step: [],
    )
  assert begun[0].is_ready()


def test_a_signal_while_the_last_step_is_saved_stops_the_run_behind_it(tmp_path):
  state = TrainState(jnp.zeros((), jnp.int32), {}, (), jax.random.key(0), {})
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  loss = Mean(jnp.zeros(()), jnp.ones(()))

  def finish(state):
    signal.raise_signal(signal.SIGTERM)
    return state

  with pytest.raises(loop.Interrupted) as stopped, interruptible():
    loop.run(
      state,
      lambda state, step: (state.replace(step=state.step + 1), {"loss/total": loss}, None),
      stage="sft",
      steps=1,
      workdir=tmp_path,
      checkpoints=checkpoints,
      checkpoint_every=5,
      row_ids=lambda step: [],
      finish=finish,
    )
  assert stopped.value.code == 128 + signal.SIGTERM
  assert Checkpoints(tmp_path / "checkpoints").latest() == 1
