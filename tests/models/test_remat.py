"""What blocks keep for their backward pass, by name of the policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import from_dict
from rlhf_jax.models import llama, registry, remat
from rlhf_jax.training import setup, step

CONFIG = llama.LlamaConfig(
  vocab_size=19,
  hidden_size=24,
  intermediate_size=80,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  max_positions=64,
  tied=True,
)
B, T = 5, 33


def rows():
  return (
    jnp.ones((B, T), jnp.int32),
    jnp.tile(jnp.arange(T)[None], (B, 1)),
    jnp.ones((B, T), jnp.int32),
  )


def kept(policy: str) -> float:
  """Numbers a token and block that are kept beside the weights."""
  block = llama.Block(CONFIG, "float32")
  x, positions = jnp.ones((B, T, 24)), rows()[1]
  others = CONFIG.rotary.tables(positions, 6), jnp.ones((B, T, T), bool)
  weights = jax.eval_shape(lambda: block.init(jax.random.key(0), x, *others)["params"])

  def residuals(weights, x):
    run = lambda weights, x: block.apply({"params": weights}, x, *others)[0]
    return jax.vjp(jax.checkpoint(run, policy=remat.POLICIES[policy]), weights, x)[1]

  leaves = jax.tree.leaves(jax.eval_shape(residuals, weights, x))
  shapes = {leaf.shape for leaf in jax.tree.leaves(weights)}
  tables = {leaf.shape for leaf in jax.tree.leaves(others)}
  return sum(leaf.size for leaf in leaves if leaf.shape not in shapes | tables) / (B * T)


def test_a_policy_keeps_what_its_name_says():
  D = HC = 24
  assert kept("nothing_saveable") == D
  assert kept("attention_saveable") == D + HC
  assert kept("attention_and_residual_saveable") == D + HC + D
  maps = HC + 2 * 12 + D + 2 * 80 + D  # q, k and v, o, gate and up, down
  assert kept("dots_with_no_batch_dims_saveable") == pytest.approx(D + maps, abs=D)
  assert kept("dots_saveable") > kept("dots_with_no_batch_dims_saveable") + 4 * T


def test_blocks_that_run_again_need_less_memory_and_have_the_same_gradient():
  def compiled(**how):
    model = registry.language_model(CONFIG, **how)
    loss = lambda params: jnp.sum(jnp.sin(model.hidden(params, *rows())))
    params = model.init(jax.random.key(0))
    program = jax.jit(jax.grad(loss)).lower(params).compile()
    return program.memory_analysis().temp_size_in_bytes, program(params)

  plain, gradient = compiled()
  again, same = compiled(remat=True)
  assert again < 0.6 * plain
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), same, gradient)


def compiled_with(layers: int):
  """The gradient of a sum over `layers` blocks, as a train step is compiled."""
  config = dataclasses.replace(CONFIG, num_layers=layers)
  model = registry.language_model(config, remat=True)
  loss = lambda params: jnp.sum(jnp.sin(model.hidden(params, *rows())))
  options = step.LEAN if jax.default_backend() == "cpu" else None
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.jit(jax.grad(loss), compiler_options=options).lower(shapes).compile()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's compiler needs to be told")
def test_what_gradients_of_weights_are_made_of_goes_with_each_block():
  few, many = (compiled_with(n).memory_analysis().temp_size_in_bytes for n in (3, 12))
  assert (many - few) / 9 < 4 * B * T * CONFIG.intermediate_size  # one float32 array of an MLP


def test_no_gradient_is_computed_of_weights_that_stand_still():
  model = registry.language_model(CONFIG, remat=True)
  params = model.init(jax.random.key(0))
  layers = {name: x for name, x in params.items() if name.startswith("layers_")}
  first = params["layers_0"]

  def flops(learned, tree):
    loss = lambda learned: jnp.sum(model.hidden({**params, **tree(learned)}, *rows()))
    return jax.jit(jax.grad(loss)).lower(learned).compile().cost_analysis()["flops"]

  of_all = flops(layers, lambda layers: layers)
  of_a_norm = flops(first["mlp_norm"], lambda norm: {"layers_0": {**first, "mlp_norm": norm}})
  of_matrices = 2 * B * T * sum(x.size for x in jax.tree.leaves(layers) if x.ndim == 2)
  assert of_all - of_a_norm > 0.9 * of_matrices


def test_a_policy_that_there_is_not_is_refused_by_name():
  with pytest.raises(ValueError, match="model.remat_policy='nothing' is not one of 'nothing_save"):
    from_dict(setup.Model, dict(remat=True, remat_policy="nothing"), where="model")
