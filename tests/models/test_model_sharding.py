"""A mesh changes where numbers lie, not what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sharding
from rlhf_jax.models import lora, registry

OPTIONS = {
  "float32": (dict(dtype="float32"), 1e-4),
  "bfloat16, scan, remat": (dict(dtype="bfloat16", scan=True, remat=True), 0.02),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_gradients_on_a_mesh_are_those_of_one_device(config, params, rows, case):
  options, tolerance = OPTIONS[case]
  model = registry.language_model(config, **options)
  adapter = lora.init(jax.random.key(0), params, rank=2, targets=("q", "down"))
  trees = jax.tree.map(lambda x: x + 0.1, adapter), params
  rows = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), rows)  # four rows over two shards

  def loss(trees, rows):
    weights = lora.attach(trees[1], trees[0], 1.0)
    hidden = model.hidden(weights, rows.tokens, rows.positions, rows.segments)
    return jnp.mean(rows.response_mask * jax.nn.logsumexp(model.unembed(weights, hidden), axis=-1))

  one = jax.jit(jax.value_and_grad(loss))(trees, rows)
  mesh = sharding.make_mesh(1, 2, 2)
  placed = jax.device_put(trees, sharding.tree_shardings(mesh, trees, registry.axes(config)))
  with jax.set_mesh(mesh):
    many = jax.jit(jax.value_and_grad(loss))(
      placed, jax.device_put(rows, sharding.batch_sharding(mesh))
    )
  # Some gradients are nothing but rounding (a bias of all keys shifts every score alike), so a
  # difference may also be small beside the whole gradient.
  whole = float(optax.global_norm(one[1]))
  for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
    assert np.linalg.norm(a - b) <= tolerance * (np.linalg.norm(b) + 1e-3 * whole)


def test_sequence_sharding_lays_time_over_tensor_before_every_block(config, params):
  tokens = jnp.zeros((2, 6), jnp.int32)
  rows = tokens, jnp.arange(6)[None] + tokens, tokens + 1

  def spread(sequence):
    model = registry.language_model(config, sequence=sequence)
    with jax.set_mesh(sharding.make_mesh(1, 2, 2)):
      blocks = jax.make_jaxpr(model.hidden)(params, *rows).eqns
    blocks = [block for block in blocks if block.primitive.name == "jit"]
    steps = [step for block in blocks for step in block.params["jaxpr"].eqns]
    specs = [s.params["sharding"].spec for s in steps if s.primitive.name == "sharding_constraint"]
    return sum(spec[1] == "tensor" for spec in specs)

  assert spread(True) == config.num_layers and spread(False) == 0
