"""A batch in parts, one after the other, to save memory: what `accumulate` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax

from rlhf_jax import sharding
from rlhf_jax.types import Algorithm, Policy, Scorer, Sequences, Shared


def split(batch, parts: int):
  """[B, ...] -> [parts, B / parts, ...]: every `parts`-th row together, so that each device keeps its own."""
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def joined(batch):
  """What was split, [B, ...]."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), batch)


def algorithm(module, model: Policy | Scorer, parts: int = 1) -> Algorithm:
  """The algorithm `module` on `model`, which looks at a batch before it is learned from in as many parts as it learns from."""
  made = module.make(model)
  if parts == 1:
    return made
  return made._replace(annotate=module.make(in_parts(model, parts)).annotate)


def in_parts(model: Policy | Scorer, parts: int) -> Policy | Scorer:
  """`model`, whose functions see a part of their rows at a time, and say the same of them.

  Where the rows do not make so many parts on every device, as prompts that several answers share may not, they make fewer.
  """

  def seen(function: Callable | None) -> Callable | None:
    def look(*args):
      at = next(i for i, arg in enumerate(args) if isinstance(arg, Sequences | Shared))
      rows, shards = jax.tree.leaves(args[at])[0].shape[0], sharding.shards_in_scope()
      several = math.gcd(parts, rows // shards) if rows % shards == 0 else 1
      if several == 1:
        return function(*args)
      of_part = lambda part: function(*args[:at], part, *args[at + 1 :])
      return joined(jax.lax.map(of_part, split(args[at], several)))

    return function and look

  return type(model)(*map(seen, model))
