"""Attention in one kernel on an NVIDIA GPU: cuDNN's for many queries a row, one written here for a decoding step.

Neither keeps an array of scores (FlashAttention, arXiv:2205.14135). Inputs are rounded to bfloat16 and the softmax is
float32, as in `layers.attention`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax import sharding

Array = jax.Array

QUERIES = 16  # the fewest that a tensor core takes
KEYS = 64  # of a block that the decoding kernel holds at once
NOWHERE = (
  -1e30
)  # added to the score of a key that may not be seen; finite, so that a row may see none


def available(q: Array, dtype: str, decoding: bool) -> bool:
  """Whether `decode`, or else `attention`, takes queries [B, H, T, C] on this backend."""
  C = q.shape[-1]
  if decoding:  # the compiler does not know how to lay it out over several devices
    mesh = jax.sharding.get_abstract_mesh()
    fits = C in (16, 32, 64, 128) and (mesh.empty or mesh.size == 1)
  else:
    fits = C % 8 == 0 and C <= 128
  return dtype == "bfloat16" and fits and _has_tensor_cores()


def _has_tensor_cores() -> bool:
  """bfloat16 ones, which came with compute capability 8.0."""
  if sharding.platform() != "gpu":
    return False
  device = jax.local_devices(backend="gpu")[0]
  major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
  return major.isdigit() and int(major) >= 8


def attention(q: Array, k: Array, v: Array, mask: Array, implementation: str = "cudnn") -> Array:
  """`layers.attention` of many queries, float32[B, H, T, C].

  q is [B, H, T, C], k and v are [B, K, S, C], mask is bool[B, T, S]. Where S = T the queries are those of the keys, none
  of which sees a later one: half of the blocks are then left out.
  """
  T, S = mask.shape[1:]
  # cuDNN's backward pass with a mask takes even lengths only.
  even = lambda x, *axes: jnp.pad(x, [(0, n % 2 * (i in axes)) for i, n in enumerate(x.shape)])
  rows = lambda x: jnp.swapaxes(even(x, 2), 1, 2).astype(jnp.bfloat16)
  out = _rows(implementation, T == S, rows(q), rows(k), rows(v), even(mask, 1, 2))
  return jnp.swapaxes(out, 1, 2)[:, :, :T].astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(implementation, causal, q, k, v, mask):
  """Of q[B, T, H, C], k and v [B, S, K, C], each even in length."""
  return _forward(implementation, causal, q, k, v, mask)[0]


def _forward(implementation, causal, q, k, v, mask):
  def function(q, k, v, mask):
    return jax.vjp(_attend(implementation, causal, mask), q, k, v)[0]

  return _over_rows(function)(q, k, v, mask), (q, k, v, mask)


def _backward(implementation, causal, residuals, g):
  """Says the forward pass once more: the compiler sees that it is the same and computes it once."""

  def function(q, k, v, mask, g):
    return jax.vjp(_attend(implementation, causal, mask), q, k, v)[1](g)

  return *_over_rows(function)(*residuals, g), None


_rows.defvjp(_forward, _backward)


def _attend(implementation, causal, mask):
  return lambda q, k, v: jax.nn.dot_product_attention(
    q, k, v, mask=mask[:, None], is_causal=causal, implementation=implementation
  )


def _over_rows(function):
  """`function` of arrays with rows first, whose `vmap` is more rows: JAX's own of cuDNN's attention fails with a mask."""
  function = jax.custom_batching.custom_vmap(function)

  @function.def_vmap
  def _(size, batched, *args):
    each = [
      x if mapped else jnp.broadcast_to(x[None], (size, *x.shape))
      for x, mapped in zip(args, batched, strict=True)
    ]
    out = function(*(x.reshape(-1, *x.shape[2:]) for x in each))
    out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
    return out, jax.tree.map(lambda _: True, out)

  return function


def decode(q: Array, k: Array, v: Array, mask: Array, interpret: bool = False) -> Array:
  """`layers.attention` of one query a row over a cache, float32[B, H, 1, C]; without a derivative.

  q is [B, H, 1, C], k and v are [B, K, S, C], mask is bool[B, 1, S]. A program a key head: its H / K queries go through
  the tensor cores together, so that keys and values are read once, and only from the first to the last that is seen.
  """
  from jax.experimental import pallas as pl  # a tenth of a second, and CPUs do without
  from jax.experimental.pallas import triton

  B, H, _, C = q.shape
  K, S = k.shape[1:3]
  G = H // K
  bfloat16 = lambda x: x.astype(jnp.bfloat16)
  q = bfloat16(q * C**-0.5).reshape(B, K, G, C)
  seen = mask[:, 0]
  slots = jnp.arange(S)[None]
  first = jnp.min(jnp.where(seen, slots, S), axis=1)
  end = jnp.max(jnp.where(seen, slots + 1, 0), axis=1)
  span = jnp.stack([first // KEYS, -(-end // KEYS)], axis=1).astype(jnp.int32)  # [B, 2] in blocks
  bias = jnp.where(seen, 0.0, NOWHERE)
  rows = max(QUERIES, pl.next_power_of_2(G))
  a_head = lambda length: pl.BlockSpec((None, None, length, C), lambda b, h: (b, h, 0, 0))
  a_row = lambda length: pl.BlockSpec((None, length), lambda b, h: (b, 0))
  out = pl.pallas_call(
    functools.partial(_decode_kernel, G, S),
    grid=(B, K),
    in_specs=[a_row(2), a_head(rows), a_head(S), a_head(S), a_row(S)],
    out_specs=a_head(rows),
    out_shape=jax.ShapeDtypeStruct(q.shape, jnp.bfloat16),  # as the next product rounds it
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="decode_attention",
  )(span, q, bfloat16(k), bfloat16(v), bias)
  return out.reshape(B, H, 1, C).astype(jnp.float32)


def _decode_kernel(G, S, span_ref, q_ref, k_ref, v_ref, bias_ref, out_ref):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  rows, C = q_ref.shape
  real = (jnp.arange(rows) < G)[:, None]
  q = triton.load(q_ref, mask=jnp.broadcast_to(real, (rows, C)), other=0.0)
  product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

  def block(i, carry):
    out, top, total = carry
    at = pl.ds(i * KEYS, KEYS)
    stored = i * KEYS + jnp.arange(KEYS) < S
    stored_all = jnp.broadcast_to(stored[:, None], (KEYS, C))
    k = triton.load(k_ref.at[at], mask=stored_all, other=0.0)
    v = triton.load(v_ref.at[at], mask=stored_all, other=0.0)
    bias = triton.load(bias_ref.at[at], mask=stored, other=NOWHERE)
    scores = product(q, k, (((1,), (1,)), ((), ()))) + bias[None]  # [rows, KEYS]
    higher = jnp.maximum(top, jnp.max(scores, axis=1))
    p = jnp.exp(scores - higher[:, None])
    kept = jnp.exp(top - higher)
    total = total * kept + jnp.sum(p, axis=1)
    out = out * kept[:, None] + product(p.astype(v.dtype), v, (((1,), (0,)), ((), ())))
    return out, higher, total

  start = jnp.zeros((rows, C)), jnp.full(rows, 2 * NOWHERE), jnp.zeros(rows)
  out, _, total = jax.lax.fori_loop(span_ref[0], span_ref[1], block, start)
  out = out / jnp.maximum(total, 1e-30)[:, None]
  triton.store(out_ref, out.astype(out_ref.dtype), mask=jnp.broadcast_to(real, (rows, C)))
