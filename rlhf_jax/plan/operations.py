"""How many operations a traced program asks for, of all chips together: products, 2 a multiplication with its addition."""

from __future__ import annotations

import math

from jax.extend import core
from jax.interpreters import partial_eval


def flops(jaxpr: core.Jaxpr, turns: float = 1) -> float:
  """Of what `jaxpr` needs for its results; loops of unknown length take `turns`, and of several branches the dearest counts."""
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _all_flops(needed, turns)


def _all_flops(jaxpr: core.Jaxpr, turns: float) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, inner = equation.primitive.name, _inner(equation.params)
    each = [_all_flops(called, turns) for called in inner]
    if name == "dot_general":
      total += _product(equation)
    elif name == "scan":
      total += equation.params["length"] * sum(each)
    elif name == "while":
      total += turns * sum(each)
    elif name == "cond":
      total += max(each, default=0.0)
    else:
      total += sum(each)
  return total


def _inner(params: dict) -> list[core.Jaxpr]:
  """Programs among an equation's parameters."""
  found = []
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, "jaxpr", one)
      if hasattr(one, "eqns"):
        found.append(one)
  return found


def _product(equation) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
