"""Products in float32 and in bfloat16, forward and backward."""

import functools

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
  "batched": (products.matmul, normal(4, 2, 3, 5, 12), normal(5, 2, 3, 12, 7)),
  "scores": (products.matmul_transposed, normal(6, 2, 3, 5, 12), normal(7, 2, 3, 7, 12)),
}


def exact(product, x, matrix):
  return x @ (matrix if product is products.matmul else jnp.swapaxes(matrix, -1, -2))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.01)])
@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradients_are_those_of_the_matrices(case, dtype, tolerance):
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


def test_bfloat16_rounds_the_inputs_and_nothing_else():
  product, x, matrix = CASES["dense"]
  rounded = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
  got = product(x, matrix, "bfloat16")
  np.testing.assert_allclose(got, rounded(x) @ rounded(matrix), rtol=1e-5, atol=1e-5)


def test_a_matrix_stored_in_bfloat16_gives_the_same_product_and_a_bfloat16_gradient():
  product, x, matrix = CASES["dense"]
  stored = matrix.astype(jnp.bfloat16)
  np.testing.assert_array_equal(product(x, stored, "bfloat16"), product(x, matrix, "bfloat16"))
  gradient = jax.grad(lambda m: product(x, m, "bfloat16").sum())(stored)
  assert gradient.dtype == jnp.bfloat16


def test_a_frozen_matrix_costs_no_weight_gradient():
  x, matrix = normal(0, 32, 48), normal(1, 48, 56)
  loss = lambda x, matrix: jnp.sum(products.matmul(x, matrix, "bfloat16") ** 2)
  count = lambda grad: grad.lower(x, matrix).compile().as_text().count(" dot(")
  assert count(jax.jit(jax.grad(loss, 0))) == 2
  assert count(jax.jit(jax.grad(loss, (0, 1)))) == 3


def test_products_follow_vmap_over_a_sweep():
  x, matrices = normal(0, 5, 12), normal(1, 4, 12, 7)
  gradient = jax.grad(lambda m: jnp.sum(products.matmul(x, m, "bfloat16") ** 2))
  swept = jax.vmap(gradient)(matrices)
  for i in range(4):
    np.testing.assert_allclose(swept[i], gradient(matrices[i]), rtol=1e-5, atol=1e-5)
