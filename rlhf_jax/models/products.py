"""Matrix products in a compute dtype, with float32 accumulation and float32 output.

Every product of every model goes through `matmul` or `matmul_transposed`, but those of attention (`attend`). In float32 they are the
plain products at full precision (no TF32, no bfloat16 passes). In bfloat16 both inputs are rounded,
and a custom derivative keeps it so in the backward pass, where JAX alone would multiply the float32
cotangent with a bfloat16 matrix and leave the fast path of every backend.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from rlhf_jax import sharding

Array = jax.Array

COMPUTE_DTYPES = ("float32", "bfloat16")
ROWS = 64  # of a product whose matrix is worth a pass that makes it float32


def matmul(x: Array, kernel: Array, dtype: str) -> Array:
  """x[..., I] @ kernel[I, O], float32[..., O]; leading axes shared by both are batch axes."""
  return _product(x, kernel, dtype, False)


def matmul_transposed(x: Array, rows: Array, dtype: str) -> Array:
  """x[..., I] @ rows[O, I]ᵀ, float32[..., O], such as a tied unembedding."""
  return _product(x, rows, dtype, True)


def _product(x, matrix, dtype, transposed):
  lead = x.shape[:-1]
  if matrix.ndim == 2:
    x = x.reshape(-1, x.shape[-1])
  x = x.astype(jnp.float32)
  if dtype == "bfloat16":
    out = _bfloat16_product(x, matrix, transposed)
  else:
    out = dot(x, matrix.astype(jnp.float32), transposed)
  return out.reshape(*lead, out.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_product(x, matrix, transposed):
  return dot(x.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16), transposed)


def _forward(x, matrix, transposed):
  x = x.astype(jnp.bfloat16)
  return dot(x, matrix.astype(jnp.bfloat16), transposed), (x, matrix)


def _backward(transposed, residuals, g):
  # A frozen matrix asks for no gradient; its product is then unused and the compiler drops it.
  x, matrix = residuals
  g = g.astype(jnp.bfloat16)
  dx = dot(g, matrix.astype(jnp.bfloat16), not transposed)
  dmatrix = _gradient(g, x) if transposed else _gradient(x, g)
  return dx, dmatrix.astype(matrix.dtype)


_bfloat16_product.defvjp(_forward, _backward)


def _gradient(x: Array, g: Array) -> Array:
  """xᵀ g, float32[I, O] of x[N, I] and g[N, O]; a CPU computes (gᵀ x)ᵀ where there is less to transpose then.

  Numbers count by their bytes, two before the product and four after it.
  """
  N, I = x.shape[-2:]
  O = g.shape[-1]
  if sharding.platform() != "cpu" or N * I <= N * O + 2 * I * O:
    return dot(transpose(x), g)
  return jnp.swapaxes(in_rows(dot(transpose(g), x)), -1, -2)


def dot(x: Array, matrix: Array, transposed: bool = False) -> Array:
  """The product of what is rounded already, float32.

  A CPU without units for bfloat16 multiplies it slower than float32. It computes with the float32 numbers that these are, which is as
  exact, where there are many rows; with few, what counts are the bytes of the matrix.
  """
  slow = sharding.platform() == "cpu" and not has_bfloat16_units()
  if slow and x.dtype == jnp.bfloat16 and x.shape[-2] >= ROWS:
    x, matrix = rounded(x), rounded(matrix)
  batch = tuple(range(x.ndim - 2))
  contract = ((x.ndim - 1,), (matrix.ndim - 1 if transposed else matrix.ndim - 2,))
  return lax.dot_general(
    x,
    matrix,
    (contract, (batch, batch)),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def transpose(x: Array) -> Array:
  """The last two axes swapped in memory.

  On a CPU, XLA folds a plain transpose into the product, which then misses the bfloat16 units:
  363 GFLOP/s against 872 with the copy, for [1024, 576]ᵀ @ [1024, 1536] on two AVX512-BF16 cores.
  """
  return in_rows(jnp.swapaxes(x, -1, -2))


def in_rows(x: Array) -> Array:
  """`x` laid out in row-major order on a CPU, where the compiler might choose another."""
  if sharding.platform() != "cpu":
    return x
  return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


@functools.cache
def has_bfloat16_units() -> bool:
  """Whether this machine's processor multiplies bfloat16 itself, by what Linux says; elsewhere it is taken for granted."""
  try:
    said = Path("/proc/cpuinfo").read_text()
  except OSError:
    return True
  return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", said) is not None


def rounded(x: Array) -> Array:
  """The float32 numbers next to `x` that bfloat16 has. A compiler may take out a conversion there and back, but not this."""
  return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
