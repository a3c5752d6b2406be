"""The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Covers SmolLM2, Llama 2 and 3, Mistral, Qwen2 and 2.5 (biases on q, k, v) and Qwen3 (norms on the
heads of q and k). A config that asks for more than this file does is refused by field and value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from rlhf_jax.models import decoder, hf_config, layers, remat
from rlhf_jax.sharding import constrain

Array = jax.Array

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_KINDS = ("default", "linear", "llama3")
ROPE_FIELDS = {
  "rope_type",
  "type",
  "rope_theta",
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes and switches of one model; `from_hf` and `to_hf` translate Hugging Face's config.json."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  model_type: str = "llama"
  norm_eps: float = 1e-6
  rotary: layers.Rotary = layers.Rotary()
  qkv_bias: bool = False
  o_bias: bool = False
  qk_norm: bool = False
  tied: bool = False
  initializer_range: float = 0.02

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> LlamaConfig:
    """Raises ValueError that names the field and value which this family can not honour."""
    _refuse_unsupported(hf)
    need = lambda field: hf_config.required(hf, field)
    hidden_size, num_heads = need("hidden_size"), need("num_attention_heads")
    bias = bool(hf.get("attention_bias"))
    return cls(
      vocab_size=need("vocab_size"),
      hidden_size=hidden_size,
      intermediate_size=need("intermediate_size"),
      num_layers=need("num_hidden_layers"),
      num_heads=num_heads,
      num_kv_heads=hf.get("num_key_value_heads") or num_heads,
      head_dim=hf.get("head_dim") or hidden_size // num_heads,
      max_positions=need("max_position_embeddings"),
      model_type=hf["model_type"],
      norm_eps=need("rms_norm_eps"),
      rotary=_rotary_from_hf(hf),
      qkv_bias=bias or hf["model_type"] == "qwen2",
      o_bias=bias,
      qk_norm=hf["model_type"] == "qwen3",
      tied=bool(hf.get("tie_word_embeddings")),
      initializer_range=hf.get("initializer_range", 0.02),
    )

  def to_hf(self) -> dict[str, Any]:
    """The config.json that `transformers` reads."""
    names = {
      "llama": "LlamaForCausalLM",
      "mistral": "MistralForCausalLM",
      "qwen2": "Qwen2ForCausalLM",
      "qwen3": "Qwen3ForCausalLM",
    }
    hf = {
      "architectures": [names[self.model_type]],
      "model_type": self.model_type,
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.intermediate_size,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_dim,
      "max_position_embeddings": self.max_positions,
      "rms_norm_eps": self.norm_eps,
      "rope_theta": self.rotary.theta,
      "rope_scaling": _rope_scaling(self.rotary),
      "hidden_act": "silu",
      "tie_word_embeddings": self.tied,
      "initializer_range": self.initializer_range,
    }
    if self.model_type in ("llama", "qwen3"):
      hf["attention_bias"] = self.o_bias
    if self.model_type == "mistral":
      hf["sliding_window"] = None
    return hf


def _refuse_unsupported(hf) -> None:
  refuse = hf_config.refuse_unless
  refuse(hf, "model_type", MODEL_TYPES)
  refuse(hf, "hidden_act", ("silu", "swish", None))
  refuse(hf, "mlp_bias", (False, None))
  refuse(hf, "attention_dropout", (0, None))
  refuse(hf, "rope_interleaved", (False, None))
  refuse(hf, "partial_rotary_factor", (1, None))
  refuse(hf, "quantization_config", (None,))
  # Qwen writes a window size beside the switch that turns it on; Mistral has no switch.
  if hf.get("use_sliding_window", True):
    refuse(hf, "sliding_window", (None,))
  for layer_type in hf.get("layer_types") or ():
    refuse({"layer_types": layer_type}, "layer_types", ("full_attention",))
  if hf["model_type"] in ("mistral", "qwen2"):
    refuse(hf, "attention_bias", (False, None))


def _rotary_from_hf(hf) -> layers.Rotary:
  """Reads `rope_theta` and `rope_scaling`, or the `rope_parameters` that newer files have instead."""
  new = hf.get("rope_parameters") or {}
  field = "rope_parameters" if new else "rope_scaling"
  rope = {**(hf.get("rope_scaling") or {}), **new}
  kind = rope.get("rope_type", rope.get("type", "default"))
  hf_config.refuse_unless({f"{field}.rope_type": kind}, f"{field}.rope_type", ROPE_KINDS)
  for name in rope.keys() - ROPE_FIELDS:
    hf_config.refuse_unless({f"{field}.{name}": rope[name]}, f"{field}.{name}", (None,))
  need = lambda name: hf_config.required(rope, name, where=f"{field}.")
  theta = float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))
  if kind == "linear":
    return layers.Rotary(theta, kind, need("factor"))
  if kind == "llama3":
    return layers.Rotary(
      theta,
      kind,
      need("factor"),
      need("low_freq_factor"),
      need("high_freq_factor"),
      need("original_max_position_embeddings"),
    )
  return layers.Rotary(theta)


def _rope_scaling(rotary: layers.Rotary) -> dict[str, Any] | None:
  if rotary.kind == "default":
    return None
  scaling = {"rope_type": rotary.kind, "factor": rotary.factor}
  if rotary.kind == "llama3":
    scaling["low_freq_factor"] = rotary.low_freq_factor
    scaling["high_freq_factor"] = rotary.high_freq_factor
    scaling["original_max_position_embeddings"] = rotary.original_max_positions
  return scaling


class Attention(nn.Module):
  """Grouped-query attention (arXiv:2305.13245) with rotary positions."""

  config: LlamaConfig
  dtype: str

  @nn.compact
  def __call__(self, x, tables, mask, cache=None):
    c = self.config
    dense = lambda name, heads, bias: layers.Dense(
      heads * c.head_dim, self.dtype, bias, c.initializer_range, name=name
    )
    q = layers.split_heads(dense("q", c.num_heads, c.qkv_bias)(x), c.num_heads)
    k = layers.split_heads(dense("k", c.num_kv_heads, c.qkv_bias)(x), c.num_kv_heads)
    v = layers.split_heads(dense("v", c.num_kv_heads, c.qkv_bias)(x), c.num_kv_heads)
    if c.qk_norm:
      q = layers.RMSNorm(c.norm_eps, name="q_norm")(q)
      k = layers.RMSNorm(c.norm_eps, name="k_norm")(k)
    q, k = layers.rotate(q, tables), layers.rotate(k, tables)
    q, k, v = (layers.heads_first(x) for x in (q, k, v))
    if cache is not None:
      past_k, past_v, slot = cache
      k, v = layers.write_cache(past_k, k, slot), layers.write_cache(past_v, v, slot)
    y = layers.merge_heads(layers.attention(q, k, v, mask, self.dtype))
    y = checkpoint_name(y, remat.ATTENTION)
    o = layers.Dense(c.hidden_size, self.dtype, c.o_bias, c.initializer_range, name="o")
    return o(y), (k, v)


class MLP(nn.Module):
  """SwiGLU: (silu(x W_gate) ⊙ x W_up) W_down (arXiv:2002.05202)."""

  config: LlamaConfig
  dtype: str

  @nn.compact
  def __call__(self, x):
    c = self.config
    dense = lambda name, size: layers.Dense(size, self.dtype, std=c.initializer_range, name=name)
    gate, up = (dense(name, c.intermediate_size)(x) for name in ("gate", "up"))
    return dense("down", c.hidden_size)(constrain(layers.swiglu(gate, up), "batch", None, "mlp"))


class Block(nn.Module):
  """One layer: x[B, T, D] -> x, and the keys and values [B, K, S, C] that it attended to."""

  config: LlamaConfig
  dtype: str

  @nn.compact
  def __call__(self, x, tables, mask, cache=None):
    norm = lambda name: layers.RMSNorm(self.config.norm_eps, name=name)
    attended, cache = Attention(self.config, self.dtype, name="attention")(
      norm("attention_norm")(x), tables, mask, cache
    )
    x = checkpoint_name(x + attended, remat.RESIDUAL)
    x = x + MLP(self.config, self.dtype, name="mlp")(norm("mlp_norm")(x))
    return x, cache


def family(config: LlamaConfig, dtype: str) -> decoder.Family:
  """What `decoder.language_model` needs to know of a Llama."""

  def init_embed(key):
    shape = (config.vocab_size, config.hidden_size)
    return {"embed": {"embedding": config.initializer_range * jax.random.normal(key, shape)}}

  def embed(params, tokens, positions):
    return layers.lookup(params["embed"]["embedding"], tokens, dtype)

  return decoder.Family(
    config=config,
    block=Block(config, dtype),
    norm=layers.RMSNorm(config.norm_eps),
    init_embed=init_embed,
    embed=embed,
    shared=lambda positions: config.rotary.tables(positions, config.head_dim),
  )


# Where each matrix lies: a pattern found in its path, and the logical axes of its dimensions.
AXES = (
  (r"(^|/)embed/embedding$", ("vocab", "embed")),
  (r"unembed/kernel$", ("embed", "vocab")),
  (r"attention/q/kernel$", ("embed", "heads")),
  (r"attention/[kv]/kernel$", ("embed", "kv_heads")),
  (r"attention/o/kernel$", ("heads", "embed")),
  (r"mlp/(gate|up)/kernel$", ("embed", "mlp")),
  (r"mlp/down/kernel$", ("mlp", "embed")),
  (r"(attention/[qkv]|mlp/(gate|up))/lora_a$", ("embed", None)),
  (r"attention/o/lora_a$", ("heads", None)),
  (r"mlp/down/lora_a$", ("mlp", None)),
  (r"attention/q/lora_b$", (None, "heads")),
  (r"attention/[kv]/lora_b$", (None, "kv_heads")),
  (r"mlp/(gate|up)/lora_b$", (None, "mlp")),
  (r"(attention/o|mlp/down)/lora_b$", (None, "embed")),
)
