"""Writes a model as a Hugging Face folder that `transformers` loads: config, safetensors, tokenizer, chat template."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import tokenize
from rlhf_jax.weights import hf, names


def save_hf(
  folder,
  config: Any,
  params: Mapping,
  tokenizer: PreTrainedTokenizerFast,
  *,
  max_shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes `params`, a whole canonical tree with adapters merged, and returns the folder.

  Above `max_shard_bytes` the weights are split over several files with an index. Weights that an earlier call left in
  the folder are replaced. Raises OSError before writing anything when the disk has no room.
  """
  folder = pathlib.Path(folder)
  tokenize.assert_fits(tokenizer, config.vocab_size, where=str(folder))
  tensors = names.to_hf(config, params)
  folder.mkdir(parents=True, exist_ok=True)
  _assert_room(folder, sum(t.nbytes for t in tensors.values()))

  for stale in (*folder.glob("model*.safetensors"), *folder.glob(hf.INDEX)):
    stale.unlink()
  _write_tensors(folder, tensors, max_shard_bytes)
  marks = {
    f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
  }
  _write_json(folder / "config.json", config.to_hf() | marks | {"dtype": "float32"})
  _write_json(folder / "generation_config.json", marks)
  tokenizer.save_pretrained(folder)
  return folder


def shards(tensors: Mapping[str, np.ndarray], max_bytes: int) -> list[dict[str, np.ndarray]]:
  """`tensors` in order, cut so that no part exceeds `max_bytes` unless a single tensor does."""
  parts, size = [{}], 0
  for name, tensor in tensors.items():
    if parts[-1] and size + tensor.nbytes > max_bytes:
      parts, size = [*parts, {}], 0
    parts[-1][name] = tensor
    size += tensor.nbytes
  return parts


def _write_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray], max_bytes: int) -> None:
  parts = shards(tensors, max_bytes)
  if len(parts) == 1:
    _write_shard(folder / hf.SINGLE, parts[0])
    return
  weight_map = {}
  for i, part in enumerate(parts, start=1):
    file = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
    _write_shard(folder / file, part)
    weight_map |= dict.fromkeys(part, file)
  total = sum(t.nbytes for t in tensors.values())
  _write_json(folder / hf.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  # transformers refuses a file that does not say for which framework it was written.
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + "\n")


def _assert_room(folder: pathlib.Path, num_bytes: int) -> None:
  free = shutil.disk_usage(folder).free
  if num_bytes > free:
    raise OSError(
      f"{folder}: the weights need {num_bytes / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB free;"
      " make room or choose another folder."
    )
