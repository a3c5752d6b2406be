"""Attention and SwiGLU with derivatives of their own are what JAX derives, and a CPU leaves out what no query sees."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import attend, decoder, layers, products
from rlhf_jax.models.llama import LlamaConfig, family

B, H, K, C = 2, 6, 3, 4


def inputs(T, S):
  keys = jax.random.split(jax.random.key(0), 4)
  q, g = (jax.random.normal(key, (B, H, T, C)) for key in keys[:2])
  k, v = (jax.random.normal(key, (B, K, S, C)) for key in keys[2:])
  return q, k, v, g


def plainly(q, k, v, mask):
  """By the book, all derivatives by JAX."""
  k, v = (jnp.repeat(x, H // K, axis=1) for x in (k, v))
  scores = jnp.einsum("bhtc,bhsc->bhts", q, k, precision="highest") * C**-0.5
  p = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
  return jnp.einsum("bhts,bhsc->bhtc", p, v, precision="highest")


def both(function, q, k, v, g):
  """The value and the three gradients, weighted by `g`."""
  out, back = jax.vjp(function, q, k, v)
  return out, *back(g)


def assert_same(ours, theirs, atol):
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype, atol", [("float32", 3e-6), ("bfloat16", 6e-2)])
@pytest.mark.parametrize("T, S", [(5, 9), (7, 7), (1, 6)])
def test_value_and_gradients_are_those_that_jax_derives(T, S, dtype, atol):
  q, k, v, g = inputs(T, S)
  mask = jax.random.bernoulli(jax.random.key(9), 0.6, (B, T, S)).at[:, :, 0].set(True)
  ours = both(lambda *x: attend.attend(*x, mask, dtype), q, k, v, g)
  assert_same(ours, both(lambda *x: plainly(*x, mask), q, k, v, g), atol)


@pytest.mark.parametrize("has_units", [True, False])
def test_many_queries_in_bfloat16_are_the_same_with_and_without_units_for_it(
  has_units, monkeypatch
):
  monkeypatch.setattr(products, "has_bfloat16_units", lambda: has_units)
  T = products.ROWS + 3
  q, k, v, g = inputs(T, T)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
  ours = both(lambda *x: attend.attend(*x, mask, "bfloat16"), q, k, v, g)
  assert_same(ours, both(lambda *x: plainly(*x, mask), q, k, v, g), atol=6e-2)


@pytest.mark.parametrize("dtype, atol", [("float32", 3e-6), ("bfloat16", 6e-2)])
def test_a_single_query_of_a_key_head_gives_the_same(dtype, atol):
  q, k, v, g = inputs(1, 6)
  mask = jnp.ones((B, 1, 6), bool).at[:, :, 4:].set(False)
  of_each = lambda q, k, v: attend.attend(
    q, jnp.repeat(k, H // K, axis=1), jnp.repeat(v, H // K, axis=1), mask, dtype
  )
  ours = both(of_each, q, k, v, g)
  assert_same(ours, both(lambda *x: plainly(*x, mask), q, k, v, g), atol)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's compiler chose so")
@pytest.mark.parametrize("dtype, rows", [("float32", 1), ("bfloat16", 2)])
@pytest.mark.parametrize("heads", [K, H])
def test_a_decoding_step_multiplies_as_many_queries_as_a_cpu_is_quick_with(heads, dtype, rows):
  q, k, v, _ = inputs(1, 6)
  attended = lambda q: attend.attend(q, k, v, jnp.ones((B, 1, 6), bool), dtype)
  compiled = jax.jit(attended).lower(q[:, :heads]).as_text()
  products = re.findall(r"dot_general.*: \(tensor<(\w+)x\w+>", compiled)
  assert {tuple(shape.split("x")[:3]) for shape in products} == {(str(B), str(K), str(rows))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_cache_holds_elsewhere_is_left_as_it_was_and_new_is_rounded(dtype):
  stored = jax.random.normal(jax.random.key(0), (B, K, 9, C)).astype(dtype)
  new = jax.random.normal(jax.random.key(1), (B, K, 2, C)).at[0, 0, 0, 0].set(-0.0)
  written = layers.write_cache(stored, new, jnp.int32(4))
  assert written.dtype == stored.dtype
  np.testing.assert_array_equal(written[:, :, 4:6], new.astype(dtype))
  rest = np.array([0, 1, 2, 3, 6, 7, 8])
  np.testing.assert_array_equal(written[:, :, rest], stored[:, :, rest])


@pytest.mark.parametrize(
  "T", [150, 300]
)  # of three blocks the last is short; four are all that there are
@pytest.mark.parametrize("before", [0, 11])
def test_blocks_on_a_cpu_give_the_values_and_gradients_of_the_whole(T, before):
  q, k, v, g = inputs(T, before + T)
  segments = jnp.ones((B, T), jnp.int32).at[0, 60:].set(2).at[1, -20:].set(0)
  mask = decoder.attention_mask(segments, segments, jnp.arange(T))
  mask = jnp.pad(mask, ((0, 0), (0, 0), (before, 0)), constant_values=True)
  g = g * (segments > 0)[:, None, :, None]
  ours = both(lambda *x: layers.attention(*x, mask, "float32", before), q, k, v, g)
  assert_same(ours[1:], both(lambda *x: plainly(*x, mask), q, k, v, g)[1:], 2e-5)


def test_a_cpu_computes_no_scores_with_keys_after_a_block():
  T = 256
  q, k, v, _ = inputs(T, T)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
  cost = lambda f: jax.jit(f).lower(q, k, v).compile().cost_analysis()["flops"]
  ours = cost(lambda *x: layers.attention(*x, mask, "float32"))
  assert ours < 0.7 * cost(lambda *x: attend.attend(*x, mask, "float32"))


def test_swiglu_and_its_gradients_are_those_that_jax_derives():
  gate, up, g = (
    6 * jax.random.normal(key, (3, 50)) for key in jax.random.split(jax.random.key(1), 3)
  )
  plain = lambda gate, up: jax.nn.silu(gate) * up
  ours, theirs = (jax.vjp(f, gate, up) for f in (layers.swiglu, plain))
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
  for a, b in zip(ours[1](g), theirs[1](g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rotary_angles_are_computed_once_and_not_in_every_layer():
  config = LlamaConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    max_positions=8,
  )
  options = dict(dtype="float32", remat=False, remat_policy="nothing_saveable")
  model = decoder.language_model(family(config, "float32"), **options, scan=False, sequence=False)
  tokens = jnp.zeros((2, 8), jnp.int32)

  def loss(params):
    return jnp.sum(model.hidden(params, tokens, tokens + jnp.arange(8)[None], tokens + 1) ** 2)

  params = model.init(jax.random.key(0))
  compiled = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
  assert compiled.count(" sine(") == compiled.count(" cosine(") == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's compiler chose otherwise")
def test_no_product_of_bfloat16_falls_back_to_float32(monkeypatch):
  """Keys and values as a model has them: products of rows of all heads, split."""
  monkeypatch.setattr(products, "has_bfloat16_units", lambda: True)
  T, C = 128, 64
  x, w = jnp.ones((2, T, 2 * C)), jnp.ones((2 * C, 2 * C))
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (2, T, T))

  def attended(q, k, v):
    q, k, v = (
      layers.heads_first(layers.split_heads(products.matmul(x, kernel, "bfloat16"), 2))
      for kernel in (q, k, v)
    )
    return jnp.sum(layers.merge_heads(layers.attention(q, k, v, mask, "bfloat16")) ** 2)

  compiled = jax.jit(jax.grad(attended, argnums=(0, 1, 2))).lower(w, w, w).compile().as_text()
  made = dict(re.findall(r"%?([\w.\-]+) = (\w+)\[", compiled))
  inputs = re.findall(r" dot\(([^)]*)\)", compiled)
  kinds = {made[name.split()[-1].lstrip("%")] for pair in inputs for name in pair.split(", ")}
  assert kinds == {"bf16"}
