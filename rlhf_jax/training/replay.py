"""Replay: learning from the last batches of rollouts and not only from the newest (Lin, Machine Learning 8, 1992).

The rows lie in `TrainState.extra["replay"]`, a ring of whole batches, and so in every checkpoint: a run that goes on draws what it
would have drawn. What an algorithm makes of a row is made anew each time it is drawn, in annotate().
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.types import Algorithm, Rollout, TrainState

Array = jax.Array

NAME = "replay"  # in `TrainState.extra`
_DRAW = 1  # apart from the keys that the train step makes of the same one


def size(config) -> int:
  """How many batches of rollouts the algorithm learns from; 1 is the newest alone."""
  return getattr(config, "replay", 1)


def empty(rollout: Rollout, batches: int) -> dict:
  """Room for `batches` rollouts like this one, of which shapes suffice."""
  room = jax.tree.map(lambda x: jnp.zeros((batches, *x.shape), x.dtype), rollout)
  return {"rows": room, "written": jnp.zeros((), jnp.int32)}  # rows [N, B, ...]


def written(memory: dict, rollout: Rollout) -> dict:
  """`memory` with `rollout` in the place of its oldest batch."""
  slot = memory["written"] % jax.tree.leaves(memory["rows"])[0].shape[0]
  rows = jax.tree.map(lambda kept, new: kept.at[slot].set(new), memory["rows"], rollout)
  return {"rows": rows, "written": memory["written"] + 1}


def drawn(memory: dict, key: Array) -> Rollout:
  """As many rows as a batch has, each drawn from all that are kept, with replacement."""
  batches, rows = jax.tree.leaves(memory["rows"])[0].shape[:2]
  filled = rows * jnp.minimum(memory["written"], batches)
  chosen = jax.random.randint(key, (rows,), 0, filled)

  def take(kept):
    found = kept.reshape(batches * rows, *kept.shape[2:])[chosen]
    return sharding.constrain(found, "batch", *(None,) * (found.ndim - 1))

  return jax.tree.map(take, memory["rows"])


def remembering(
  algorithm: Algorithm, train_step: Callable, rollout: Rollout, batches: int
) -> tuple[Algorithm, Callable]:
  """`algorithm` and its train step, but that each step writes its rollouts down and learns from drawn ones."""

  def init_extra(params, config):
    return {**algorithm.init_extra(params, config), NAME: empty(rollout, batches)}

  def step(state: TrainState, frozen, rollout: Rollout, config):
    memory = written(state.extra[NAME], rollout)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _DRAW)
    own = {name: x for name, x in state.extra.items() if name != NAME}
    state, metrics = train_step(state.replace(extra=own), frozen, drawn(memory, key), config)
    return state.replace(extra={**state.extra, NAME: memory}), metrics

  return algorithm._replace(init_extra=init_extra), step
