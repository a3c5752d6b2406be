"""Layers shared by the model families: linear maps with LoRA, norms, rotary positions, attention.

Everything is float32 but the inputs of matrix products, which `products` rounds to `dtype`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlhf_jax import sharding
from rlhf_jax.models import attend, fused, products, quantize

Array = jax.Array


def along_last(vector: Array, x: Array) -> Array:
  """`vector`[D] with the rank of `x`, to broadcast over its last axis."""
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


class Dense(nn.Module):
  """x W + b, and + (x A) B when the tree holds LoRA leaves (arXiv:2106.09685, eq. 3); W may be codes and scales."""

  features: int
  dtype: str
  bias: bool = False
  std: float = 0.02

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.normal(self.std)
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    if self.has_variable("params", quantize.SCALE):
      scale = self.get_variable("params", quantize.SCALE)
      y = quantize.matmul(x, kernel, scale, self.dtype)
    else:
      y = products.matmul(x, kernel, self.dtype)
    if self.bias:
      y += along_last(self.param("bias", nn.initializers.zeros, (self.features,)), y)
    if self.has_variable("params", "lora_a"):
      low = products.matmul(x, self.get_variable("params", "lora_a"), self.dtype)
      y += products.matmul(low, self.get_variable("params", "lora_b"), self.dtype)
    return y


def lookup(table: Array, ids: Array, dtype: str) -> Array:
  """Rows of an embedding, float32[..., D], rounded to the compute dtype as every matrix is.

  So a table kept in float32 to train and one cast once to decode give the same model.
  """
  rows = table[ids].astype(jnp.float32)
  return products.rounded(rows) if dtype == "bfloat16" else rows


class RMSNorm(nn.Module):
  """x / sqrt(mean(x²) + ε) · scale (arXiv:1910.07467)."""

  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean_square + self.eps) * along_last(scale, x)


class LayerNorm(nn.Module):
  """(x − mean) / sqrt(variance + ε) · scale + bias (arXiv:1607.06450)."""

  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(variance + self.eps) * along_last(scale, x) + along_last(bias, x)


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary positions (arXiv:2104.09864) and how their frequencies are stretched for long contexts."""

  theta: float = 10000.0
  kind: str = "default"  # default | linear | llama3
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192

  def frequencies(self, channels: int) -> np.ndarray:
    """Radians a position, float32[C/2]."""
    frequencies = self.theta ** (-np.arange(0, channels, 2) / channels)
    if self.kind == "linear":
      frequencies = frequencies / self.factor
    if self.kind == "llama3":
      # Waves longer than the original context are slowed by `factor`, short ones are kept, and
      # those between are blended (the Llama 3.1 rule).
      turns = self.original_max_positions * frequencies / (2 * np.pi)
      keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
      keep = np.clip(keep, 0.0, 1.0)
      frequencies = keep * frequencies + (1 - keep) * frequencies / self.factor
    return frequencies.astype(np.float32)

  def tables(self, positions: Array, channels: int) -> tuple[Array, Array]:
    """cos and sin of every angle, float32[B, T, 1, C/2]."""
    angles = positions[:, :, None, None].astype(jnp.float32)
    angles = angles * self.frequencies(channels)[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, tables: tuple[Array, Array]) -> Array:
  """Turns channel pairs (c, c + C/2) of x float32[B, T, H, C] by their angles."""
  cos, sin = tables
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
  """silu(gate) ⊙ up (arXiv:2002.05202), of which only `gate` and `up` are kept for the backward pass."""
  return gate * jax.nn.sigmoid(gate) * up


def _swiglu_forward(gate, up):
  return swiglu(gate, up), (gate, up)


def _swiglu_backward(residuals, g):
  gate, up = residuals
  # σ in three wordings, one a product: where two say the same, a CPU's compiler makes an array of it, which costs more than
  # to compute it again. And once in each, for it does not put a quotient of three uses into their kernel.
  low = gate < 0.0
  e = jnp.exp(-jnp.abs(gate))
  slope = jnp.where(low, e, 1.0) * (1.0 + e + gate * jnp.where(low, 1.0, e)) / jnp.square(1.0 + e)
  e = jnp.exp(jnp.minimum(gate, -gate))
  return g * up * slope, g * gate * (jnp.where(low, e, 1.0) / (1.0 + e))


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def split_heads(x: Array, heads: int) -> Array:
  """[B, T, H·C] -> [B, T, H, C]."""
  return x.reshape(*x.shape[:2], heads, -1)


def heads_first(x: Array) -> Array:
  """[B, T, H, C] -> [B, H, T, C], as attention and its cache have it, or back."""
  return jnp.swapaxes(x, 1, 2)


def merge_heads(x: Array) -> Array:
  """[B, H, T, C] -> [B, T, H·C]."""
  return heads_first(x).reshape(x.shape[0], x.shape[2], -1)


def attention(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | ForkMask,
  dtype: str,
  before: int | None = None,
) -> Array:
  """softmax(q kᵀ / √C) v over the allowed keys, float32[B, H, T, C]; each of K groups shares a key head.

  q is [B, H, T, C], k and v are [B, K, S, C], mask is bool[B, T, S]. A query that may look nowhere
  (padding) gets something meaningless, but finite, so that masks can drop it. The mask must hide every key
  that comes after its query, whose own stand after `before` others: none where T = S, and where that is not said, nothing is
  known of them; a single query is then one that decodes, which has no derivative on a GPU. `fused` computes the same in one kernel where it can.
  """
  if isinstance(mask, ForkMask):
    return forked_attention(q, k, v, mask, dtype)
  T, S = mask.shape[1:]
  decoding = T == 1 < S and before is None
  if fused.available(q, dtype, decoding):
    return (fused.decode if decoding else fused.attention)(q, k, v, mask)
  if T > BLOCK and sharding.platform() == "tpu":
    return attention_in_blocks(q, k, v, mask, dtype, BLOCK)
  if before is None and T == S:
    before = 0
  if before is None or sharding.platform() != "cpu":
    return attend.attend(q, k, v, mask, dtype)
  outs = []
  for start in range(0, T, size := max(BLOCK_ON_CPU, -(-T // BLOCKS_ON_CPU))):
    own, seen = slice(start, start + size), slice(0, before + start + size)
    keys, values = k[:, :, seen], v[:, :, seen]
    outs.append(attend.attend(q[:, :, own], keys, values, mask[:, own, seen], dtype))
  # Joined in the order that the next product reads: a CPU's compiler copies number by number where it joins heads first.
  return heads_first(jnp.concatenate([heads_first(out) for out in outs], axis=1))


BLOCK = 512  # queries whose scores are alive at once on a TPU
# On a CPU queries go in blocks, each with the keys up to its end: of 128 tokens a quarter of the scores is left out, of
# 256 and more three eighths.
BLOCK_ON_CPU, BLOCKS_ON_CPU = 64, 4


def attention_in_blocks(q: Array, k: Array, v: Array, mask: Array, dtype: str, size: int) -> Array:
  """`attention` of `size` queries after the other, each block's scores computed again in the backward pass.

  A TPU's compiler makes all scores at once, float32[B, H, T, S]: 1.1 GiB for one row of Llama 8B with 3,072 tokens, several times over.
  """
  B, H, T, C = q.shape
  count = -(-T // size)
  padded = lambda x, axis: jnp.pad(
    x, [(0, count * size - T if i == axis else 0) for i in range(x.ndim)]
  )
  blocks = (
    jnp.moveaxis(padded(q, 2).reshape(B, H, count, size, C), 2, 0),
    jnp.moveaxis(padded(mask, 1).reshape(B, count, size, -1), 1, 0),
  )
  one = jax.checkpoint(lambda block: attention(block[0], k, v, block[1], dtype))
  return jnp.moveaxis(lax.map(one, blocks), 0, 2).reshape(B, H, count * size, C)[:, :, :T]


class ForkMask(NamedTuple):
  """Who sees what in rows of a prompt and G answers to it, `types.Shared.fork`."""

  prompt: Array  # bool[N, P, P]
  answers: Array  # bool[N · G, R, P + R]


def fork_mask(mask: Array, prompt: int, count: int) -> ForkMask:
  """The parts of `mask`, bool[N, P + G·R, P + G·R], that `forked_attention` computes: the prompt, and each answer after it."""
  N, P, W = mask.shape[0], prompt, mask.shape[1]
  R = (W - P) // count
  before = mask[:, P:, :P].reshape(N * count, R, P)
  blocks = mask[:, P:, P:].reshape(N, count, R, count, R)
  own = jnp.stack([blocks[:, g, :, g] for g in range(count)], axis=1).reshape(N * count, R, R)
  return ForkMask(mask[:, :P, :P], jnp.concatenate([before, own], axis=-1))


def forked_attention(q: Array, k: Array, v: Array, mask: ForkMask, dtype: str) -> Array:
  """`attention` in rows of a prompt and G answers, float32[N, H, P + G·R, C]: no answer's scores with another are computed."""
  N, _, _, C = q.shape
  P, R = mask.prompt.shape[1], mask.answers.shape[1]
  G = mask.answers.shape[0] // N
  apart = lambda x: jnp.swapaxes(x.reshape(N, -1, G, R, C), 1, 2).reshape(N * G, -1, R, C)
  after = lambda x: jnp.concatenate([_each(x[:, :, :P], G), apart(x[:, :, P:])], axis=2)
  prompt = attention(*(x[:, :, :P] for x in (q, k, v)), mask.prompt, dtype)
  answers = attention(apart(q[:, :, P:]), after(k), after(v), mask.answers, dtype, before=P)
  answers = jnp.swapaxes(answers.reshape(N, G, -1, R, C), 1, 2).reshape(N, -1, G * R, C)
  return jnp.concatenate([prompt, answers], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _each(x: Array, count: int) -> Array:
  """Every row of `x` `count` times.

  Its gradient is added up in so many terms: a CPU's compiler (jax 0.10.2) puts a sum over an axis into one kernel with the
  bfloat16 products before it, and that kernel reads where it must not.
  """
  return jnp.repeat(x, count, axis=0)


def _each_backward(count, _, g):
  g = g.reshape(-1, count, *g.shape[1:])
  return (sum(g[:, i] for i in range(count)),)


_each.defvjp(lambda x, count: (_each(x, count), None), _each_backward)


def write_cache(cache: Array, new: Array, slot: Array) -> Array:
  """`cache`[B, K, S, C] with `new`[B, K, T, C] in slots `slot`, `slot` + 1, ..."""
  written = lax.dynamic_update_slice(_bits(cache), _bits(new.astype(cache.dtype)), (0, 0, slot, 0))
  return lax.bitcast_convert_type(written, cache.dtype)


def write_rows(cache: Array, new: Array, rows: Array) -> Array:
  """`cache`[B, K, S, C] with `new`[k, K, S, C] as its `rows` int32[k]."""
  written = _bits(cache).at[rows].set(_bits(new.astype(cache.dtype)))
  return lax.bitcast_convert_type(written, cache.dtype)


def _bits(x: Array) -> Array:
  """bfloat16 as integers: a CPU's compiler (jax 0.10.2) has none and would convert a whole cache to and fro to write in it.

  For one token that took 35 µs of 16 rows with 96 slots and 4 heads of 64 (two cores of an AMD EPYC). float32 it writes in place as it
  is, and as integers by way of a copy.
  """
  return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x
