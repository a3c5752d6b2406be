"""Rematerialisation (arXiv:1604.06174): what the forward pass keeps of a block for its backward pass, which computes the rest again.

    nothing_saveable                    the block's input alone
    attention_saveable                  and what attention gives, before its output map
    attention_and_residual_saveable     and the residual stream between attention and MLP
    attention_and_residual_offloadable  the same, in the host's memory
    dots_with_no_batch_dims_saveable    what linear maps give
    dots_offloadable                    the same, in the host's memory
    dots_saveable                       and attention's scores
    everything_saveable                 all: nothing is computed again

The second to fourth and the sixth are named here; others are `jax.checkpoint_policies`' own. Blocks name what they make by
`jax.ad_checkpoint.checkpoint_name`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import sharding

ATTENTION, RESIDUAL = "attention", "residual"  # what blocks name

_jax = jax.checkpoint_policies
POLICIES = {
  "nothing_saveable": _jax.nothing_saveable,
  "attention_saveable": _jax.save_only_these_names(ATTENTION),
  "attention_and_residual_saveable": _jax.save_only_these_names(ATTENTION, RESIDUAL),
  "attention_and_residual_offloadable": _jax.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[ATTENTION, RESIDUAL],
    offload_src="device",
    offload_dst="pinned_host",
  ),
  "dots_with_no_batch_dims_saveable": _jax.dots_with_no_batch_dims_saveable,
  "dots_offloadable": _jax.offload_dot_with_no_batch_dims("device", "pinned_host"),
  "dots_saveable": _jax.dots_saveable,
  "everything_saveable": _jax.everything_saveable,
}


def rematerialized(block: Callable, policy: str) -> Callable:
  """`block(weights, x, *others) -> x`, which keeps what `policy` says; `others` get no gradient."""
  block = jax.checkpoint(block, policy=POLICIES[policy])
  on_cpu = _in_turn(block)
  return lambda *inputs: (on_cpu if sharding.platform() == "cpu" else block)(*inputs)


def _in_turn(block: Callable) -> Callable:
  """`block` whose derivatives are computed in the order that keeps least, which a CPU's compiler (jax 0.10.2) would not find.

  `jax.checkpoint` holds both computations of a block apart by a barrier. The compiler takes it out, finds that both are one, and
  keeps everything: 160 MB of 171 for 12 layers on 1,024 tokens. So the second waits for the gradient that asks for it, by
  a sum; then 20 MB are kept. And it would go through the gradients of all inputs first and through those of all weights last, with what
  they are made of kept until then: so the gradient of the input waits for those of the weights, by a condition, and a step
  of SmolLM2-135M on 1,024 tokens takes 2,579 MB where it took 3,044.
  """

  @jax.custom_vjp
  def apart(weights, x, *others):
    return block(weights, x, *others)

  def forward(weights, x, *others):
    leaves, tree = jax.tree.flatten(weights)
    learned = [leaf.value if leaf.perturbed else None for leaf in leaves]
    others = jax.tree.map(lambda leaf: leaf.value, others)

    def of(learned, x):
      whole = [old.value if new is None else new for old, new in zip(leaves, learned, strict=True)]
      return block(tree.unflatten(whole), x, *others)

    y, pull = jax.vjp(of, learned, x.value)
    return y, (pull, tree.unflatten([leaf.value for leaf in leaves]), others)

  def backward(residuals, g):
    pull, weights, others = residuals
    learned, dx = jax.tree.map(_after(g, weights), pull)(g)
    gradients = jax.tree.structure(weights).unflatten(learned)
    return gradients, _behind(dx, learned, g), *(None for _ in others)

  apart.defvjp(forward, backward, symbolic_zeros=True)
  return apart


def _after(g: jax.Array, weights) -> Callable:
  """Has what was computed from `weights` wait for `g`."""
  form = lambda leaf: (leaf.shape, leaf.dtype)
  are_weights = {form(leaf) for leaf in jax.tree.leaves(weights)}
  nothing = 0.0 * g[(0,) * g.ndim]

  def later(leaf):
    computed = jnp.issubdtype(leaf.dtype, jnp.floating) and form(leaf) not in are_weights
    return leaf + nothing.astype(leaf.dtype) if computed else leaf

  return later


def _behind(dx: jax.Array, gradients, g: jax.Array) -> jax.Array:
  """`dx` once all `gradients` are there; not a number where they are not finite."""
  # The compiler would compute only a product's first number, if it knew that this index is 0.
  first = jnp.isnan(g[(0,) * g.ndim]).astype(jnp.int32)
  some = sum(x[(first,) * x.ndim].astype(dx.dtype) for x in jax.tree.leaves(gradients))
  return jax.lax.cond(jnp.isfinite(some), lambda x: x, lambda x: x * jnp.nan, dx)
