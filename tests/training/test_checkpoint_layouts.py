"""A checkpoint has no layout of its own: it is restored onto whatever mesh the run that reads it has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sharding
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.step import init_state

TABLE = ((r"(^|/)w$", ("embed", "mlp")),)  # the moments of w match too
ROWS = jnp.asarray(np.random.RandomState(0).standard_normal((6, 8)), jnp.float32)
TX = optax.adam(0.1)


class Nothing:
  """An algorithm with no state of its own."""

  init_extra = staticmethod(lambda params, config: {})


def start(*mesh: int):
  """A state on such a mesh, and its layout."""
  params = {"w": jnp.linspace(-1, 1, 8 * 12).reshape(8, 12), "scale": jnp.ones(12)}
  state = init_state(jax.random.key(7), params, Nothing, TX, None)
  layout = sharding.tree_shardings(sharding.make_mesh(*mesh), state, TABLE)
  return jax.device_put(state, layout)


@jax.jit
def step(state):
  gradients = jax.grad(lambda p: jnp.mean(jnp.square(ROWS @ p["w"] * p["scale"][None])))(
    state.params
  )
  updates, opt_state = TX.update(gradients, state.opt_state)
  params = optax.apply_updates(state.params, updates)
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def host(state):
  plain = state.replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints with one of a state spread over data=1, fsdp=2, tensor=2 after two steps, and that state."""
  checkpoints = Checkpoints(tmp_path_factory.mktemp("saved") / "stage")
  state = step(step(start(1, 2, 2)))
  checkpoints.save(2, state)
  checkpoints.wait()
  yield checkpoints, state
  checkpoints.close()


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 1, 4), (2, 2, 1), (4, 1, 1)])
def test_it_is_restored_bit_for_bit_where_the_reader_wants_it_and_goes_on(saved, mesh):
  checkpoints, state = saved
  like = start(*mesh)
  restored = checkpoints.restore(like)
  for a, b in zip(host(restored), host(state), strict=True):
    assert a.tobytes() == b.tobytes()
  assert restored.params["w"].sharding == like.params["w"].sharding
  assert restored.opt_state[0].mu["w"].sharding == like.opt_state[0].mu["w"].sharding
  for a, b in zip(host(step(restored)), host(step(state)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
