"""Products in float32 and in bfloat16, forward and backward."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import products


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


CASES = {
  "dense": (products.matmul, normal(0, 2, 5, 12), normal(1, 12, 7)),
  "tied head": (products.matmul_transposed, normal(2, 2, 5, 12), normal(3, 7, 12)),
  "many rows to few features": (products.matmul, normal(9, 2, 20, 12), normal(10, 12, 2)),
  "many rows and a wide tied head": (
    products.matmul_transposed,
    normal(11, 2, 20, 2),
    normal(12, 12, 2),
  ),
  "large": (products.matmul, normal(13, 3, 30, 66), normal(14, 66, 70)),
  "large tied head": (products.matmul_transposed, normal(15, 3, 30, 66), normal(16, 70, 66)),
  "batched": (products.matmul, normal(4, 2, 3, 5, 12), normal(5, 2, 3, 12, 7)),
  "scores": (products.matmul_transposed, normal(6, 2, 3, 5, 12), normal(7, 2, 3, 7, 12)),
}


def exact(product, x, matrix):
  return x @ (matrix if product is products.matmul else jnp.swapaxes(matrix, -1, -2))


@pytest.fixture(params=[True, False], ids=["with units", "without units"])
def units(request, monkeypatch):
  """Whether the processor is one that multiplies bfloat16."""
  monkeypatch.setattr(products, "has_bfloat16_units", lambda: request.param)
  return request.param


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.01)])
@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradients_are_those_of_the_matrices(case, dtype, tolerance, units):
  product, x, matrix = CASES[case]
  g = normal(8, *exact(product, x, matrix).shape)

  @functools.partial(jax.jit, static_argnums=0)
  def out_and_gradients(product):
    out, vjp = jax.vjp(product, x, matrix)
    return out, *vjp(g)

  got = out_and_gradients(lambda x, matrix: product(x, matrix, dtype))
  reference = out_and_gradients(lambda x, matrix: exact(product, x, matrix))
  for a, b in zip(got, reference, strict=True):
    assert a.dtype == jnp.float32
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_rounds_the_inputs_and_nothing_else(case, units):
  product, x, matrix = CASES[case]
  g = normal(8, *exact(product, x, matrix).shape)
  rounded = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
  out, vjp = jax.vjp(jax.jit(lambda x, matrix: product(x, matrix, "bfloat16")), x, matrix)
  of_rounded = jax.vjp(lambda x, matrix: exact(product, x, matrix), rounded(x), rounded(matrix))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=5e-5)
  close(out, of_rounded[0])
  jax.tree.map(close, vjp(g), of_rounded[1](rounded(g)))


def test_a_processor_without_units_multiplies_many_rows_in_float32(units):
  """Forward and both gradients, each a product of at least 64 rows."""

  def kinds(case):
    product, x, matrix = CASES[case]
    gradients = jax.grad(lambda x, m: jnp.sum(product(x, m, "bfloat16") ** 2), (0, 1))
    said = jax.jit(gradients).lower(x, matrix).as_text()
    found = re.findall(r"dot_general .* : \(tensor<[^>]*x(\w+)>, tensor<[^>]*x(\w+)>\)", said)
    assert len(found) == 3
    return {kind for pair in found for kind in pair}

  assert kinds("dense") == {"bf16"}
  assert kinds("large") == {"bf16" if units else "f32"}


@pytest.mark.parametrize("case", ["dense", "large"])
def test_a_matrix_stored_in_bfloat16_gives_the_same_product_and_a_bfloat16_gradient(case, units):
  product, x, matrix = CASES[case]
  stored = matrix.astype(jnp.bfloat16)
  np.testing.assert_array_equal(product(x, stored, "bfloat16"), product(x, matrix, "bfloat16"))
  gradient = jax.grad(lambda m: product(x, m, "bfloat16").sum())(stored)
  assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("rows", [32, 80])
def test_a_frozen_matrix_costs_no_weight_gradient(rows, units):
  x, matrix = normal(0, rows, 48), normal(1, 48, 56)
  loss = lambda x, matrix: jnp.sum(products.matmul(x, matrix, "bfloat16") ** 2)
  count = lambda grad: grad.lower(x, matrix).compile().as_text().count(" dot(")
  assert count(jax.jit(jax.grad(loss, 0))) == 2
  assert count(jax.jit(jax.grad(loss, (0, 1)))) == 3


@pytest.mark.parametrize("rows", [5, 80])
def test_products_follow_vmap_over_a_sweep(rows, units):
  x, matrices = normal(0, rows, 12), normal(1, 4, 12, 7)
  gradient = jax.grad(lambda m: jnp.sum(products.matmul(x, m, "bfloat16") ** 2))
  swept = jax.vmap(gradient)(matrices)
  for i in range(4):
    np.testing.assert_allclose(swept[i], gradient(matrices[i]), rtol=1e-5, atol=1e-5)
