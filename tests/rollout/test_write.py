"""Answers in bulk, as the command line writes them."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.models import llama, policy, registry
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.rollout.write import write
from rlhf_jax.types import Sequences

CONFIG = llama.LlamaConfig(
  vocab_size=13,
  hidden_size=8,
  intermediate_size=12,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  max_positions=40,
  initializer_range=0.5,
)
PROMPTS = [[3, 1, 4, 1, 5], [2], [7, 1, 8], [2], [9, 9]]
SETTINGS = Sampling(max_new_tokens=7, stop_tokens=(6,))
MODEL = registry.language_model(CONFIG)


@pytest.fixture(scope="module")
def weights():
  return MODEL.init(jax.random.key(1))


def test_batches_of_any_size_write_the_same(weights):
  one, two, all_at_once = (
    list(write(MODEL, weights, PROMPTS, SETTINGS, seed=3, batch_size=size)) for size in (1, 2, 16)
  )
  assert len(one) == len(PROMPTS)
  assert [a.tokens for a in one] == [a.tokens for a in two] == [a.tokens for a in all_at_once]
  np.testing.assert_allclose([a.logp for a in one], [a.logp for a in all_at_once], atol=1e-5)
  assert one[1].tokens != one[3].tokens  # one prompt twice: each place has its own key


def test_an_answer_carries_the_learners_log_probability(weights):
  for prompt, answer in zip(PROMPTS, write(MODEL, weights, PROMPTS, SETTINGS, seed=3), strict=True):
    assert answer.truncated == (6 not in answer.tokens)
    tokens = np.asarray([[*prompt, *answer.tokens]])
    chosen = np.asarray([[0] * len(prompt) + [1] * len(answer.tokens)])
    row = Sequences.from_mask(tokens, np.ones_like(tokens), chosen)
    logps = policy.make_policy(MODEL).evaluate({"model": weights}, {}, row, 1.0).logps
    assert answer.logp == pytest.approx(float((logps * chosen).sum()), abs=1e-5)


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ([], "prompt 2 is empty"),
    ([1] * 34, "34 tokens .* 40 positions"),
    ([1, 13], "prompt 2 holds token 13 and the model knows 13"),
    ([-1, 1], "prompt 2 holds token -1 and"),
  ],
)
def test_prompts_that_no_answer_can_follow_are_refused_by_number(weights, prompt, message):
  with pytest.raises(ValueError, match=message):
    list(write(MODEL, weights, [[1], prompt], SETTINGS, seed=0))
  fits = dataclasses.replace(SETTINGS, max_new_tokens=6)
  assert len(list(write(MODEL, weights, [[1], [1] * 34], fits, seed=0))) == 2


def test_no_prompts_have_no_answers(weights):
  assert list(write(MODEL, weights, [], SETTINGS, seed=0)) == []
