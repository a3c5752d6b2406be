"""What this machine can do: FLOP/s by kind of matrix product, through the library's own products, and memory bandwidth.

  python -m benchmarks.machine [--models=S,M] [--write]

Prints a JSON line a measurement, and with --write keeps them in results/machine.jsonl in place of those that this machine had, and cases
are then measured against them.
Nothing tells a program that falls off the fast path of its machine. Here it shows as a kind of product that is far below
the others: of bfloat16 with and without a layout constraint on the transposed operand, say.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import gauge, timings
from benchmarks.cases import SHAPES
from rlhf_jax.models import products

TOKENS = {"cpu": 1024}  # of a training step; elsewhere:
TOKENS_ELSEWHERE = 16384
DECODED = 16  # rows of a decoding step
BATCH, WIDTH = 8, 128  # of attention


class Product(NamedTuple):
  """x[..., M, I] by matrix[..., I, O]; or by matrix[..., O, I] where it is transposed."""

  kind: str
  x: tuple[int, ...]
  matrix: tuple[int, ...]
  transposed: bool = False
  gradient: int | None = None  # of which operand, by the cotangent of the product
  cast: bool = False  # whether the matrix comes in the compute dtype, as in decoding

  @property
  def flops(self) -> int:
    outputs = self.matrix[-2 if self.transposed else -1]
    rows = 1
    for size in self.x:
      rows *= size
    return 2 * rows * outputs

  def function(self, dtype: str) -> Callable:
    multiply = products.matmul_transposed if self.transposed else products.matmul
    product = lambda x, matrix: multiply(x, matrix, dtype)
    if self.gradient is None:
      return product

    def gradient(x, matrix, cotangent):
      return jax.vjp(product, x, matrix)[1](cotangent)[self.gradient]

    return gradient

  def operands(self, dtype: str) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, matrix = jax.random.normal(keys[0], self.x), jax.random.normal(keys[1], self.matrix)
    if self.cast:
      matrix = matrix.astype(dtype)
    if self.gradient is None:
      return [x, matrix]
    outputs = self.matrix[-2 if self.transposed else -1]
    return [x, matrix, jax.random.normal(keys[2], (*self.x[:-1], outputs))]


def kinds(a: dict, tokens: int) -> list[Product]:
  """The products of a training step over so many tokens, and of a decoding step, in a model of this architecture."""
  D, F, V, C = a["d"], a["ffn"], a["vocab"], a["d"] // a["heads"]
  heads = (BATCH, a["kv_heads"])
  queries = a["heads"] // a["kv_heads"] * WIDTH
  few = min(tokens, 1024)  # of a chunk of logits
  return [
    Product("forward", (tokens, D), (D, F)),
    Product("gradient of x", (tokens, D), (D, F), gradient=0),
    Product("gradient of a matrix", (tokens, D), (D, F), gradient=1),
    Product("logits", (few, D), (V, D), transposed=True),
    Product("gradient of logits' x", (few, D), (V, D), transposed=True, gradient=0),
    Product("gradient of the embedding", (few, D), (V, D), transposed=True, gradient=1),
    Product("attention's scores", (*heads, queries, C), (*heads, WIDTH, C), transposed=True),
    Product("attention's values", (*heads, queries, WIDTH), (*heads, WIDTH, C)),
    Product("decode", (DECODED, D), (D, F), cast=True),
    Product("decode's logits", (DECODED, D), (V, D), transposed=True, cast=True),
  ]


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  on_cpu = jax.default_backend() == "cpu"
  parser.add_argument("--models", default="S,M" if on_cpu else "M,1B")
  parser.add_argument("--write", action="store_true")
  args = parser.parse_args(argv)
  tokens = TOKENS.get(jax.default_backend(), TOKENS_ELSEWHERE)
  about = {
    "machine": gauge.machine(),
    "jax": jax.__version__,
    "date": datetime.date.today().isoformat(),
  }
  lines = []
  for row in measurements(args.models.split(","), tokens):
    lines.append(json.dumps(row | about))
    print(lines[-1], flush=True)
  if args.write:
    gauge.RESULTS.mkdir(exist_ok=True)
    file = gauge.peaks_file()
    others = [row for row in timings.read(file) if row["machine"] != about["machine"]]
    file.write_text("\n".join([*map(json.dumps, others), *lines]) + "\n", encoding="utf-8")
    print(f"written to {file}", file=sys.stderr)


def measurements(models: list[str], tokens: int) -> Iterator[dict]:
  side = 2 * tokens if tokens <= 4096 else 8192
  square = Product("square", (side, side), (side, side))
  for dtype in products.COMPUTE_DTYPES:
    yield _measured(square, dtype)
    for model in models:
      for product in kinds(SHAPES["models"][model], tokens):
        yield {"model": model} | _measured(product, dtype)
  yield from bandwidths(512 if jax.default_backend() == "cpu" else 4096)


def _measured(product: Product, dtype: str) -> dict:
  seconds = gauge.seconds_of(jax.jit(product.function(dtype)), *product.operands(dtype))
  return {
    "kind": product.kind,
    "dtype": dtype,
    "x": product.x,
    "matrix": product.matrix,
    "seconds": seconds,
    "flop_per_s": round(product.flops / seconds),
  }


def bandwidths(megabytes: int) -> Iterator[dict]:
  """Bytes/s of reading an array, and of reading and writing one in place."""
  x = jnp.zeros(megabytes * 2**18, jnp.float32)
  read = gauge.seconds_of(jax.jit(jnp.sum), x)
  yield {"kind": "read", "seconds": read, "bytes_per_s": round(x.nbytes / read)}
  add = jax.jit(lambda x: x + 1.0, donate_argnums=0)

  def in_place():
    nonlocal x
    x = add(x)
    return x

  copy = gauge.seconds_of(in_place)
  yield {"kind": "copy", "seconds": copy, "bytes_per_s": round(2 * x.nbytes / copy)}


if __name__ == "__main__":
  main()
