"""Every matrix has its place on the mesh."""

import re

import jax

from rlhf_jax.models import lora, q_heads, quantize, registry
from rlhf_jax.sharding import RULES

ALL = ("q", "k", "v", "o", "up", "down")


def matrices(tree):
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [("/".join(k.key for k in path), leaf) for path, leaf in paths if leaf.ndim >= 2]


def test_each_matrix_scale_adapter_and_head_matches_exactly_one_pattern(config):
  def tree(key):
    params = registry.language_model(config).init(key)
    params.setdefault("unembed", {"kernel": params["embed"]["embedding"].T})
    heads = q_heads.init_q_heads(key, config.hidden_size, config.vocab_size, 2)
    params["q_heads"] = q_heads.acting(heads, 1.0)
    targets = ALL + (("gate",) if "gate" in params["layers_0"]["mlp"] else ())
    params = quantize.quantized(params, "int4")
    return lora.attach(params, lora.init(key, params, rank=2, targets=targets), 1.0)

  table = registry.axes(config)
  found = matrices(jax.eval_shape(tree, jax.random.key(0)))
  used = set()
  for path, leaf in found:
    hits = [(pattern, axes) for pattern, axes in table if re.search(pattern, path)]
    assert len(hits) == 1, (path, hits)
    assert len(hits[0][1]) == leaf.ndim
    used.add(hits[0][0])
  assert used == {pattern for pattern, _ in table}


def test_axes_have_names_that_the_mesh_knows(config):
  for _, axes in registry.axes(config):
    assert all(axis is None or axis in RULES for axis in axes)
    assert any(axes)
