"""Answers to prompts of any length and number, as lists on the host: what a command line or a notebook wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.rollout import refill
from rlhf_jax.rollout.generate import Sampling, left_pad, responses
from rlhf_jax.types import LanguageModel, Params


class Answer(NamedTuple):
  tokens: list[int]  # the stop token included
  logp: float  # summed over them, under the distribution they were drawn from, or are the mode of
  truncated: bool  # max_new_tokens came before a stop token


def write(
  model: LanguageModel,
  weights: Params,
  prompts: Sequence[Sequence[int]],
  settings: Sampling,
  *,
  seed: int,
  batch_size: int = 16,
) -> Iterator[Answer]:
  """An answer to each of `prompts`, in order, a batch at a time; it depends on seed, prompt and place.

  `weights` are whole and may be cast for decoding. Raises ValueError for a prompt that is empty,
  leaves no room to answer, or holds what is no token of the model.
  """
  if not prompts:
    return
  _assert_answerable(model, prompts, settings)
  write_batch = jax.jit(refill.write, static_argnums=0)
  weights = jax.device_put(weights)
  keys = jax.random.split(jax.random.key(seed), len(prompts))
  # One width in steps of 32, so that a conversation that grows compiles anew only now and then.
  width = -(-max(map(len, prompts)) // 32) * 32
  size = min(batch_size, len(prompts))
  for start in range(0, len(prompts), size):
    rows = np.arange(start, start + size) % len(prompts)  # the last batch is filled up
    tokens, mask = left_pad([list(prompts[i]) for i in rows], width)
    written = jax.device_get(write_batch(model, weights, tokens, mask, keys[rows], settings))
    chosen = responses(written.sequences.tokens, written.sequences.response_mask)
    for i in range(min(size, len(prompts) - start)):
      yield Answer(chosen[i], float(written.logps[i].sum()), bool(written.truncated[i]))


def _assert_answerable(model: LanguageModel, prompts, settings: Sampling) -> None:
  limit, vocab_size = model.config.max_positions, model.config.vocab_size
  for number, prompt in enumerate(prompts, start=1):
    if not prompt:
      raise ValueError(f"prompt {number} is empty; give at least one token.")
    if len(prompt) + settings.max_new_tokens > limit:
      raise ValueError(
        f"prompt {number} of {len(prompt)} tokens and an answer of {settings.max_new_tokens} exceed "
        f"the model's {limit} positions; shorten the prompt or lower max_new_tokens."
      )
    strange = [token for token in prompt if not 0 <= token < vocab_size]
    if strange:
      raise ValueError(
        f"prompt {number} holds token {strange[0]} and the model knows {vocab_size}; use the model's own tokenizer."
      )
