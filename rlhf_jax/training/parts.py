"""A batch in parts, one after the other, to save memory: what `accumulate` asks for."""

from __future__ import annotations

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


def make_algorithm(module, model: Policy | Scorer, parts: int = 1) -> Algorithm:
  """The algorithm `module` on `model`, which looks at a batch before it is learned from in as many parts as it learns from."""
  return module.make(model)._replace(annotate=module.make(in_parts(model, parts)).annotate)


def in_parts(model: Policy | Scorer, parts: int) -> Policy | Scorer:
  """`model`, whose functions see one of so many parts of their rows at a time, and say the same of them.

  Where the rows do not make so many parts, as prompts that several answers share may not, they make a few more, or one each.
  """
  if parts == 1:
    return model

  def seen(function: Callable | None) -> Callable | None:
    def look(*args):
      at = next(i for i, arg in enumerate(args) if isinstance(arg, Sequences | Shared))
      of = lambda rows: function(*args[:at], rows, *args[at + 1 :])
      rows, N = args[at], _count(args[at])
      if isinstance(rows, Shared) and not sharding.spreads(N):
        # The prompts do not divide over the devices; the answers do, each in a row of its own.
        group = lambda x: x.reshape(N, -1, *x.shape[1:])
        return jax.tree.map(group, _mapped(of, rows.alone, parts))
      return _mapped(of, rows, parts)

    return function and look

  return type(model)(*map(seen, model))


def _mapped(function: Callable, rows: Sequences | Shared, parts: int):
  size, shards = _count(rows), sharding.shards_in_scope()
  each = 1 if size % shards else size // shards
  several = next(n for n in range(min(parts, each), each + 1) if each % n == 0)
  return function(rows) if several == 1 else joined(jax.lax.map(function, split(rows, several)))


def _count(rows: Sequences | Shared) -> int:
  return jax.tree.leaves(rows)[0].shape[0]
