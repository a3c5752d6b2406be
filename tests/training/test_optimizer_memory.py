"""What optimizers keep: factored, in bfloat16, in the host's memory, over the mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.config import from_dict, hyperparameters
from rlhf_jax.training import optimizer
from rlhf_jax.training.step import make_train_step, start
from rlhf_jax.types import Algorithm, Mean, keep_extra, no_annotation, no_extra

TABLE = ((r"w/kernel$", ("embed", "mlp")),)


@hyperparameters
class Config:
  learning_rate: float = 0.1


def loss(params, frozen, batch, config, extra):
  error = batch["x"] @ params["w"]["kernel"] - batch["y"]
  return {"square": Mean(jnp.sum(jnp.square(error)), jnp.asarray(error.size, jnp.float32))}, {}


def trained(options, *, mesh=(1, 1, 1), steps=3, **parts):
  """(first state, last state, losses) of a linear map [128, 130] under an optimizer with those options."""
  mesh = sharding.make_mesh(*mesh)
  layout = lambda tree: sharding.tree_shardings(mesh, tree, TABLE)
  setup = types.SimpleNamespace(
    key=lambda purpose: jax.random.key(0),
    layout=layout,
    place=lambda tree: jax.device_put(tree, layout(tree)),
  )
  settings = from_dict(optimizer.Settings, {"schedule": "constant", **options}, where="sft")
  tx = optimizer.make_optimizer(settings, 10)
  algorithm = Algorithm(no_extra, no_annotation, loss, keep_extra)
  random = np.random.RandomState(0)
  target = random.standard_normal((128, 130)).astype(np.float32)
  x = random.standard_normal((12, 128)).astype(np.float32)
  params = {"w": {"kernel": jnp.zeros((128, 130)), "bias": jnp.zeros(130)}}
  with jax.set_mesh(mesh):
    step_function = make_train_step(algorithm, tx, **parts)
    state, step = start(
      setup, "sft", algorithm, tx, settings, Config(), lambda: params, step_function
    )
    first = jax.tree.map(lambda x: types.SimpleNamespace(ndim=x.ndim, sharding=x.sharding), state)
    losses = []
    for _ in range(steps):
      state, metrics = step(state, {}, {"x": x, "y": x @ target}, Config())
      losses.append(float(metrics["loss/total"].value))
  return first, state, losses


def moments(state):
  return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def test_adafactor_keeps_rows_and_columns_of_a_matrix_and_learns():
  _, state, losses = trained(dict(optimizer="adafactor"), steps=10)
  shapes = sorted(leaf.shape for leaf in moments(state) if leaf.size > 1)
  assert shapes == [(128,), (130,), (130,)]  # the third is the bias's own
  assert losses[-1] < 0.5 * losses[0]


def test_adafactors_first_update_of_a_gradient_of_rank_one_is_its_sign():
  gradient = jnp.outer(jnp.linspace(-1, 2, 128), jnp.linspace(0.5, -1.7, 130))
  tx = optimizer.scale_by_adafactor()
  update, _ = tx.update(gradient, tx.init(gradient), gradient)
  np.testing.assert_allclose(update, jnp.sign(gradient), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adam_tf", "lion", "sgd"])
def test_momentum_is_kept_in_the_dtype_asked_for_and_the_rest_in_float32(name):
  params = {"kernel": jnp.zeros((3, 2))}
  tx = optimizer.DIRECTIONS[name](optimizer.Settings(momentum_dtype="bfloat16"))
  dtypes = sorted(str(leaf.dtype) for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim)
  assert dtypes == ["bfloat16"] + ["float32"] * (len(dtypes) - 1)
  gradients = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]])}
  update, _ = tx.update(gradients, tx.init(params), params)
  exact, _ = (plain := optimizer.DIRECTIONS[name](optimizer.Settings())).update(
    gradients, plain.init(params), params
  )
  np.testing.assert_allclose(update["kernel"], exact["kernel"], rtol=1e-2)


def test_moments_in_the_hosts_memory_stay_there_and_change_nothing():
  parts = dict(epochs=2, minibatches=2)
  _, wanted, _ = trained({}, **parts)
  first, state, _ = trained(dict(optimizer_memory="host"), **parts)
  jax.tree.map(np.testing.assert_array_equal, state.params, wanted.params)
  kinds = lambda tree: {leaf.sharding.memory_kind for leaf in tree}
  assert kinds(moments(state)) == {optimizer.HOST}
  assert kinds(jax.tree.leaves(state.params)) == {"device"}
  assert kinds(moments(first)) == {optimizer.HOST}


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_sharded_parameters_have_sharded_moments_and_factors_that_are_whole(name):
  _, wanted, _ = trained(dict(optimizer=name))
  _, state, _ = trained(dict(optimizer=name), mesh=(1, 2, 2))
  for leaf in moments(state):
    split = leaf.ndim == 2
    assert leaf.sharding.is_fully_replicated != split
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, wanted.params
  )


def test_a_state_is_no_alias_of_what_it_was_made_from():
  params = {"w": jnp.ones((4, 3))}
  mesh = sharding.make_mesh()
  setup = types.SimpleNamespace(
    key=lambda purpose: jax.random.key(0),
    layout=lambda tree: sharding.tree_shardings(mesh, tree, ()),
    place=lambda tree: jax.device_put(tree, sharding.tree_shardings(mesh, tree, ())),
  )
  optim = optimizer.Settings()
  tx = optimizer.make_optimizer(optim, 1)
  algorithm = Algorithm(no_extra, no_annotation, loss, keep_extra)
  state, _ = start(setup, "sft", algorithm, tx, optim, Config(), lambda: params, lambda *_: None)
  state.params["w"].delete()
  assert params["w"].sum() == 12


def test_what_would_have_no_effect_or_no_memory_is_refused(monkeypatch):
  with pytest.raises(ValueError, match="sft.momentum_dtype='bfloat16' has no effect on adafactor"):
    from_dict(
      optimizer.Settings, dict(optimizer="adafactor", momentum_dtype="bfloat16"), where="sft"
    )
  memories = [types.SimpleNamespace(kind="device")]
  device = types.SimpleNamespace(platform="cpu", addressable_memories=lambda: memories)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  with pytest.raises(ValueError, match="optimizer_memory='host' needs memory of the kind pinned"):
    from_dict(optimizer.Settings, dict(optimizer_memory="host"), where="sft")


def test_gradients_are_scaled_to_the_norm_that_is_allowed_and_smaller_ones_left_alone():
  tx = optimizer.clip_by_global_norm(2.0)
  large = {"a": jnp.array([3.0]), "b": jnp.array([0.0, -4.0])}  # of norm 5
  clipped, _ = tx.update(large, tx.init(large))
  np.testing.assert_allclose(clipped["a"], [1.2], rtol=1e-6)
  np.testing.assert_allclose(clipped["b"], [0.0, -1.6], rtol=1e-6)
  small = {"a": jnp.array([0.3, 1.1])}
  np.testing.assert_array_equal(tx.update(small, tx.init(small))[0]["a"], small["a"])
