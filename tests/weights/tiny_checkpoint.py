"""Tiny checkpoints of every family, as config and tensors in Hugging Face's names, and as GGUF files."""

from __future__ import annotations

import gguf
import numpy as np
from tokenizers import pre_tokenizers

from rlhf_jax.data import tokenize

LLAMA = dict(
  model_type="llama",
  vocab_size=264,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  rope_theta=10000.0,
  hidden_act="silu",
  tie_word_embeddings=True,
)
GPT2 = dict(
  model_type="gpt2",
  vocab_size=264,
  n_embd=24,
  n_inner=40,
  n_layer=2,
  n_head=4,
  n_positions=16,
  layer_norm_epsilon=1e-5,
)
CONFIGS = {
  "llama": LLAMA,
  "llama-untied": LLAMA | dict(tie_word_embeddings=False, attention_bias=True),
  "mistral": LLAMA | dict(model_type="mistral", sliding_window=None, tie_word_embeddings=False),
  "qwen2": LLAMA | dict(model_type="qwen2"),
  "qwen3": LLAMA | dict(model_type="qwen3", head_dim=8, tie_word_embeddings=False),
  "gpt2": GPT2,
  "gpt2-untied": GPT2 | dict(tie_word_embeddings=False),
}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "he l", "l o", "Ġ w"]
CHAT_TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
  """Marks, the 256 bytes as byte-level BPE writes them, and what the merges make: 263 tokens."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  return MARKS + alphabet + [merge.replace(" ", "") for merge in MERGES]


def tokenizer():
  """What `write_gguf` stores, as `transformers` holds it."""
  return tokenize.from_gguf(tokenizer_metadata(LLAMA["vocab_size"]))


def tokenizer_metadata(vocab_size: int) -> dict:
  tokens = vocabulary()
  unused = [f"[unused{i}]" for i in range(vocab_size - len(tokens))]
  kinds = gguf.TokenType
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": tokens + unused,
    "tokenizer.ggml.token_type": [kinds.CONTROL] * len(MARKS)
    + [kinds.NORMAL] * (len(tokens) - len(MARKS))
    + [kinds.UNUSED] * len(unused),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.chat_template": CHAT_TEMPLATE,
  }


def tensors(entries, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights, multiples of 1/64, for the (name, shape) of a table."""
  rng = np.random.default_rng(seed)
  return {e.name: (np.round(rng.normal(0, 16, e.shape)) / 64).astype(np.float32) for e in entries}


def write_gguf(path, hf: dict, weights: dict[str, np.ndarray], *, extra=None, stored=None) -> None:
  """Writes `weights` as llama.cpp's converter does, names by the gguf package's own map.

  `extra` is more metadata; `stored` gives (bytes, type) for tensors, by GGUF name, in place of or beside `weights`.
  """
  arch = {"mistral": "llama"}.get(hf["model_type"], hf["model_type"])
  writer = gguf.GGUFWriter(path, arch)
  layers = hf.get("num_hidden_layers", hf.get("n_layer"))
  heads = hf.get("num_attention_heads", hf.get("n_head"))
  writer.add_block_count(layers)
  writer.add_context_length(hf.get("max_position_embeddings", hf.get("n_positions")))
  writer.add_embedding_length(hf.get("hidden_size", hf.get("n_embd")))
  writer.add_feed_forward_length(hf.get("intermediate_size", hf.get("n_inner")))
  writer.add_head_count(heads)
  if arch == "gpt2":
    writer.add_layer_norm_eps(hf["layer_norm_epsilon"])
  else:
    writer.add_head_count_kv(hf["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    writer.add_rope_freq_base(hf["rope_theta"])
    writer.add_key_length(hf["head_dim"])
    writer.add_value_length(hf["head_dim"])
  for key, value in (tokenizer_metadata(hf["vocab_size"]) | (extra or {})).items():
    kinds = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
    kind = kinds[type(value)]
    getattr(writer, f"add_{kind}")(key, value)

  names = gguf.get_tensor_name_map(
    {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], n_blocks=layers
  )
  for name, array in weights.items():
    if arch == "llama" and "q_proj" in name:
      array = neighbours_from_halves(array, heads)
    if arch == "llama" and "k_proj" in name:
      array = neighbours_from_halves(array, hf["num_key_value_heads"])
    if arch == "gpt2" and ".h." in name and array.ndim == 2:
      array = array.T
    ours = names.get_name(name, (".weight", ".bias"))
    if ours not in (stored or {}):
      writer.add_tensor(ours, np.ascontiguousarray(array))
  for name, (blocks, type_) in (stored or {}).items():
    writer.add_tensor(name, blocks, raw_dtype=type_)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def neighbours_from_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """llama.cpp's reordering of query and key rows, from its converter's formula."""
  halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)
