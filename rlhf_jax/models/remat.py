"""Rematerialisation (arXiv:1604.06174): what the forward pass keeps of a block for its backward pass, which computes the rest again.

    nothing_saveable                    the block's input alone
    attention_saveable                  and what attention gives, before its output map
    attention_and_residual_saveable     and the residual stream between attention and MLP
    attention_and_residual_offloadable  the same, in the host's memory
    dots_with_no_batch_dims_saveable    what linear maps give
    dots_offloadable                    the same, in the host's memory
    dots_saveable                       and attention's scores
    everything_saveable                 all: nothing is computed again

The first four and the sixth are named here; others are `jax.checkpoint_policies`' own. Blocks name what they make by
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
  on_cpu = _again_on_a_cpu(block)
  return lambda *inputs: (on_cpu if sharding.platform() == "cpu" else block)(*inputs)


def _again_on_a_cpu(block: Callable) -> Callable:
  """`block` whose second computation depends on the gradient that asks for it.

  `jax.checkpoint` holds both computations apart by a barrier. On a CPU, XLA takes it out, finds that both are one, and keeps
  everything: 160 MB of 171 for 12 layers on 1,024 tokens, and 20 with the sum below.
  """

  @jax.custom_vjp
  def apart(weights, x, *others):
    return block(weights, x, *others)

  def forward(weights, x, *others):
    y, pull = jax.vjp(lambda weights, x: block(weights, x, *others), weights, x)
    return y, (pull, weights, others)

  def backward(residuals, g):
    pull, weights, others = residuals
    form = lambda leaf: (leaf.shape, leaf.dtype)
    are_weights = {form(leaf) for leaf in jax.tree.leaves(weights)}
    number = 0.0 * g[(0,) * g.ndim]

    def later(leaf):
      computed = jnp.issubdtype(leaf.dtype, jnp.floating) and form(leaf) not in are_weights
      return leaf + number.astype(leaf.dtype) if computed else leaf

    return (*jax.tree.map(later, pull)(g), *(None for _ in others))

  apart.defvjp(forward, backward)
  return apart
