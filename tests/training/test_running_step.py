"""The loop's own promises that no run of an experiment shows."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.training import loop
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.types import TrainState


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
