"""A frozen base in 8 or 4 bits, under adapters that train (QLoRA, arXiv:2305.14314).

A kernel W[I, O] becomes codes of its shape and a scale for every block of n rows of a column:

    W[i, o] ≈ scale[⌊i / n⌋, o] · level(codes[i, o])

    int8   level(c) = c / 127, n = I: a scale for each output
    int4   level(c) = c / 7, n = 64: evenly spaced levels
    nf4    level(c) = NF4[c], n = 64: quantiles of a normal distribution (section 3)

`scale` is the block's largest |W|, float32. In the tree {"kernel": W} becomes {"kernel": codes, "kernel_scale": scale}, which the
layer that finds the second leaf multiplies by `matmul`: the kernel is made whole for that product and again for its
derivative, so that the whole kernels of two layers are not alive at once. Linear maps of the layers are quantized; embeddings,
which are looked up and unembed, stay in the compute dtype, and so do norms and biases.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from rlhf_jax import sharding
from rlhf_jax.models import products
from rlhf_jax.types import Params

Array = jax.Array

SCALE = "kernel_scale"  # the leaf beside the codes
BASES = ("compute", "int8", "int4", "nf4")  # "compute" is no codes, but the compute dtype
DTYPES = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}
LARGEST = {"int8": 127, "int4": 7}
BLOCK = 64  # of the formats of 4 bits

NF4 = (  # appendix E
  (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
  + (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
)


def quantize(kernel: Array, base: str) -> tuple[Array, Array]:
  """(codes[I, O] of that base's dtype, scale float32[I / n, O]); n is I or the largest divisor of it up to 64."""
  rows = kernel.shape[0]
  n = rows if base == "int8" else max(d for d in range(1, BLOCK + 1) if rows % d == 0)
  blocks = jnp.asarray(kernel, jnp.float32).reshape(rows // n, n, -1)
  scale = jnp.max(jnp.abs(blocks), axis=1)
  # A block of zeros keeps its scale 0, whatever its codes.
  unit = blocks / jnp.where(scale > 0, scale, 1.0)[:, None]
  if base == "nf4":
    middles = (jnp.asarray(NF4[1:]) + jnp.asarray(NF4[:-1])) / 2
    codes = jnp.searchsorted(middles, unit)
  else:
    codes = jnp.round(unit * LARGEST[base])
  return codes.astype(DTYPES[base]).reshape(kernel.shape), scale


def dequantize(codes: Array, scale: Array, dtype: str = "float32") -> Array:
  """The kernel [I, O] that codes and scales stand for; the format is known by the codes' dtype."""
  if codes.dtype == DTYPES["nf4"]:
    levels = jnp.asarray(NF4)[codes.astype(jnp.int32)]
  else:
    base = next(name for name in LARGEST if DTYPES[name] == codes.dtype)
    levels, scale = codes.astype(jnp.float32), scale / LARGEST[base]
  whole = levels.reshape(scale.shape[0], -1, scale.shape[1]) * scale[:, None]
  return whole.reshape(codes.shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def matmul(x: Array, codes: Array, scale: Array, dtype: str) -> Array:
  """x[..., I] @ W[I, O], float32[..., O], as `products.matmul`; W is frozen, and gets no gradient."""
  codes, scale = _when_there(x, codes, scale)
  return products.matmul(x, dequantize(codes, scale), dtype)


def _forward(x, codes, scale, dtype):
  return matmul(x, codes, scale, dtype), (codes, scale)


def _backward(dtype, residuals, g):
  codes, scale = _when_there(g, *residuals)
  return products.matmul_transposed(g, dequantize(codes, scale), dtype), None, None


matmul.defvjp(_forward, _backward)


def _when_there(x: Array, codes: Array, scale: Array) -> tuple[Array, Array]:
  """The same two, from when `x` is there: else kernels of all layers are made whole at once, ahead of their use or for both passes.

  On a CPU, XLA takes barriers out before it orders its work, and only a number of `x` in the sum holds it: 8.6 MB become 0.9
  for the gradient of 8 layers of 1 MB each.
  """
  if sharding.platform() == "cpu":
    return codes, scale + 0.0 * x[(0,) * x.ndim]
  codes, scale, _ = lax.optimization_barrier((codes, scale, x))
  return codes, scale


def quantized(params: Params, base: str) -> Params:
  """`params` with codes and scales for every linear map of its layers; as it is for "compute"."""
  if base == "compute":
    return params
  one = jax.jit(functools.partial(quantize, base=base))

  def maps(tree):
    if not isinstance(tree, dict):
      return tree
    if "kernel" not in tree:
      return {name: maps(value) for name, value in tree.items()}
    codes, scale = one(tree["kernel"])
    return {**tree, "kernel": codes, SCALE: scale}

  return {n: maps(tree) if n.startswith("layers_") else tree for n, tree in params.items()}


def dequantized(tree: Params, dtype: str = "float32") -> Params:
  """`tree` with whole kernels in `dtype` in place of codes and scales."""
  whole = {n: dequantized(x, dtype) if isinstance(x, dict) else x for n, x in tree.items()}
  if SCALE in whole:
    whole["kernel"] = dequantize(whole["kernel"], whole.pop(SCALE), dtype)
  return whole


def axes(table: tuple) -> tuple:
  """A family's sharding table, and its kernels' scales laid out as the kernels are."""
  scales = (
    (pattern.replace("kernel$", f"{SCALE}$"), names)
    for pattern, names in table
    if pattern.endswith("kernel$") and not pattern.startswith("unembed")
  )
  return (*table, *scales)
