"""Tiny models of each family, with weights so large that every part of them shows in the output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gpt2, layers, llama, registry
from rlhf_jax.types import Sequences

CONFIGS = {
  "llama": llama.LlamaConfig(
    vocab_size=19,
    hidden_size=12,
    intermediate_size=20,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=64,
    rotary=layers.Rotary(theta=100.0, kind="llama3", factor=4.0, original_max_positions=16),
    qkv_bias=True,
    qk_norm=True,
    initializer_range=0.3,
  ),
  "gpt2": gpt2.GPT2Config(
    vocab_size=17,
    hidden_size=12,
    intermediate_size=20,
    num_layers=2,
    num_heads=3,
    max_positions=32,
    initializer_range=0.3,
  ),
}


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def config(request):
  return CONFIGS[request.param]


@pytest.fixture(scope="session")
def params(config):
  """Random everywhere: scales around 1, all else around 0."""
  random = np.random.RandomState(0)
  shapes = jax.eval_shape(registry.language_model(config).init, jax.random.key(0))

  def draw(path, leaf):
    center = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(center + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def rows():
  """Three rows of 7: full, padded on the left, padded on the right; the response is from column 3 on."""
  tokens = np.random.RandomState(0).randint(0, 17, (3, 7))
  mask = np.array([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
  return Sequences.from_mask(tokens, mask, jnp.arange(7)[None] >= 3)
