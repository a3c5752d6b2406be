"""The tables of weight names: Hugging Face's state dict and our tree, both ways."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_checkpoint

from rlhf_jax.models import registry
from rlhf_jax.weights import hf, names

FAMILIES = sorted(tiny_checkpoint.CONFIGS)


def make(family: str):
  values = hf.complete(tiny_checkpoint.CONFIGS[family], where=family)
  config = registry.config_from_hf(values)
  return config, tiny_checkpoint.tensors(names.FAMILIES[config.model_type].table(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_to_hf_undoes_from_hf(family):
  config, tensors = make(family)
  back = names.to_hf(config, names.from_hf(config, tensors))
  assert list(back) == list(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_has_the_paths_and_shapes_that_the_model_initialises(family):
  config, tensors = make(family)
  params = names.from_hf(config, tensors)
  expected = jax.eval_shape(registry.language_model(config).init, jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_a_linear_layer_is_transposed_and_an_embedding_is_not():
  config, tensors = make("llama-untied")
  params = names.from_hf(config, tensors)
  up = tensors["model.layers.1.mlp.up_proj.weight"]  # [F, D]
  np.testing.assert_array_equal(params["layers_1"]["mlp"]["up"]["kernel"], up.T)
  embedding = tensors["model.embed_tokens.weight"]
  np.testing.assert_array_equal(params["embed"]["embedding"], embedding)
  np.testing.assert_array_equal(params["unembed"]["kernel"], tensors["lm_head.weight"].T)


def test_gpt2_fused_attention_splits_into_query_key_and_value():
  config, tensors = make("gpt2")
  D = config.hidden_size
  weight, bias = (tensors[f"transformer.h.0.attn.c_attn.{kind}"] for kind in ("weight", "bias"))
  attention = names.from_hf(config, tensors)["layers_0"]["attention"]
  np.testing.assert_array_equal(attention["k"]["kernel"], weight[:, D : 2 * D])
  np.testing.assert_array_equal(attention["v"]["bias"], bias[2 * D :])


def test_the_bare_trunk_and_old_buffers_are_read():
  config, tensors = make("gpt2")
  bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
  bare["h.0.attn.bias"] = np.ones((1, 1, 16, 16), bool)  # the causal mask, saved by old versions
  bare["h.1.attn.masked_bias"] = np.float32(-1e4)
  expected, found = names.from_hf(config, tensors), names.from_hf(config, bare)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_copy_of_a_tied_head_is_dropped_and_another_head_is_refused():
  config, tensors = make("llama")
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  assert "unembed" not in names.from_hf(config, tensors)
  tensors["lm_head.weight"][3, 5] += 1
  with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
    names.from_hf(config, tensors)


@pytest.mark.parametrize(
  "family, name",
  [("qwen2", "model.layers.1.self_attn.q_proj.bias"), ("gpt2", "transformer.wpe.weight")],
)
def test_a_missing_tensor_is_named_with_its_shape(family, name):
  config, tensors = make(family)
  shape = tensors.pop(name).shape
  with pytest.raises(ValueError) as error:
    names.from_hf(config, tensors, where="folder/model.safetensors")
  assert f"folder/model.safetensors lacks {name} {shape}" in str(error.value)


def test_a_wrong_shape_is_named_with_what_was_expected():
  config, tensors = make("llama")
  tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((24, 41), np.float32)
  with pytest.raises(
    ValueError, match=r"layers.0.mlp.down_proj.weight: found shape \(24, 41\), expected \(24, 40\)"
  ):
    names.from_hf(config, tensors)


def test_an_extra_tensor_is_named():
  config, tensors = make("llama")
  tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((40, 24), np.float32)
  with pytest.raises(ValueError, match=r"layers.2.mlp.up_proj.weight \(40, 24\), which the config"):
    names.from_hf(config, tensors)


def test_a_long_list_of_missing_tensors_is_cut():
  config, tensors = make("llama")
  with pytest.raises(ValueError, match="and 15 more; is it a checkpoint of this config"):
    names.from_hf(config, {})


def test_adapters_must_be_merged_before_writing():
  config, tensors = make("llama")
  params = names.from_hf(config, tensors)
  params["layers_0"]["mlp"]["up"]["lora_a"] = np.zeros((24, 2), np.float32)
  with pytest.raises(ValueError, match="layers_0/mlp/up/lora_a.*merge adapters"):
    names.to_hf(config, params)


def test_a_missing_or_misshapen_leaf_is_named_before_writing():
  config, tensors = make("llama")
  params = names.from_hf(config, tensors)
  params["layers_1"]["mlp"]["up"]["kernel"] = np.zeros((24, 39), np.float32)
  with pytest.raises(ValueError, match=r"layers_1/mlp/up/kernel.*\(39, 24\), expected \(40, 24\)"):
    names.to_hf(config, params)
  del params["layers_1"]["mlp"]["up"]
  with pytest.raises(ValueError, match="params have no layers_1/mlp/up/kernel"):
    names.to_hf(config, params)


def test_a_family_without_a_table_is_refused():
  config, tensors = make("llama")
  with pytest.raises(ValueError, match="model_type='mamba' has no table"):
    names.from_hf(dataclasses.replace(config, model_type="mamba"), tensors)
