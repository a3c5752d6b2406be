"""A frozen base in 8 or 4 bits: what rounding may cost, what trains over it, and what stays small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlhf_jax.algorithms import sft
from rlhf_jax.config import from_dict
from rlhf_jax.models import decoder, llama, lora, quantize, registry
from rlhf_jax.models.policy import make_policy
from rlhf_jax.training import optimizer, setup
from rlhf_jax.training.step import init_state, make_train_step

QUANTIZED = quantize.BASES[1:]
# Half of the widest gap between two levels, in units of a block's largest weight.
ERROR = {"int8": 1 / 254, "int4": 1 / 14, "nf4": (1 - 0.6961928) / 2}


def whole(kernel, base):
  return quantize.dequantize(*quantize.quantize(kernel, base))


@pytest.fixture(scope="module")
def hidden(config):
  model = jax.jit(registry.language_model(config).hidden)
  return lambda params, rows: model(params, rows.tokens, rows.positions, rows.segments)


def test_codes_and_scales_by_hand():
  kernel = jnp.array([[1.27, -0.7], [0.3, 0.21], [-0.011, 0.0]])
  codes, scale = quantize.quantize(kernel, "int8")
  np.testing.assert_array_equal(codes, [[127, -127], [30, 38], [-1, 0]])
  np.testing.assert_allclose(scale, [[1.27, 0.7]])
  codes, _ = quantize.quantize(kernel, "int4")
  np.testing.assert_array_equal(codes.astype(int), [[7, -7], [2, 2], [0, 0]])
  codes, _ = quantize.quantize(
    kernel, "nf4"
  )  # 0.236 lies nearest 0.246, level 10; 0.3 nearest 0.338
  np.testing.assert_array_equal(codes.astype(int), [[15, 0], [10, 11], [7, 7]])


def test_the_levels_of_nf4_are_quantiles_of_the_normal_distribution():
  outermost = (1 - 1 / 32 + 1 - 1 / 30) / 2
  above = stats.norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
  below = -stats.norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
  levels = np.sort(np.concatenate([above, below, [0.0]])) / above.max()
  np.testing.assert_allclose(quantize.NF4, levels, atol=2e-6)


@pytest.mark.parametrize("base", QUANTIZED)
def test_no_weight_moves_by_more_than_half_a_gap_of_its_block(base):
  kernel = np.random.RandomState(0).standard_normal((128, 5)).astype(np.float32)
  kernel[64:, 3] = 0.0
  rows = 128 if base == "int8" else 64
  largest = np.repeat(np.abs(kernel).reshape(-1, rows, 5).max(axis=1), rows, axis=0)
  error = np.abs(whole(kernel, base) - kernel)
  assert (error <= 1.0001 * ERROR[base] * largest).all()
  assert error.max() > 0.5 * ERROR[base]


def test_a_base_of_8_bits_has_a_quarter_of_its_kernels_bytes_and_one_of_4_an_eighth():
  kernel = jax.ShapeDtypeStruct((512, 96), jnp.float32)
  size = lambda base: sum(
    leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8
    for leaf in jax.eval_shape(lambda w: quantize.quantize(w, base), kernel)
  )
  assert size("int8") == 512 * 96 + 4 * 96
  assert size("int4") == size("nf4") == 512 * 96 // 2 + 4 * 96 * 512 // 64


def test_only_linear_maps_of_layers_are_quantized_and_only_codes_survive_a_cast(params):
  kept = decoder.cast_for_decoding(quantize.quantized(params, "int4"), "bfloat16")
  dtypes = {
    "/".join(key.key for key in path): str(leaf.dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
  }
  for path, dtype in dtypes.items():
    linear = path.startswith("layers_") and path.endswith("/kernel")
    matrix = path.endswith(("embedding", "kernel"))
    assert dtype == ("int4" if linear else "bfloat16" if matrix else "float32"), path
  assert sum(path.endswith("kernel_scale") for path in dtypes) >= 12


def test_a_model_of_8_bits_computes_nearly_what_the_float_model_does(hidden, params, rows):
  exact = hidden(params, rows)
  near = hidden(quantize.quantized(params, "int8"), rows)
  coarse = hidden(quantize.quantized(params, "int4"), rows)
  error = lambda x: float(jnp.abs(x - exact).mean() / jnp.abs(exact).mean())
  assert 0 < error(near) < 0.05
  assert error(near) < error(coarse)


def test_adapters_get_the_gradient_of_the_dequantized_model_and_codes_none(config, params, rows):
  base = {"llama": "nf4", "gpt2": "int8"}[config.model_type]
  kept = quantize.quantized(params, base)
  adapter = lora.init(jax.random.key(0), params, rank=2, targets=("q", "down"))
  adapter = jax.tree.map(lambda x: x + 0.1, adapter)
  plain, scanned = (
    registry.language_model(config, remat=remat, scan=remat) for remat in (False, True)
  )

  def gradient(model, weights):
    def loss(adapter):
      attached = lora.attach(weights, adapter, 0.5)
      return jnp.sum(jnp.sin(model.hidden(attached, rows.tokens, rows.positions, rows.segments)))

    return jax.jit(jax.grad(loss))(adapter)

  wanted = gradient(plain, quantize.dequantized(kept))
  for model in (plain, scanned):
    found = gradient(model, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, wanted)
  _, pull = jax.vjp(
    lambda s: quantize.matmul(jnp.ones((3, 12)), jnp.ones((12, 4), jnp.int8), s, "float32"),
    jnp.ones((1, 4)),
  )
  np.testing.assert_array_equal(pull(jnp.ones((3, 4)))[0], 0)


def test_merging_makes_kernels_whole_and_adds_to_them():
  base = {"layers_0": {"q": {"kernel": jnp.full((4, 3), 0.5)}, "k": {"kernel": jnp.eye(4)}}}
  adapter = {"layers_0": {"q": {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.full((2, 3), 0.5)}}}
  merged = lora.merge(quantize.quantized(base, "int4"), adapter, 3.0)
  np.testing.assert_allclose(merged["layers_0"]["q"]["kernel"], 3.5)
  np.testing.assert_allclose(merged["layers_0"]["k"]["kernel"], jnp.eye(4))


def test_the_gradient_never_holds_the_kernels_of_all_layers_at_once():
  config = llama.LlamaConfig(
    vocab_size=19,
    hidden_size=64,
    intermediate_size=256,
    num_layers=6,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    max_positions=8,
    tied=True,
  )
  model = registry.language_model(config)
  row = jnp.ones((1, 3), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0))
  kept = jax.eval_shape(lambda p: quantize.quantized(p, "int4"), params)
  adapter = jax.eval_shape(
    lambda key: lora.init(key, params, rank=1, targets=("q", "down")), jax.random.key(0)
  )
  loss = lambda adapter, kept: jnp.sum(model.hidden(lora.attach(kept, adapter, 1.0), row, row, row))
  memory = jax.jit(jax.grad(loss)).lower(adapter, kept).compile().memory_analysis()
  layer = 4 * (4 * 64 * 64 + 3 * 64 * 256)  # bytes
  assert memory.temp_size_in_bytes < 2 * layer


def test_scales_lie_on_the_mesh_as_their_kernels_do(config):
  table = dict(registry.axes(config))
  for pattern, axes in table.items():
    if pattern.endswith("kernel$") and not pattern.startswith(("q_", "unembed")):
      assert table[pattern.replace("kernel$", "kernel_scale$")] == axes


def test_adapters_over_4_bits_learn_a_sentence(config, params, rows):
  policy = make_policy(registry.language_model(config))
  algorithm, settings = sft.make(policy), sft.Config(learning_rate=0.03)
  tx = optimizer.make_optimizer(optimizer.Settings(schedule="constant"), 20)
  adapter = lora.init(jax.random.key(1), params, rank=2, targets=("q", "v", "down"))
  state = init_state(jax.random.key(0), {"model": adapter}, algorithm, tx, settings)
  frozen = {"base": quantize.quantized(params, "nf4")}
  step = jax.jit(make_train_step(algorithm, tx))
  losses = []
  for _ in range(20):
    state, metrics = step(state, frozen, rows, settings)
    losses.append(float(metrics["loss/total"].value))
  assert losses[-1] < 0.7 * losses[0]


def test_a_base_of_fewer_bits_is_refused_where_the_whole_model_trains():
  with pytest.raises(ValueError, match="lora.base='int4' is frozen, and lora.rank=0 trains"):
    from_dict(setup.Lora, dict(rank=0, base="int4"), where="lora")
  with pytest.raises(ValueError, match="lora.base='int3' is not one of"):
    from_dict(setup.Lora, dict(base="int3"), where="lora")
