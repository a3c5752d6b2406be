"""softmax(q kᵀ / √C) v from scores that are made whole, with the derivative written out.

JAX's own keeps several arrays of scores for the backward pass, float32[B, H, T, S] each, and multiplies in float32. Here the
probabilities are kept, in the compute dtype, and D = Σ_c g o takes the place of Σ_s p ∂p (FlashAttention,
arXiv:2205.14135, appendix B.2), which is the same number.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.models import products

Array = jax.Array


def attend(q: Array, k: Array, v: Array, mask: Array, dtype: str) -> Array:
  """float32[B, H, T, C] of q[B, H, T, C], k and v [B, K, S, C] and mask bool[B, T, S]; H / K queries share a key head.

  Inputs of products are rounded to `dtype`, and probabilities are one.
  """
  B, H, T, C = q.shape
  K = k.shape[1]
  q = q.reshape(B, K, H // K * T, C) * C**-0.5
  k, v = k.astype(jnp.float32), v.astype(jnp.float32)
  rows = q.shape[2]
  if T == 1 and sharding.platform() == "cpu":
    # A CPU's compiler (jax 0.10.2) multiplies one row in float32 alone, with keys as they lie; for several it lays them anew first,
    # and for one in bfloat16 converts them all.
    if dtype == "float32":
      alone = [_attend(q[:, :, i : i + 1], k, v, mask, dtype) for i in range(rows)]
      return jnp.concatenate(alone, axis=2).reshape(B, H, T, C)
    q = jnp.repeat(q, 2, axis=2) if rows == 1 else q
  return _attend(q, k, v, mask, dtype)[:, :, :rows].reshape(B, H, T, C)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask, dtype):
  return _forward(q, k, v, mask, dtype)[0]


def _forward(q, k, v, mask, dtype):
  q, k, v = (products.in_rows(x.astype(dtype)) for x in (q, k, v))
  B, K, rows, _ = q.shape
  T, S = mask.shape[1:]
  scores = products.dot(q, k, transposed=True).reshape(B, K, rows // T, T, S)
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  p = jax.nn.softmax(scores, axis=-1).reshape(B, K, rows, S).astype(dtype)
  out = products.dot(p, v)
  return out, (q, k, v, p, out)


def _backward(dtype, residuals, g):
  q, k, v, p, out = residuals
  d = jnp.sum(g * out, axis=-1, keepdims=True)
  g = products.in_rows(g.astype(dtype))
  dp = products.dot(g, v, transposed=True)
  ds = (p.astype(jnp.float32) * (dp - d)).astype(dtype)
  dk, dv = products.dot(products.transpose(ds), q), products.dot(products.transpose(p), g)
  return products.dot(ds, k), dk, dv, None


_attend.defvjp(_forward, _backward)
