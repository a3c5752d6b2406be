"""Hugging Face configs: read strictly, written so that they read back the same."""

import dataclasses
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers  # noqa: E402

from rlhf_jax.models import layers, llama, registry  # noqa: E402

LLAMA = dict(
  model_type="llama",
  vocab_size=19,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
)
GPT2 = dict(
  model_type="gpt2",
  vocab_size=17,
  n_embd=12,
  n_layer=2,
  n_head=3,
  n_positions=32,
  layer_norm_epsilon=1e-5,
)
LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)

REFUSED = {
  "unknown family": (
    dict(LLAMA, model_type="mamba"),
    "model_type='mamba'; supported: llama, .*gpt2",
  ),
  "no family": (dict(vocab_size=3), "model_type=None"),
  "missing size": (dict(LLAMA, hidden_size=None), "has no hidden_size"),
  "activation": (dict(LLAMA, hidden_act="gelu"), "hidden_act='gelu'; supported: 'silu'"),
  "mlp bias": (dict(LLAMA, mlp_bias=True), "mlp_bias=True"),
  "dropout": (dict(LLAMA, attention_dropout=0.1), "attention_dropout=0.1"),
  "interleaved": (dict(LLAMA, rope_interleaved=True), "rope_interleaved=True"),
  "partial rotary": (dict(LLAMA, partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
  "quantised": (dict(LLAMA, quantization_config={"bits": 4}), "quantization_config=.*'bits': 4"),
  "window": (dict(LLAMA, model_type="mistral", sliding_window=4096), "sliding_window=4096"),
  "switched window": (
    dict(LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=32),
    "sliding_window=32",
  ),
  "layer type": (
    dict(LLAMA, model_type="qwen3", layer_types=["full_attention", "sliding_attention"]),
    "layer_types='sliding_attention'",
  ),
  "qwen2 with a switched bias": (
    dict(LLAMA, model_type="qwen2", attention_bias=True),
    "attention_bias",
  ),
  "yarn": (
    dict(LLAMA, rope_scaling=dict(type="yarn", factor=4.0)),
    "rope_scaling.rope_type='yarn'",
  ),
  "dynamic": (
    dict(LLAMA, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4)),
    "rope_parameters.rope_type='dynamic'; supported: 'default', 'linear', 'llama3'",
  ),
  "half a scaling": (dict(LLAMA, rope_scaling=dict(rope_type="linear")), "no rope_scaling.factor"),
  "nested rotary": (
    dict(LLAMA, rope_parameters={"full_attention": dict(rope_type="default")}),
    "rope_parameters.full_attention=",
  ),
  "new partial rotary": (
    dict(LLAMA, rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)),
    "rope_parameters.partial_rotary_factor=0.5",
  ),
  "gpt2 activation": (dict(GPT2, activation_function="relu"), "activation_function='relu'"),
  "gpt2 scaling": (dict(GPT2, scale_attn_weights=False), "scale_attn_weights=False"),
  "gpt2 layer scaling": (
    dict(GPT2, scale_attn_by_inverse_layer_idx=True),
    "scale_attn_by_inverse_layer_idx=True",
  ),
  "gpt2 cross attention": (dict(GPT2, add_cross_attention=True), "add_cross_attention=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_field_and_value(case):
  hf, message = REFUSED[case]
  with pytest.raises(ValueError, match=message):
    registry.config_from_hf(hf)


ACCEPTED = {
  "llama": LLAMA,
  "tied": dict(LLAMA, tie_word_embeddings=True),
  "biased": dict(LLAMA, attention_bias=True),
  "grouped, wide": dict(LLAMA, num_key_value_heads=2, head_dim=10),
  "linear": dict(LLAMA, rope_theta=5e5, rope_scaling=dict(type="linear", factor=2.0)),
  "llama3": dict(LLAMA, rope_scaling=LLAMA3),
  "llama3, new": dict(LLAMA, rope_parameters=dict(LLAMA3, rope_theta=5e5)),
  "mistral": dict(LLAMA, model_type="mistral", sliding_window=None),
  "qwen2": dict(LLAMA, model_type="qwen2", use_sliding_window=False, sliding_window=32),
  "qwen3": dict(LLAMA, model_type="qwen3", head_dim=6),
  "gpt2": GPT2,
  "gpt2, narrow": dict(GPT2, n_inner=20, attn_pdrop=0.1),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_config_written_for_transformers_reads_back_the_same(case):
  config = registry.config_from_hf(ACCEPTED[case])
  assert registry.config_from_hf(config.to_hf()) == config
  theirs = transformers.AutoConfig.for_model(**config.to_hf())
  assert registry.config_from_hf(theirs.to_dict()) == config


def test_the_switches_of_each_family():
  switches = lambda **changes: registry.config_from_hf(dict(LLAMA, **changes))
  assert switches().num_kv_heads == 4 and switches().head_dim == 4
  assert switches(model_type="qwen2").qkv_bias and not switches(model_type="qwen2").o_bias
  assert switches(attention_bias=True).qkv_bias and switches(attention_bias=True).o_bias
  assert switches(model_type="qwen3").qk_norm and not switches().qk_norm
  rotary = switches(rope_parameters=dict(LLAMA3, rope_theta=5e5)).rotary
  assert rotary == layers.Rotary(5e5, "llama3", 8.0, 1.0, 4.0, 16)


def test_a_config_can_not_change_under_a_compiled_program():
  config = registry.config_from_hf(LLAMA)
  assert isinstance(config, llama.LlamaConfig) and hash(config) == hash(dataclasses.replace(config))
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.hidden_size = 3
