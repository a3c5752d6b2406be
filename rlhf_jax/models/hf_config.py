"""Reading a Hugging Face config.json strictly: a missing or unsupported field is named, never ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def required(hf: Mapping[str, Any], field: str, *, where: str = ""):
  """The value of `field`; ValueError where the config has none."""
  if hf.get(field) is None:
    raise ValueError(f"the model config has no {where}{field}; is its config.json complete?")
  return hf[field]


def refuse_unless(hf: Mapping[str, Any], field: str, allowed: Sequence) -> None:
  """Raises ValueError that names `field` and its value where this is not one of `allowed`.

  None among `allowed` lets the field be absent.
  """
  value = hf.get(field)
  if value not in allowed:
    known = ", ".join(repr(v) for v in allowed if v is not None) or "none"
    raise ValueError(f"the model config has {field}={value!r}; supported: {known}.")
