"""Low-rank adapters (arXiv:2106.09685) as surgery on plain parameter trees.

A linear map of the base model is a dict {"kernel": [in, out]}. Its adapter stands at the same path
of a second, smaller tree and holds two thin matrices:

    base     {"layers_0": {"attention": {"q": {"kernel": W}, "k": {"kernel": ...}, ...}, ...}, ...}
    adapter  {"layers_0": {"attention": {"q": {"lora_a": A[in, r], "lora_b": B[r, out]}}}}

`attach` lays the adapter over the base, so that one dict holds W, A and scale·B; the layer that
finds the two leaves beside its kernel adds (x A) B to x W. Nothing else in the model knows of LoRA.
What trains is the adapter tree alone: the gradient, Adam's moments and the checkpoint have its
size, and the base is a frozen argument that policy, reference and reward model share. `merge`
computes W + scale·A B instead and leaves an ordinary model.

Two trees need no special case: with the adapter {} the model is the base, which is the reference
policy; with the base {} the "adapter" is a whole model, which is full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlhf_jax.models import quantize
from rlhf_jax.types import Params

Array = jax.Array


def init(key: Array, params: Params, *, rank: int, targets: Sequence[str]) -> Params:
  """An adapter for the linear maps of `params` named in `targets`, such as ("q", "v").

  A is normal with variance 1 / in and B is zero, so a fresh adapter changes nothing. Raises
  ValueError for a target that no layer has.
  """
  maps = _linear_maps(params)
  names = {path[-1] for path in maps}
  for target in targets:
    if target not in names:
      raise ValueError(
        f"lora target {target!r} is not a linear map of this model; it has "
        f"{', '.join(sorted(names))}."
      )
  chosen = [path for path in maps if path[-1] in targets]
  adapter: Params = {}
  for path, path_key in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
    size_in, size_out = maps[path].shape
    node = adapter
    for name in path:
      node = node.setdefault(name, {})
    node["lora_a"] = jax.random.normal(path_key, (size_in, rank)) * size_in**-0.5
    node["lora_b"] = jnp.zeros((rank, size_out))
  return adapter


def attach(base: Params, adapter: Params, scale: Array | float) -> Params:
  """`base` with the leaves of `adapter` laid over it, `lora_b` multiplied by `scale`."""
  tree = dict(base)
  for name, value in adapter.items():
    if isinstance(value, dict):
      tree[name] = attach(base.get(name, {}), value, scale)
    else:
      tree[name] = value * scale if name == "lora_b" else value
  return tree


def merge(base: Params, adapter: Params, scale: Array | float) -> Params:
  """The ordinary model W + scale·A B; adapted and quantized kernels come out float32, whatever the base's dtype."""
  return _fold(quantize.dequantized(attach(base, adapter, scale)))


def _fold(tree: Params) -> Params:
  folded = {name: _fold(v) if isinstance(v, dict) else v for name, v in tree.items()}
  if "lora_a" in folded:
    a, b = folded.pop("lora_a"), folded.pop("lora_b")
    delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    folded["kernel"] = folded["kernel"].astype(jnp.float32) + delta
  return folded


def _linear_maps(params: Params, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Array]:
  """Kernels by the path of the dict that holds them, those outside the layers left out."""
  maps = {}
  for name, value in params.items():
    if isinstance(value, dict) and (path or name.startswith("layers_")):
      maps.update(_linear_maps(value, (*path, name)))
    elif name == "kernel":
      maps[path] = value
  return maps
