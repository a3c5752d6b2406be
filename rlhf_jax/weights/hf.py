"""Reads a Hugging Face folder without torch: config.json and the tensors of one or several safetensors files."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import transformers

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def config(folder) -> dict[str, Any]:
  """config.json, its omissions filled in with the defaults of the model type."""
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist; a Hugging Face model folder holds config.json."
    )
  try:
    values = json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise ValueError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}).") from e
  if "model_type" not in values:
    raise ValueError(f"{path} has no model_type; without it the architecture is unknown.")
  return complete(values, where=str(path))


def complete(values: dict[str, Any], *, where: str) -> dict[str, Any]:
  """`values` with the defaults that `transformers` gives to what its model type leaves out."""
  kind = values["model_type"]
  try:
    settings = transformers.AutoConfig.for_model(
      kind, **{k: v for k, v in values.items() if k != "model_type"}
    )
  except ValueError as e:
    raise ValueError(f"{where}: model_type {kind!r} is not known to transformers.") from e
  return settings.to_dict()


def tensors(folder) -> dict[str, np.ndarray]:
  """All tensors of the folder by name, float32.

  Raises an error that names the file which is missing or truncated.
  """
  folder = pathlib.Path(folder)
  if (folder / INDEX).is_file():
    return _sharded(folder)
  if (folder / SINGLE).is_file():
    return _read(folder / SINGLE)
  if any(folder.glob("pytorch_model*.bin")):
    raise ValueError(
      f"{folder} holds only pytorch_model.bin, which needs torch to read; convert it to safetensors,"
      " with model.save_pretrained(folder) of a current transformers."
    )
  raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}.")


def _sharded(folder: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    shard_of = json.loads((folder / INDEX).read_text())["weight_map"]
  except (json.JSONDecodeError, KeyError) as e:
    raise ValueError(f"{folder / INDEX} is not a safetensors index: it needs a weight_map.") from e
  out: dict[str, np.ndarray] = {}
  for shard in sorted(set(shard_of.values())):
    if not (folder / shard).is_file():
      raise FileNotFoundError(f"{folder / shard} is named in {INDEX} but missing; download it.")
    out |= _read(folder / shard)
  absent = sorted(set(shard_of) - set(out))
  if absent:
    raise ValueError(
      f"{folder}: {INDEX} places {absent[0]} in {shard_of[absent[0]]}, which does not hold it;"
      " download both again."
    )
  return out


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with safetensors.safe_open(path, framework="numpy") as f:
      return {name: f.get_tensor(name).astype(np.float32) for name in f.keys()}
  except safetensors.SafetensorError as e:
    raise ValueError(
      f"{path} is truncated or not a safetensors file ({e}); download it again."
    ) from e
