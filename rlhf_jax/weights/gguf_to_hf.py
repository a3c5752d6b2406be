"""What a GGUF file says, in Hugging Face's words: the config as a dict, the tensors under their names and in their layout.

llama.cpp's converter (https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py) is what is undone here: names are
mapped back, GPT-2's transposition is reversed, and so is the reordering of query and key rows in files of the llama
architecture, which rotates neighbouring channels where Hugging Face rotates the two halves of a head.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from rlhf_jax.weights import gguf

# Metadata below the architecture's name -> name in a Hugging Face config.
LLAMA_KEYS = {
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.sliding_window": "sliding_window",
}
GPT2_KEYS = {
  "context_length": "n_positions",
  "embedding_length": "n_embd",
  "block_count": "n_layer",
  "feed_forward_length": "n_inner",
  "attention.head_count": "n_head",
  "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
KEYS = {"llama": LLAMA_KEYS, "qwen2": LLAMA_KEYS, "qwen3": LLAMA_KEYS, "gpt2": GPT2_KEYS}

OPTIONAL = {"attention.head_count_kv", "attention.key_length", "attention.sliding_window"}

# Read elsewhere, or of no effect on the numbers.
OTHER_KEYS = {
  "vocab_size",
  "tensor_data_layout",
  "attention.value_length",
  "attention.causal",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.scaling.type",
  "rope.scaling.factor",
  "rope.scaling.original_context_length",
  "rope.scaling.finetuned",
}

LLAMA_TENSORS = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
  "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
  "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
  "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
  "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
  "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
  "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
  "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
  "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
  "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
  "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
GPT2_TENSORS = {
  "token_embd": "transformer.wte",
  "position_embd": "transformer.wpe",
  "output_norm": "transformer.ln_f",
  "output": "lm_head",
  "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
  "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
  "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
  "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
  "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
  "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
}
TENSORS = {
  "llama": LLAMA_TENSORS,
  "qwen2": LLAMA_TENSORS,
  "qwen3": LLAMA_TENSORS,
  "gpt2": GPT2_TENSORS,
}


def config(file: gguf.File) -> dict[str, Any]:
  """The model's config as config.json would hold it; `model_type` names the family.

  A metadata key that is not understood is refused by name: it may change what the model computes.
  """
  arch = _architecture(file)
  found = {
    key.removeprefix(f"{arch}."): value
    for key, value in file.metadata.items()
    if key.startswith(f"{arch}.")
  }
  for key, value in found.items():
    known = key in KEYS[arch] or key in OTHER_KEYS
    if isinstance(value, list) or (not known and value not in (0, False, "")):
      raise ValueError(f"{file.path}: {arch}.{key}={value!r} is not supported.")
  for key in KEYS[arch].keys() - OPTIONAL:
    file.get(f"{arch}.{key}")
  hf = {"model_type": arch} | {
    hf_key: _shortest(found[key]) for key, hf_key in KEYS[arch].items() if found.get(key)
  }
  hf["vocab_size"] = _tensor(file, "token_embd.weight").shape[0]
  if arch == "gpt2":
    return hf | {"tie_word_embeddings": _copied_head(file) or "output.weight" not in file.tensors}
  return hf | _llama_config(file, arch, hf, found)


def tensors(file: gguf.File) -> dict[str, np.ndarray]:
  """float32 arrays under Hugging Face's names and in its layout."""
  arch = _architecture(file)
  table = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in TENSORS[arch].items()
    for kind in ("weight", "bias")
  }
  heads = file.get(f"{arch}.attention.head_count")
  kv_heads = file.metadata.get(f"{arch}.attention.head_count_kv", heads)
  skipped = {"rope_freqs.weight"}  # part of the config
  if arch == "gpt2" and _copied_head(file):
    skipped.add("output.weight")
  out = {}
  for name, tensor in file.tensors.items():
    if name in skipped:
      continue
    prefix, layer, rest = re.fullmatch(r"(?:(blk)\.(\d+)\.)?(.*)", name).groups()
    generic = f"blk.{{i}}.{rest}" if prefix else rest
    if generic not in table:
      raise ValueError(f"{file.path}: tensor {name} has no place in the {arch} architecture.")
    array = tensor.dequantise()
    if arch == "llama" and rest.startswith("attn_q."):
      array = halves_from_neighbours(array, heads)
    elif arch == "llama" and rest.startswith("attn_k."):
      array = halves_from_neighbours(array, kv_heads)
    elif arch == "gpt2" and layer and array.ndim == 2:
      array = array.T  # GPT-2's Conv1D keeps [in, out]
    out[table[generic].format(i=layer)] = array
  return out


def halves_from_neighbours(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows [H*C, ...] of a query or key projection, from rotating channels (2c, 2c+1) to rotating (c, c + C/2)."""
  pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def _architecture(file: gguf.File) -> str:
  arch = file.get("general.architecture")
  if arch not in KEYS:
    raise ValueError(
      f"{file.path}: general.architecture={arch!r} is not one of {', '.join(sorted(KEYS))}."
    )
  if file.metadata.get("split.count", 1) > 1:
    raise ValueError(
      f"{file.path} is one of {file.metadata['split.count']} parts; join them with llama-gguf-split --merge."
    )
  return arch


def _tensor(file: gguf.File, name: str) -> gguf.Tensor:
  if name not in file.tensors:
    raise ValueError(f"{file.path} has no tensor {name}; convert the model to GGUF again.")
  return file.tensors[name]


def _llama_config(file: gguf.File, arch: str, hf: dict, found: dict) -> dict[str, Any]:
  """Head size, rotary scaling, biases and tied embeddings, read from metadata and from which tensors there are."""
  head_dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
  for key in ("attention.value_length", "rope.dimension_count"):
    if found.get(key, head_dim) != head_dim:
      raise ValueError(
        f"{file.path}: {arch}.{key}={found[key]} differs from the head size {head_dim}, which is not supported."
      )
  theta = found.get("rope.freq_base", 10000.0)
  more = {
    "head_dim": head_dim,
    "hidden_act": "silu",
    "rope_parameters": {"rope_theta": theta} | _rope_scaling(file, arch, found, theta, head_dim),
    "tie_word_embeddings": "output.weight" not in file.tensors,
  }
  if arch == "llama":
    more["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    more["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
  return more


def _shortest(value: Any) -> Any:
  """The decimal that was stored as float32: 1e-05 for 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(file: gguf.File, arch: str, found: dict, theta: float, head_dim: int) -> dict:
  kind = found.get("rope.scaling.type", "none")
  if "rope_freqs.weight" in file.tensors:
    factors = file.tensors["rope_freqs.weight"].dequantise()
    if np.all(factors == 1):
      return {"rope_type": "default"}
    return _llama3_scaling(file, factors, theta, head_dim)
  if kind == "none":
    return {"rope_type": "default"}
  scaling = {"rope_type": kind, "factor": file.get(f"{arch}.rope.scaling.factor")}
  if "rope.scaling.original_context_length" in found:
    scaling["original_max_position_embeddings"] = found["rope.scaling.original_context_length"]
  return scaling


def _llama3_scaling(file: gguf.File, factors: np.ndarray, theta: float, head_dim: int) -> dict:
  """Llama 3's scaling, of which GGUF keeps only the factor [C/2] that divides each frequency."""
  factor, low, high, context = float(factors.max()), 1.0, 4.0, 8192
  wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
  if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
    raise ValueError(
      f"{file.path}: rope_freqs.weight is not Llama 3's scaling with low_freq_factor {low}, high_freq_factor {high}"
      f" and original length {context}, the only one that is read; load the Hugging Face folder instead."
    )
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": low,
    "high_freq_factor": high,
    "original_max_position_embeddings": context,
  }


def _copied_head(file: gguf.File) -> bool:
  """Older converters wrote GPT-2's embedding a second time, as the output layer."""
  head, embedding = file.tensors.get("output.weight"), _tensor(file, "token_embd.weight")
  return (
    head is not None and head.type == embedding.type and np.array_equal(head.data, embedding.data)
  )
