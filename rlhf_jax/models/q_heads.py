"""Q heads: what every token of the vocabulary is worth as the next one, and how that moves a policy.

Each head is Q(s, ·) = relu(h W₁ + b₁) W₂ + b₂ on the trunk's hidden state h, with W₁ of [D, D]. W₂ and b₂ begin at zero, so that
fresh heads say 0 of everything and move nothing; W₁ begins at random, so that two heads generalise differently,
which is what the smaller of them is for. A linear head that says 0 would have no such difference, and
gets the same gradients as its twin for ever.

A policy whose tree holds "q_heads" acts by

    π(a | s) ∝ π_LM(a | s) exp(κ minᵢ Qᵢ(s, a))

with κ the leaf "scale", which no gradient changes. It is the policy that ILQL reshapes by advantages (arXiv:2206.11871,
section 4.3): the value V(s) that it takes from Q moves all tokens alike, and so no probability.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.models import products
from rlhf_jax.types import Params

Array = jax.Array

NAME = "q_heads"  # of the subtree

# Of the matrices of a head, for `sharding.tree_shardings`.
AXES = ((r"q_\d+/in/kernel$", ("embed", None)), (r"q_\d+/out/kernel$", (None, "vocab")))


def init_q_heads(key: Array, size: int, vocab_size: int, count: int) -> Params:
  """`count` fresh heads on hidden states of `size` numbers."""

  def head(key):
    kernel = (2.0 / size) ** 0.5 * jax.random.normal(key, (size, size))
    return {
      "in": {"kernel": kernel, "bias": jnp.zeros(size)},
      "out": {"kernel": jnp.zeros((size, vocab_size)), "bias": jnp.zeros(vocab_size)},
    }

  return {f"q_{i}": head(k) for i, k in enumerate(jax.random.split(key, count))}


def acting(heads: Params, scale: float) -> Params:
  """The heads as a policy's own subtree, which they move by `scale`, κ."""
  return {**heads, "scale": jnp.asarray(scale, jnp.float32)}


def q_values(heads: Params, hidden: Array, dtype: str) -> Array:
  """float32[H, ..., V] of hidden[..., D]; products in `dtype`, as the logits' are."""

  def linear(layer, x):
    said = products.matmul(x, layer["kernel"], dtype)
    return said + jnp.broadcast_to(layer["bias"].astype(jnp.float32), said.shape)

  of = lambda head: linear(head["out"], jax.nn.relu(linear(head["in"], hidden)))
  count = sum(name.startswith("q_") for name in heads)
  return jnp.stack([of(heads[f"q_{i}"]) for i in range(count)])


def moved(logits: Array, q: Array, scale: Array) -> Array:
  """log π_LM + κ minᵢ Qᵢ but for a constant of each state, float32[..., V]."""
  return logits + jax.lax.stop_gradient(scale) * jnp.min(q, axis=0)
