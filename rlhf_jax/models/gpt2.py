"""GPT-2 (Radford et al., 2019): LayerNorm, learned positions, full attention, GELU.

The file's fused `c_attn` is three maps here, q, k and v, so that adapters and sharding tables name
them as in every other family. Dropout in a config is ignored: nothing here trains with it, since it
would make the ratio of two evaluations of one policy noise.
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

MODEL_TYPES = ("gpt2",)


@dataclasses.dataclass(frozen=True)
class GPT2Config:
  """Sizes of one model; `from_hf` and `to_hf` translate Hugging Face's config.json."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  max_positions: int
  norm_eps: float = 1e-5
  tied: bool = True
  initializer_range: float = 0.02
  model_type: str = "gpt2"

  @property
  def num_kv_heads(self) -> int:
    return self.num_heads

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> GPT2Config:
    """Raises ValueError that names the field and value which this family can not honour."""
    refuse = hf_config.refuse_unless
    refuse(hf, "model_type", MODEL_TYPES)
    refuse(hf, "activation_function", ("gelu_new", "gelu_pytorch_tanh", None))
    refuse(hf, "scale_attn_weights", (True, None))
    refuse(hf, "scale_attn_by_inverse_layer_idx", (False, None))
    refuse(hf, "add_cross_attention", (False, None))
    refuse(hf, "quantization_config", (None,))
    need = lambda field: hf_config.required(hf, field)
    return cls(
      vocab_size=need("vocab_size"),
      hidden_size=need("n_embd"),
      intermediate_size=hf.get("n_inner") or 4 * need("n_embd"),
      num_layers=need("n_layer"),
      num_heads=need("n_head"),
      max_positions=need("n_positions"),
      norm_eps=need("layer_norm_epsilon"),
      tied=hf.get("tie_word_embeddings", True),
      initializer_range=hf.get("initializer_range", 0.02),
    )

  def to_hf(self) -> dict[str, Any]:
    """The config.json that `transformers` reads."""
    return {
      "architectures": ["GPT2LMHeadModel"],
      "model_type": "gpt2",
      "vocab_size": self.vocab_size,
      "n_embd": self.hidden_size,
      "n_inner": self.intermediate_size,
      "n_layer": self.num_layers,
      "n_head": self.num_heads,
      "n_positions": self.max_positions,
      "layer_norm_epsilon": self.norm_eps,
      "activation_function": "gelu_new",
      "tie_word_embeddings": self.tied,
      "initializer_range": self.initializer_range,
    }


class Attention(nn.Module):
  """Multi-head attention, every map with a bias."""

  config: GPT2Config
  dtype: str

  @nn.compact
  def __call__(self, x, mask, cache=None):
    c = self.config
    dense = lambda name: layers.Dense(
      c.hidden_size, self.dtype, True, c.initializer_range, name=name
    )
    heads = lambda name: layers.split_heads(dense(name)(x), c.num_heads)
    q, k, v = (layers.heads_first(heads(name)) for name in "qkv")
    if cache is not None:
      past_k, past_v, slot = cache
      k, v = layers.write_cache(past_k, k, slot), layers.write_cache(past_v, v, slot)
    y = layers.merge_heads(layers.attention(q, k, v, mask, self.dtype))
    y = checkpoint_name(y, remat.ATTENTION)
    return dense("o")(y), (k, v)


class MLP(nn.Module):
  """gelu(x W_up) W_down, with the tanh form of GELU (arXiv:1606.08415)."""

  config: GPT2Config
  dtype: str

  @nn.compact
  def __call__(self, x):
    c = self.config
    dense = lambda name, size: layers.Dense(size, self.dtype, True, c.initializer_range, name=name)
    x = jax.nn.gelu(dense("up", c.intermediate_size)(x), approximate=True)
    return dense("down", c.hidden_size)(constrain(x, "batch", None, "mlp"))


class Block(nn.Module):
  """One layer: x[B, T, D] -> x, and the keys and values [B, H, S, C] that it attended to."""

  config: GPT2Config
  dtype: str

  @nn.compact
  def __call__(self, x, shared, mask, cache=None):
    norm = lambda name: layers.LayerNorm(self.config.norm_eps, name=name)
    attended, cache = Attention(self.config, self.dtype, name="attention")(
      norm("attention_norm")(x), mask, cache
    )
    x = checkpoint_name(x + attended, remat.RESIDUAL)
    x = x + MLP(self.config, self.dtype, name="mlp")(norm("mlp_norm")(x))
    return x, cache


def family(config: GPT2Config, dtype: str) -> decoder.Family:
  """What `decoder.language_model` needs to know of a GPT-2."""

  def init_embed(key):
    token_key, position_key = jax.random.split(key)
    normal = lambda key, rows: (
      config.initializer_range * jax.random.normal(key, (rows, config.hidden_size))
    )
    return {
      "embed": {"embedding": normal(token_key, config.vocab_size)},
      "position_embed": {"embedding": normal(position_key, config.max_positions)},
    }

  def embed(params, tokens, positions):
    token = layers.lookup(params["embed"]["embedding"], tokens, dtype)
    return token + layers.lookup(params["position_embed"]["embedding"], positions, dtype)

  return decoder.Family(
    config=config,
    block=Block(config, dtype),
    norm=layers.LayerNorm(config.norm_eps),
    init_embed=init_embed,
    embed=embed,
    shared=lambda positions: None,
  )


# Where each matrix lies: a pattern found in its path, and the logical axes of its dimensions.
AXES = (
  (r"position_embed/embedding$", (None, "embed")),
  (r"(^|/)embed/embedding$", ("vocab", "embed")),
  (r"unembed/kernel$", ("embed", "vocab")),
  (r"attention/[qkv]/kernel$", ("embed", "heads")),
  (r"attention/o/kernel$", ("heads", "embed")),
  (r"mlp/up/kernel$", ("embed", "mlp")),
  (r"mlp/down/kernel$", ("mlp", "embed")),
  (r"(attention/[qkv]|mlp/up)/lora_a$", ("embed", None)),
  (r"attention/o/lora_a$", ("heads", None)),
  (r"mlp/down/lora_a$", ("mlp", None)),
  (r"attention/[qkv]/lora_b$", (None, "heads")),
  (r"mlp/up/lora_b$", (None, "mlp")),
  (r"(attention/o|mlp/down)/lora_b$", (None, "embed")),
)
