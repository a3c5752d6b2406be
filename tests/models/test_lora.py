"""Low-rank adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder, lora, registry

TARGETS = ("q", "v", "o", "down")


@pytest.fixture(scope="module")
def adapter(params):
  """A trained one: B is no longer zero."""
  fresh = lora.init(jax.random.key(0), params, rank=2, targets=TARGETS)
  return jax.tree.map(lambda x: x + 0.1, fresh)


@pytest.fixture(scope="module")
def run(config):
  hidden = jax.jit(registry.language_model(config).hidden)
  return lambda params, rows: hidden(params, rows.tokens, rows.positions, rows.segments)


def leaf_names(tree):
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {"/".join(key.key for key in path) for path, _ in paths}


def test_an_adapter_holds_two_thin_matrices_per_target_and_nothing_else(config, params):
  adapter = lora.init(jax.random.key(0), params, rank=2, targets=("v", "down"))
  assert leaf_names(adapter) == {
    f"layers_{i}/{target}/{leaf}"
    for i in range(config.num_layers)
    for target in ("attention/v", "mlp/down")
    for leaf in ("lora_a", "lora_b")
  }
  v = adapter["layers_1"]["attention"]["v"]
  assert v["lora_a"].shape == (config.hidden_size, 2)
  assert v["lora_b"].shape == (2, config.num_kv_heads * config.head_dim)


def test_lora_a_has_variance_one_over_its_inputs():
  params = {"layers_0": {"mlp": {"up": {"kernel": jnp.zeros((400, 30))}}}}
  a = lora.init(jax.random.key(0), params, rank=50, targets=("up",))["layers_0"]["mlp"]["up"]
  np.testing.assert_allclose(np.var(a["lora_a"]), 1 / 400, rtol=0.05)
  assert not a["lora_b"].any()


def test_a_fresh_adapter_changes_nothing(run, params, rows):
  fresh = lora.init(jax.random.key(0), params, rank=2, targets=TARGETS)
  np.testing.assert_allclose(
    run(lora.attach(params, fresh, 4.0), rows), run(params, rows), rtol=1e-6, atol=1e-6
  )


def test_a_merged_adapter_gives_the_hidden_states_of_an_attached_one(run, params, adapter, rows):
  attached = run(lora.attach(params, adapter, 0.5), rows)
  merged = lora.merge(params, adapter, 0.5)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  np.testing.assert_allclose(run(merged, rows), attached, rtol=1e-5, atol=2e-5)
  assert np.abs(attached - run(params, rows)).max() > 0.1


def test_the_scale_multiplies_the_update():
  base = {"layers_0": {"q": {"kernel": jnp.ones((3, 4))}}}
  adapter = {"layers_0": {"q": {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.full((2, 4), 0.5)}}}
  merged = lora.merge(base, adapter, 3.0)
  np.testing.assert_array_equal(merged["layers_0"]["q"]["kernel"], jnp.full((3, 4), 1 + 3 * 1.0))


def test_without_an_adapter_the_base_is_the_model_and_without_a_base_the_adapter_is(params):
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, lora.attach(params, {}, 2.0), params))
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, lora.attach({}, params, 2.0), params))


def test_attaching_leaves_the_base_as_it_was(params, adapter):
  before = leaf_names(params)
  lora.attach(params, adapter, 2.0)
  assert leaf_names(params) == before


def test_merging_into_a_bfloat16_base_keeps_updates_smaller_than_its_rounding():
  base = {"layers_0": {"q": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}}}
  adapter = {"layers_0": {"q": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.full((1, 2), 1e-4)}}}
  kernel = lora.merge(base, adapter, 1.0)["layers_0"]["q"]["kernel"]
  np.testing.assert_allclose(kernel, 1.0001, rtol=1e-6)


def test_adapters_of_stacked_layers_run_under_scan(config, run, params, adapter, rows):
  scanned = registry.language_model(config, scan=True).hidden
  weights = lora.attach(decoder.stack_layers(params), decoder.stack_layers(adapter), 0.5)
  np.testing.assert_allclose(
    jax.jit(scanned)(weights, rows.tokens, rows.positions, rows.segments),
    run(lora.attach(params, adapter, 0.5), rows),
    rtol=1e-5,
    atol=1e-5,
  )


def test_an_unknown_target_is_refused_with_the_names_there_are(params):
  with pytest.raises(ValueError, match="lora target 'query' .* it has down, .*k, o, q, up, v"):
    lora.init(jax.random.key(0), params, rank=2, targets=("q", "query"))
