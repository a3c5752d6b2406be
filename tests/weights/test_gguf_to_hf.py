"""A GGUF file becomes the config and the tensors that its Hugging Face folder had."""

import gguf as official
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint

from rlhf_jax.models import registry
from rlhf_jax.weights import gguf, gguf_to_hf, hf, load, names

Type = official.GGMLQuantizationType


def make(family: str):
  values = hf.complete(tiny_checkpoint.CONFIGS[family], where=family)
  config = registry.config_from_hf(values)
  return config, tiny_checkpoint.tensors(names.FAMILIES[config.model_type].table(config))


def logits(config, params, tokens):
  model = registry.language_model(config)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return model.unembed(params, model.hidden(params, tokens, positions, jnp.ones_like(tokens)))


@pytest.mark.parametrize(
  "family", ["llama", "llama-untied", "qwen2", "qwen3", "gpt2", "gpt2-untied"]
)
def test_config_and_weights_are_those_that_were_converted(tmp_path, family):
  config, tensors = make(family)
  path = tmp_path / "model.gguf"
  tiny_checkpoint.write_gguf(path, tiny_checkpoint.CONFIGS[family], tensors)
  loaded = load.load(str(path))
  assert loaded.config == config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, names.from_hf(config, tensors))


def test_halves_are_made_of_neighbours():
  # Two heads of six channels. A rotation turns channels (0, 1), (2, 3), (4, 5) of a head in GGUF,
  # and (0, 3), (1, 4), (2, 5) in Hugging Face: row 2 of the file is channel 1, row 1 channel 3.
  rows = np.array([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15], np.float32)
  expected = np.array([0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15], np.float32)
  np.testing.assert_array_equal(gguf_to_hf.halves_from_neighbours(rows, 2), expected)


def test_rotary_order_matters_to_the_logits_and_is_undone(tmp_path):
  config, tensors = make("llama")
  tiny_checkpoint.write_gguf(tmp_path / "model.gguf", tiny_checkpoint.LLAMA, tensors)
  loaded = load.load(str(tmp_path / "model.gguf"))
  tokens = jnp.array([[7, 100, 31, 5, 200]])
  expected = logits(config, names.from_hf(config, tensors), tokens)
  np.testing.assert_array_equal(logits(config, loaded.params, tokens), expected)

  name = "model.layers.1.self_attn.k_proj.weight"
  tensors[name] = tiny_checkpoint.neighbours_from_halves(tensors[name], config.num_kv_heads)
  wrong = logits(config, names.from_hf(config, tensors), tokens)
  assert np.abs(wrong - expected).max() > 0.01


@pytest.mark.parametrize(
  "type_", [Type.Q4_1, Type.Q4_K, Type.Q5_K, Type.Q6_K], ids=lambda t: t.name
)
def test_quantised_weights_reach_the_tree(tmp_path, type_):
  values = tiny_checkpoint.LLAMA | dict(hidden_size=256, head_dim=64, num_hidden_layers=1)
  config = registry.config_from_hf(hf.complete(values, where="tiny"))
  tensors = tiny_checkpoint.tensors(names.llama_table(config))
  block, size = official.GGML_QUANT_SIZES[type_]
  rng = np.random.default_rng(3)
  stored = {}
  for name, rows in (("blk.0.attn_k.weight", 2 * 64), ("blk.0.ffn_up.weight", 40)):
    raw = rng.integers(0, 256, (rows * 256 // block, size), np.uint8)
    raw[:, 1::2] &= 0xBF  # keeps float16 scales finite
    stored[name] = (raw.reshape(rows, -1), type_)
  tiny_checkpoint.write_gguf(tmp_path / "model.gguf", values, tensors, stored=stored)
  layer = load.load(str(tmp_path / "model.gguf")).params["layers_0"]

  up = official.dequantize(*stored["blk.0.ffn_up.weight"])
  np.testing.assert_array_equal(layer["mlp"]["up"]["kernel"], up.T)
  k = official.dequantize(*stored["blk.0.attn_k.weight"])
  first = k[:64]  # the first head: even rows are its first half, odd rows the second
  np.testing.assert_array_equal(
    layer["attention"]["k"]["kernel"][:, :64], np.concatenate([first[::2], first[1::2]]).T
  )


def llama3_factors(theta: float, head_dim: int, factor: float, context: int = 8192) -> np.ndarray:
  """What llama.cpp's converter writes for Llama 3.1: a divisor for each rotary frequency."""
  out = []
  for i in range(0, head_dim, 2):
    wavelength = 2 * np.pi * theta ** (i / head_dim)
    if wavelength < context / 4:
      out.append(1.0)
    elif wavelength > context:
      out.append(factor)
    else:
      smooth = (context / wavelength - 1) / (4 - 1)
      out.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(out, np.float32)


def test_llama3_scaling_is_recovered_from_its_factors(tmp_path):
  values = tiny_checkpoint.LLAMA | dict(rope_theta=5e5, head_dim=64, max_position_embeddings=131072)
  config = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
  config["original_max_position_embeddings"] = 8192
  expected = registry.config_from_hf(
    hf.complete(
      {k: v for k, v in values.items() if k != "rope_theta"}
      | dict(rope_parameters=config | dict(rope_theta=5e5)),
      where="tiny",
    )
  )
  tensors = tiny_checkpoint.tensors(names.llama_table(expected))
  stored = {"rope_freqs.weight": (llama3_factors(5e5, 64, 8.0), Type.F32)}
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", values, tensors, stored=stored)
  assert load.load(str(tmp_path / "a.gguf")).config == expected

  stored = {"rope_freqs.weight": (llama3_factors(5e5, 64, 8.0, context=4096), Type.F32)}
  tiny_checkpoint.write_gguf(tmp_path / "b.gguf", values, tensors, stored=stored)
  with pytest.raises(ValueError, match="rope_freqs.weight is not Llama 3's scaling"):
    load.load(str(tmp_path / "b.gguf"))


def test_linear_scaling_is_read(tmp_path):
  _, tensors = make("llama")
  extra = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.LLAMA, tensors, extra=extra)
  rotary = load.load(str(tmp_path / "a.gguf")).config.rotary
  assert (rotary.kind, rotary.factor) == ("linear", 4.0)


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("llama.attention.sliding_window", 4096, "sliding_window=4096"),
    ("llama.expert_count", 8, "llama.expert_count=8 is not supported"),
    ("llama.logit_scale", 0.5, "llama.logit_scale=0.5 is not supported"),
    ("llama.rope.dimension_count", 4, "rope.dimension_count=4 differs from the head size 6"),
    ("llama.rope.scaling.type", "yarn", "no llama.rope.scaling.factor"),
    ("llama.attention.head_count_kv", [2, 2], r"head_count_kv=\[2, 2\] is not supported"),
    ("split.count", 3, "is one of 3 parts"),
  ],
)
def test_metadata_that_changes_the_model_is_refused_by_name(tmp_path, key, value, message):
  _, tensors = make("llama")
  tiny_checkpoint.write_gguf(
    tmp_path / "a.gguf", tiny_checkpoint.LLAMA, tensors, extra={key: value}
  )
  with pytest.raises(ValueError, match="a.gguf.*" + message):
    load.load(str(tmp_path / "a.gguf"))


def test_metadata_of_no_effect_is_let_through(tmp_path):
  config, tensors = make("llama")
  extra = {"llama.vocab_size": 264, "llama.expert_count": 0, "llama.attention.sliding_window": 0}
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.LLAMA, tensors, extra=extra)
  assert load.load(str(tmp_path / "a.gguf")).config == config


@pytest.mark.parametrize("key", ["block_count", "attention.layer_norm_rms_epsilon"])
def test_a_missing_size_is_named(tmp_path, key):
  _, tensors = make("llama")
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.LLAMA, tensors)
  file = gguf.read(tmp_path / "a.gguf")
  del file.metadata[f"llama.{key}"]
  with pytest.raises(ValueError, match=f"a.gguf: the metadata has no llama.{key}"):
    gguf_to_hf.config(file)


def test_an_unknown_architecture_is_named(tmp_path):
  writer = official.GGUFWriter(tmp_path / "a.gguf", "mamba")
  writer.add_tensor("w", np.zeros(3, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(ValueError, match="general.architecture='mamba' is not one of gpt2, llama"):
    load.load(str(tmp_path / "a.gguf"))


def test_a_tensor_without_a_place_is_named(tmp_path):
  _, tensors = make("llama")
  stored = {"blk.1.ffn_gate_inp.weight": (np.zeros((2, 24), np.float32), Type.F32)}
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.LLAMA, tensors, stored=stored)
  with pytest.raises(
    ValueError, match="tensor blk.1.ffn_gate_inp.weight has no place in the llama"
  ):
    load.load(str(tmp_path / "a.gguf"))


def test_gpt2_with_a_copy_of_its_embedding_as_head_is_tied(tmp_path):
  config, tensors = make("gpt2")
  stored = {"output.weight": (tensors["transformer.wte.weight"], Type.F32)}
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.GPT2, tensors, stored=stored)
  loaded = load.load(str(tmp_path / "a.gguf"))
  assert loaded.config == config and "unembed" not in loaded.params


def test_gguf_files_are_read_as_the_gguf_package_reads_them(tmp_path):
  _, tensors = make("qwen3")
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", tiny_checkpoint.CONFIGS["qwen3"], tensors)
  ours, theirs = gguf.read(tmp_path / "a.gguf"), official.GGUFReader(tmp_path / "a.gguf")
  assert ours.metadata == {
    key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
  }
  for tensor in theirs.tensors:
    np.testing.assert_array_equal(ours.tensors[tensor.name].dequantise(), tensor.data)
