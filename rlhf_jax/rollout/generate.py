"""Sampling responses: one program that prefills a cache, then decodes until every row is done."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import logprobs, sampling
from rlhf_jax.types import LanguageModel, Params, Sequences

Array = jax.Array


@hyperparameters
class Sampling:
  """How tokens are drawn. `temperature`, `top_p` and `min_p` are traced; the rest is structure."""

  max_new_tokens: int = option(48, at_least=1)
  min_new_tokens: int = option(0, at_least=0)  # stop tokens have probability 0 before
  temperature: float = option(1.0, above=0)
  top_k: int | None = option(None, at_least=1)
  top_p: float | None = option(None, above=0, at_most=1)
  min_p: float | None = option(None, above=0, at_most=1)
  greedy: bool = False
  stop_tokens: tuple[int, ...] = ()  # a response ends with the first of these, which belongs to it
  # How many rows decode at a time, each going on with the next prompt when its response has ended; 0 is all of a batch.
  slots: int = option(0, at_least=0)

  def assert_sound(self, where: str) -> None:
    if self.min_new_tokens > self.max_new_tokens:
      raise ValueError(
        f"{where}.min_new_tokens={self.min_new_tokens} exceeds {where}.max_new_tokens={self.max_new_tokens}; lower it."
      )

  @property
  def truncates(self) -> bool:
    """Whether samples come from another distribution than softmax(logits / temperature)."""
    truncated = any(x is not None for x in (self.top_k, self.top_p, self.min_p))
    return truncated or self.greedy or self.min_new_tokens > 0


@struct.dataclass
class Generation:
  """Prompts and what followed them, T = P + max_new_tokens; prompts end at column P − 1."""

  sequences: Sequences
  # float32[B, T], of each response token under the distribution it was drawn from; greedy, the one that it is the mode of.
  logps: Array
  truncated: Array  # bool[B], True where max_new_tokens came before a stop token


def generate(
  model: LanguageModel,
  weights: Params,
  prompts: Array,
  prompt_mask: Array,
  keys: Array,
  settings: Sampling,
  limits: Array | None = None,
) -> Generation:
  """One response a row. `prompts` int32[B, P] padded on the left, `prompt_mask` 1 on real tokens.

  `weights` are whole (adapters attached) and may be cast for decoding. `keys` holds a key a row: a
  row's response depends on its own prompt and key alone, not on its neighbours. `limits` int32[B]
  cuts rows short of max_new_tokens.
  Under truncated sampling the log-probabilities are those of the renormalised distribution.
  """
  B, P = prompts.shape
  N = settings.max_new_tokens
  limits = jnp.full(B, N) if limits is None else jnp.minimum(limits, N)

  def write(tokens, logps, mask, stopped, index, token, logp):
    alive = ~stopped & (index < limits)
    put = lambda array, value: jax.lax.dynamic_update_slice_in_dim(
      array, value.astype(array.dtype)[:, None], index, axis=1
    )
    tokens, logps = put(tokens, token * alive), put(logps, jnp.where(alive, logp, 0.0))
    return tokens, logps, put(mask, alive), stopped | (alive & stops(settings, token))

  segments, positions = prompt_layout(prompt_mask)
  cache = model.init_cache(B, P + N)
  hidden, cache = model.prefill(weights, prompts * segments, positions, segments, cache)
  token, logp = draw(model, weights, settings, hidden[:, -1], keys, jnp.zeros(B, jnp.int32))
  empty = jnp.zeros((B, N), jnp.int32), jnp.zeros((B, N)), jnp.zeros((B, N))
  written = write(*empty, jnp.zeros(B, bool), 0, token, logp)

  def unfinished(carry):
    index, _, _, (_, _, _, stopped) = carry
    return jnp.any(~stopped & (index < limits))

  def step(carry):
    index, token, cache, written = carry
    hidden, cache = model.decode_step(weights, token, cache)
    token, logp = draw(model, weights, settings, hidden, keys, jnp.full(B, index))
    return index + 1, token, cache, write(*written, index, token, logp)

  carry = jax.lax.while_loop(unfinished, step, (jnp.int32(1), token, cache, written))
  return generation(prompts, segments, *carry[-1])


def draw(
  model: LanguageModel,
  weights: Params,
  settings: Sampling,
  hidden: Array,
  keys: Array,
  index: Array,
) -> tuple[Array, Array]:
  """(token int32[B], its log-probability float32[B]) after hidden[B, D], response token `index`[B] of each row."""
  logits = model.unembed(weights, hidden) / settings.temperature  # [B, V]
  if settings.stop_tokens and settings.min_new_tokens:
    early = index < settings.min_new_tokens
    barred = stops(settings, jnp.arange(logits.shape[-1]))
    logits = jnp.where(barred[None] & early[:, None], -jnp.inf, logits)
  logits = sampling.truncate(
    logits, top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p
  )
  if settings.greedy:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  else:
    token = sampling.categorical(jax.vmap(jax.random.fold_in)(keys, index), logits)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return token, chosen - logprobs.normalizer(logits)


def stops(settings: Sampling, tokens: Array) -> Array:
  """bool[B], where one of `tokens`[B] ends a response."""
  return jnp.any(tokens[:, None] == jnp.asarray(settings.stop_tokens, jnp.int32)[None], axis=-1)


def prompt_layout(mask: Array) -> tuple[Array, Array]:
  """(segments, positions) int32[B, P] of prompts padded on the left."""
  segments = (mask > 0).astype(jnp.int32)
  return segments, jnp.maximum(jnp.cumsum(segments, axis=-1) - 1, 0)


def generation(prompts, segments, tokens, logps, mask, stopped) -> Generation:
  """`prompts`[B, P] and the response tokens, log-probabilities and mask [B, N] that followed them."""
  nothing = jnp.zeros(prompts.shape)
  sequences = Sequences.from_mask(
    tokens=jnp.concatenate([prompts, tokens], axis=1),
    mask=jnp.concatenate([segments.astype(jnp.float32), mask], axis=1),
    response_mask=jnp.concatenate([nothing, mask], axis=1),
  )
  return Generation(sequences, jnp.concatenate([nothing, logps], axis=1), truncated=~stopped)


def left_pad(prompts: list[list[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Token lists as (int32[B, P], float32[B, P] mask), padded on the left to `width` or the longest.

  Raises ValueError for an empty prompt or one longer than `width`.
  """
  width = max(map(len, prompts), default=0) if width is None else width
  tokens = np.zeros((len(prompts), width), np.int32)
  mask = np.zeros((len(prompts), width), np.float32)
  for row, prompt in enumerate(prompts):
    if not prompt or len(prompt) > width:
      raise ValueError(f"prompt {row} has {len(prompt)} tokens; it needs between 1 and {width}.")
    tokens[row, width - len(prompt) :] = prompt
    mask[row, width - len(prompt) :] = 1
  return tokens, mask


def responses(tokens: np.ndarray, response_mask: np.ndarray) -> list[list[int]]:
  """The response tokens of each row, as lists."""
  return [row[mask > 0].tolist() for row, mask in zip(tokens, response_mask, strict=True)]
