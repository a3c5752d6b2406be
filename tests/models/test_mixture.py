"""The geometric mixture of two models: its logits by hand, and either model at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import llama, registry
from rlhf_jax.models.mixture import mixture
from rlhf_jax.rollout.generate import Sampling, generate
from rlhf_jax.types import LanguageModel

V, D, B, P, N = 7, 8, 5, 2, 6
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=12,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_positions=16,
    initializer_range=0.7,
  )
)
BOTH = {"policy": MODEL.init(jax.random.key(0)), "reference": MODEL.init(jax.random.key(1))}
SETTINGS = Sampling(max_new_tokens=N, stop_tokens=(V - 1,), temperature=0.8)
PROMPTS = jnp.asarray([[1, 2], [0, 3], [2, 4], [0, 1], [5, 1]], jnp.int32)
MASK = jnp.where(jnp.asarray([[1, 1], [0, 1], [1, 1], [0, 1], [1, 1]]) > 0, 1.0, 0.0)
KEYS = jax.random.split(jax.random.key(2), B)


def write(model, weights):
  return generate(model, weights, PROMPTS, MASK, KEYS, SETTINGS)


mixed = jax.jit(lambda weights, coef: write(mixture(MODEL, coef), weights))
alone = jax.jit(lambda weights: write(MODEL, weights))


def test_two_to_one_is_the_normalised_geometric_mean_by_hand():
  # Two words, π = (1/9, 8/9) and π_ref = (1/2, 1/2): with c = 1/3 weights (1/9)^(2/3) : (8/9)^(2/3) = 1 : 4.
  words = LanguageModel(*(None,) * len(LanguageModel._fields))
  words = words._replace(unembed=lambda params, hidden: hidden)
  hidden = jnp.asarray([jnp.log(1.0), jnp.log(8.0), 5.0, 5.0])
  logits = mixture(words, 1 / 3).unembed({"policy": {}, "reference": {}}, hidden)
  np.testing.assert_allclose(jax.nn.softmax(logits), [0.2, 0.8], rtol=1e-6)


@pytest.mark.parametrize(("coef", "name"), [(0.0, "policy"), (1.0, "reference")])
def test_all_of_either_model_writes_as_that_model(coef, name):
  got, expected = mixed(BOTH, coef), alone(BOTH[name])
  np.testing.assert_array_equal(got.sequences.tokens, expected.sequences.tokens)
  np.testing.assert_allclose(got.logps, expected.logps, atol=1e-6)
  other = {"policy": "reference", "reference": "policy"}[name]
  assert np.any(alone(BOTH[other]).sequences.tokens != got.sequences.tokens)


def test_a_cached_decoder_writes_from_the_mixture_of_both_full_passes():
  coef = 0.3
  written = mixed(BOTH, coef)
  rows = written.sequences
  inputs = rows.tokens, rows.positions, rows.segments
  logits = [
    jax.nn.log_softmax(MODEL.unembed(w, MODEL.hidden(w, *inputs)) / SETTINGS.temperature)
    for w in BOTH.values()
  ]
  logps = jax.nn.log_softmax((1 - coef) * logits[0] + coef * logits[1])
  both = mixture(MODEL, coef)
  own = both.unembed(BOTH, both.hidden(BOTH, *inputs)) / SETTINGS.temperature
  np.testing.assert_allclose(jax.nn.log_softmax(own), logps, atol=1e-5)
  chosen = jnp.take_along_axis(logps[:, :-1], rows.tokens[:, 1:, None], axis=-1)[..., 0]
  expected = jnp.pad(chosen, ((0, 0), (1, 0))) * rows.response_mask
  np.testing.assert_allclose(written.logps, expected, atol=1e-5)
