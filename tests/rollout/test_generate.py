"""What the sampler writes, and that it speaks of the same distribution as the learner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder, llama, policy, registry
from rlhf_jax.rollout.generate import Sampling, generate, left_pad, responses

V, D = 13, 8
CONFIG = llama.LlamaConfig(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=12,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  max_positions=64,
  initializer_range=0.5,
)
PROMPTS = [[3, 1, 4, 1, 5], [2], [7, 1, 8]]
STOP = 6
SETTINGS = Sampling(max_new_tokens=9, stop_tokens=(STOP,))


def model_and_weights(dtype="float32"):
  model = registry.language_model(CONFIG, dtype=dtype)
  return model, model.init(jax.random.key(1))


def write(settings=SETTINGS, prompts=PROMPTS, keys=None, width=None, dtype="float32"):
  model, weights = model_and_weights(dtype)
  tokens, mask = left_pad(prompts, width)
  keys = jax.random.split(jax.random.key(7), len(prompts)) if keys is None else keys
  return jax.jit(generate, static_argnums=0)(model, weights, tokens, mask, keys, settings)


def answers(written):
  return responses(
    np.asarray(written.sequences.tokens), np.asarray(written.sequences.response_mask)
  )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_learner_agree_on_every_log_probability(temperature):
  model, weights = model_and_weights()
  written = write(dataclasses.replace(SETTINGS, temperature=temperature))
  learner = policy.make_policy(model).evaluate(
    {"model": weights}, {}, written.sequences, temperature
  )
  mask = written.sequences.response_mask
  np.testing.assert_allclose(written.logps * mask, learner.logps * mask, atol=1e-5)
  assert np.all(np.asarray(written.logps)[np.asarray(mask) == 0] == 0)


def test_rows_together_are_the_rows_alone():
  keys = jax.random.split(jax.random.key(7), len(PROMPTS))
  together = write(keys=keys)
  for row, prompt in enumerate(PROMPTS):
    alone = write(prompts=[prompt], keys=keys[row : row + 1])
    assert answers(alone)[0] == answers(together)[row]
    size = len(answers(alone)[0])
    mine, its = alone.logps[0, len(prompt) :][:size], together.logps[row, 5:][:size]
    np.testing.assert_allclose(mine, its, atol=1e-5)


def test_more_padding_changes_no_answer():
  assert answers(write(width=11)) == answers(write())


def test_a_response_ends_with_its_first_stop_token_and_nothing_follows():
  keys = jax.random.split(jax.random.key(0), 64)
  written = write(prompts=[[1, 2]] * 64, keys=keys)
  for answer, cut in zip(answers(written), np.asarray(written.truncated), strict=True):
    assert answer.count(STOP) == (0 if cut else 1)
    assert len(answer) == 9 if cut else answer[-1] == STOP
  assert 0 < np.mean(np.asarray(written.truncated)) < 1
  ended = np.asarray(written.sequences.segments) == 0
  assert not np.any(np.asarray(written.sequences.tokens)[ended])


def test_minimum_length_bars_stop_tokens_until_then():
  keys = jax.random.split(jax.random.key(0), 64)
  settings = dataclasses.replace(SETTINGS, min_new_tokens=4)
  lengths = [len(answer) for answer in answers(write(settings, [[1, 2]] * 64, keys))]
  assert min(lengths) == 5  # four tokens that are not the stop, then at the earliest the stop


def test_greedy_takes_the_most_probable_token_each_time():
  model, weights = model_and_weights()
  written = write(dataclasses.replace(SETTINGS, greedy=True, stop_tokens=()))
  s = written.sequences
  hidden = jax.jit(model.hidden)(weights, s.tokens, s.positions, s.segments)
  best = np.asarray(jnp.argmax(model.unembed(weights, hidden), axis=-1))[:, :-1]
  chosen = np.asarray(s.response_mask)[:, 1:] > 0
  assert chosen.sum() == 27
  np.testing.assert_array_equal(np.asarray(s.tokens)[:, 1:][chosen], best[chosen])


@pytest.mark.parametrize("limits", [dict(top_k=2), dict(top_p=0.5), dict(min_p=0.6)])
def test_truncated_sampling_stays_in_its_support_and_reports_renormalised_log_probs(limits):
  model, weights = model_and_weights()
  keys = jax.random.split(jax.random.key(0), 32)
  written = write(dataclasses.replace(SETTINGS, **limits), [[1, 2]] * 32, keys)
  assert dataclasses.replace(SETTINGS, **limits).truncates and not SETTINGS.truncates
  whole = policy.make_policy(model).evaluate({"model": weights}, {}, written.sequences, 1.0)
  mask = np.asarray(written.sequences.response_mask) > 0
  gained = np.asarray(written.logps - whole.logps)[mask]
  assert np.all(gained > -1e-5) and gained.max() > 0.1  # what is left carries all the mass
  first = {answer[0] for answer in answers(written)}
  hidden = model.hidden(weights, jnp.asarray([[1, 2]]), jnp.arange(2)[None], jnp.ones((1, 2), int))
  probs = np.asarray(jax.nn.softmax(model.unembed(weights, hidden)[0, -1]))
  order = np.argsort(-probs)
  kept = {
    "top_k": order[:2],
    "top_p": order[: np.searchsorted(np.cumsum(probs[order]), 0.5) + 1],
    "min_p": np.flatnonzero(probs >= 0.6 * probs.max()),
  }[next(iter(limits))]
  assert first == set(kept.tolist())


def test_decoding_in_bfloat16_is_close_to_the_learner():
  model, weights = model_and_weights("bfloat16")
  decoding = decoder.cast_for_decoding(weights, "bfloat16")
  tokens, mask = left_pad(PROMPTS)
  keys = jax.random.split(jax.random.key(7), 3)
  written = jax.jit(generate, static_argnums=0)(model, decoding, tokens, mask, keys, SETTINGS)
  learner = policy.make_policy(model).evaluate({"model": weights}, {}, written.sequences, 1.0)
  mask = written.sequences.response_mask
  np.testing.assert_allclose(written.logps * mask, learner.logps * mask, atol=0.1)


def test_a_prompt_must_have_tokens_and_fit():
  with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
    left_pad([[1], []])
  with pytest.raises(ValueError, match="prompt 0 has 3 tokens; it needs between 1 and 2"):
    left_pad([[1, 2, 3]], width=2)


def test_limits_cut_each_row_after_its_own_number_of_tokens():
  model, weights = model_and_weights()
  tokens, mask = left_pad(PROMPTS)
  keys = jax.random.split(jax.random.key(7), 3)
  settings = dataclasses.replace(SETTINGS, stop_tokens=())
  limits = jnp.asarray([2, 12, 5])
  cut = jax.jit(generate, static_argnums=0)(model, weights, tokens, mask, keys, settings, limits)
  whole = answers(write(settings))
  assert answers(cut) == [whole[0][:2], whole[1], whole[2][:5]]
  assert np.all(cut.truncated)
