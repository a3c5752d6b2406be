"""Hyper-parameters as frozen pytree dataclasses: numbers are traced, structure is static.

Fields annotated `float` or `float | None` are pytree leaves and go through `jit` as arrays, so changing one never
recompiles and a sweep over them is a `vmap`. Strings, ints, bools and None are static.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def option(
  default: Any,
  *,
  above: float | None = None,
  at_least: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  choices: Sequence | None = None,
):
  """A field with a default and the range or the choices that `from_dict` checks on the host."""
  limits = dict(above=above, at_least=at_least, at_most=at_most, below=below, choices=choices)
  return dataclasses.field(default=default, metadata=limits)


def hyperparameters(cls):
  """Class decorator: a frozen dataclass registered with JAX, floats as leaves and everything else as structure."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  hints = typing.get_type_hints(cls)
  leaves = [f.name for f in dataclasses.fields(cls) if float in _alternatives(hints[f.name])]
  static = [f.name for f in dataclasses.fields(cls) if f.name not in leaves]
  return jax.tree_util.register_dataclass(cls, data_fields=leaves, meta_fields=static)


def from_dict(cls, values: Mapping[str, Any], *, where: str = "config"):
  """Builds `cls` from `values`, coercing each to its declared type and checking its range.

  A class that has `assert_sound(where)` also checks its fields against each other there. Raises
  ValueError that names `where.field`, the value, and what would be accepted.
  """
  known = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in known:
      raise ValueError(f"{where}.{name} is not an option{suggest(name, known)}")
  checked = {
    n: _check(_coerce(v, hints[n], f"{where}.{n}"), known[n], f"{where}.{n}")
    for n, v in values.items()
  }
  made = cls(**checked)
  if hasattr(cls, "assert_sound"):
    made.assert_sound(where)
  return made


def split(section: Mapping[str, Any], *classes, where: str = "config") -> tuple:
  """One instance of each of `classes` from the fields of one flat section.

  Raises ValueError for a name that none of them declares, as `from_dict` does.
  """
  fields = [{f.name for f in dataclasses.fields(cls)} for cls in classes]
  for name in section:
    if not any(name in names for names in fields):
      raise ValueError(f"{where}.{name} is not an option{suggest(name, set().union(*fields))}")
  return tuple(
    from_dict(cls, {n: v for n, v in section.items() if n in names}, where=where)
    for cls, names in zip(classes, fields, strict=True)
  )


def suggest(name: str, known) -> str:
  """`; did you mean X?` with the nearest of `known`, or the whole list."""
  bare = {str(k).lstrip("-"): str(k) for k in known}  # dashes make all options alike
  near = difflib.get_close_matches(str(name).lstrip("-"), list(bare), n=3, cutoff=0.5)
  if near:
    return f"; did you mean {' or '.join(bare[k] for k in near)}?"
  return f"; it takes {', '.join(sorted(str(k) for k in known))}."


def _alternatives(hint) -> tuple:
  return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _coerce(value, hint, where: str):
  kinds = _alternatives(hint)
  if value is None and type(None) in kinds:
    return None
  if float in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  if int in kinds and isinstance(value, float) and value.is_integer():
    return int(value)
  plain = [typing.get_origin(k) or k for k in kinds]
  if tuple in plain and isinstance(value, (list, tuple)):
    of_one = typing.get_args(kinds[plain.index(tuple)])[0]
    return tuple(_coerce(v, of_one, f"{where}[{i}]") for i, v in enumerate(value))
  if any(isinstance(value, k) and (k is not int or not isinstance(value, bool)) for k in plain):
    return value
  names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
  raise ValueError(f"{where}={value!r} should be a {names}.")


def _check(value, field, where: str):
  limits = field.metadata
  if value is None or not limits:
    return value
  if limits["choices"] is not None and value not in limits["choices"]:
    raise ValueError(f"{where}={value!r} is not one of {', '.join(map(repr, limits['choices']))}.")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where}={value} should be a finite number.")
  tests = (
    ("above", lambda v, b: v > b, "greater than"),
    ("at_least", lambda v, b: v >= b, "at least"),
    ("at_most", lambda v, b: v <= b, "at most"),
    ("below", lambda v, b: v < b, "less than"),
  )
  for name, holds, words in tests:
    if limits[name] is not None and not holds(value, limits[name]):
      raise ValueError(f"{where}={value} should be {words} {limits[name]}.")
  return value
