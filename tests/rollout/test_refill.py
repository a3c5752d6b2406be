"""Slots that are refilled from a queue of prompts write what all rows at once write, in fewer steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.models import gpt2, llama, registry
from rlhf_jax.models.mixture import mixture
from rlhf_jax.rollout import refill
from rlhf_jax.rollout.generate import Sampling, left_pad
from rlhf_jax.types import LanguageModel

SIZES = dict(vocab_size=13, intermediate_size=12, num_heads=2, initializer_range=0.5)
LLAMA = llama.LlamaConfig(
  hidden_size=8, num_layers=2, num_kv_heads=1, head_dim=4, max_positions=64, **SIZES
)
# There is no position beyond the longest row.
GPT2 = gpt2.GPT2Config(hidden_size=8, num_layers=2, max_positions=14, **SIZES)
Q = 12
PROMPTS = [[row % 13, *range(row % 5)] for row in range(Q)]
SETTINGS = Sampling(max_new_tokens=9, stop_tokens=(6, 9))

run = jax.jit(refill.write, static_argnums=0)


@functools.cache
def model_and_weights(config):
  model = registry.language_model(config)
  return model, model.init(jax.random.key(1))


def write(model, weights, settings, slots, limits=None):
  tokens, mask = left_pad(PROMPTS)
  keys = jax.random.split(jax.random.key(7), Q)
  settings = dataclasses.replace(settings, slots=slots)
  return run(model, weights, tokens, mask, keys, settings, limits)


def assert_same(refilled, together):
  for a, b in zip(jax.tree.leaves(refilled), jax.tree.leaves(together), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=1e-5)


def lengths(written):
  return np.asarray(written.sequences.response_mask).sum(axis=1)


def test_five_slots_write_the_responses_of_twelve_rows_at_once():
  model, weights = model_and_weights(LLAMA)
  together = write(model, weights, SETTINGS, 0)
  assert_same(write(model, weights, SETTINGS, 5), together)
  assert len(set(lengths(together))) > 3 and 0 < np.mean(together.truncated) < 1


def test_learned_positions_greedy_choice_minimum_and_limits_are_those_of_all_rows_at_once():
  model, weights = model_and_weights(GPT2)
  settings = dataclasses.replace(SETTINGS, greedy=True, min_new_tokens=2)
  limits = 1 + np.arange(Q) * 5 % 9
  together = write(model, weights, settings, 0, limits)
  assert_same(write(model, weights, settings, 6, limits), together)
  assert np.all(lengths(together) <= limits) and np.any(lengths(together) < limits)


def test_both_models_of_a_mixture_go_on_with_the_next_prompt():
  model, weights = model_and_weights(dataclasses.replace(LLAMA, num_layers=1))
  weights = {"policy": weights, "reference": model.init(jax.random.key(2))}
  model = mixture(model, 0.3)
  assert_same(write(model, weights, SETTINGS, 5), write(model, weights, SETTINGS, 0))


def test_slots_may_be_spread_over_devices():
  model, weights = model_and_weights(LLAMA)
  together = write(model, weights, SETTINGS, 0)
  mesh = sharding.make_mesh(2, 1, 2)
  layout = sharding.tree_shardings(mesh, weights, registry.axes(LLAMA))
  with jax.set_mesh(mesh):
    spread = write(model, jax.device_put(weights, layout), SETTINGS, 4)
  assert_same(jax.device_get(spread), jax.device_get(together))


def test_as_many_slots_as_prompts_write_the_same_though_fewer_and_fewer_decode():
  model, weights = model_and_weights(LLAMA)
  limits = 1 + np.arange(Q) * 5 % 9
  together = write(model, weights, SETTINGS, 0, limits)
  assert_same(write(model, weights, SETTINGS, Q, limits), together)


def test_a_short_response_does_not_wait_for_the_longest():
  steps = []

  def decode_step(params, token, cache):
    jax.debug.callback(lambda: steps.append(len(token)))
    return jnp.zeros((len(token), 2)), cache

  model = LanguageModel(
    config=None,
    init=None,
    hidden=None,
    unembed=lambda params, hidden: hidden,
    q_values=None,
    init_cache=lambda batch, length: (),
    prefill=lambda params, tokens, *rest: (jnp.zeros((*tokens.shape, 2)), ()),
    decode_step=decode_step,
    prefill_rows=lambda params, tokens, *rest: (jnp.zeros((*tokens.shape, 2)), ()),
  )

  def decoded(limits, slots):
    steps.clear()
    written = write(model, {}, dataclasses.replace(SETTINGS, stop_tokens=()), slots, limits)
    np.testing.assert_array_equal(lengths(written), limits)
    jax.effects_barrier()
    return steps

  limits = np.array([9] + [2] * 8 + [1] * 3)
  programs = run._cache_size()
  # The first slot writes nine tokens, meanwhile the other the rest: a prompt's first token needs no step.
  assert decoded(limits, 2) == [2] * 8
  assert decoded(np.full(Q, 5), 2) == [2] * 24  # six rounds of four
  assert run._cache_size() == programs + 1
  assert decoded(limits, 0) == [Q] * 8
  # Half of the rows decode alone when the other half has ended.
  limits = np.array([9, 8, 7, 6, 5, 5, 4, 4, 3, 3, 2, 2])
  assert decoded(limits, Q) == [12] * 3 + [6] * 2 + [3] * 2 + [1]
