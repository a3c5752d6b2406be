"""Sampling by fewer rows than there are prompts: a row that has ended goes on with the next prompt of the queue.

So that short responses do not wait for the longest of their batch. It is one program: a part of the slots is prefilled
together, then all decode until as many are free again. All of them write the same column of the cache, which is a ring, and
a new prompt stands in the columns just before that. Once the queue is empty and half of the slots have ended, the other half
decodes alone, and so on.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax import sharding
from rlhf_jax.rollout.generate import (
  Generation,
  Sampling,
  draw,
  generate,
  generation,
  prompt_layout,
  stops,
)
from rlhf_jax.types import LanguageModel, Params

Array = jax.Array

PARTS = 4  # a quarter of the slots is filled together
HALVINGS = 3  # of the slots at the end; each is a decoding loop to compile


@struct.dataclass
class Slots:
  """What each of B rows is at."""

  prompt: Array  # int32[B], which of the Q prompts it answers
  index: Array  # int32[B], how many tokens of the response there are
  token: Array  # int32[B], the last of them
  alive: Array  # bool[B], False where the response has ended


@struct.dataclass
class Written:
  """The responses, in the order of their prompts."""

  tokens: Array  # int32[Q, N]
  logps: Array  # float32[Q, N]
  mask: Array  # float32[Q, N]
  stopped: Array  # bool[Q]


def write(
  model: LanguageModel,
  weights: Params,
  prompts: Array,
  prompt_mask: Array,
  keys: Array,
  settings: Sampling,
  limits: Array | None = None,
) -> Generation:
  """One response a row as `generate` writes it, by `settings.slots` rows at a time where there are as many."""
  arguments = model, weights, prompts, prompt_mask, keys, settings
  if is_refilled(len(prompts), settings):
    return generate_refilled(*arguments, settings.slots, limits)
  return generate(*arguments, limits)


def is_refilled(prompts: int, settings: Sampling) -> bool:
  """Whether `settings.slots` rows answer as many `prompts`, or more; else each has a row of its own."""
  return 0 < settings.slots <= prompts


def generate_refilled(
  model: LanguageModel,
  weights: Params,
  prompts: Array,
  prompt_mask: Array,
  keys: Array,
  settings: Sampling,
  slots: int,
  limits: Array | None = None,
) -> Generation:
  """What `generate` writes, response by response, for prompts int32[Q, P] of which B = `slots` are answered at a time."""
  Q, P = prompts.shape
  N = settings.max_new_tokens
  limits = jnp.full(Q, N) if limits is None else jnp.minimum(limits, N)
  together = _together(slots)
  segments, positions = prompt_layout(prompt_mask)
  tokens = prompts * segments

  def add(written: Written, state: Slots, hidden: Array) -> tuple[Written, Slots]:
    """One more token of every row that is alive."""
    token, logp = draw(model, weights, settings, hidden, keys[state.prompt], state.index)
    where = jnp.where(state.alive, state.prompt, Q), state.index
    put = lambda array, value: array.at[where].set(value, mode="drop")
    stopped = stops(settings, token)
    written = Written(
      tokens=put(written.tokens, token),
      logps=put(written.logps, logp),
      mask=put(written.mask, 1.0),
      stopped=written.stopped.at[where[0]].set(stopped, mode="drop"),
    )
    index = state.index + 1
    alive = state.alive & ~stopped & (index < limits[state.prompt])
    return written, Slots(state.prompt, index, token, alive)

  def refill(carry):
    next_prompt, state, cache, written = carry
    free = jnp.argsort(state.alive)[:together]
    prompt = next_prompt + jnp.arange(together)
    last = jnp.minimum(prompt, Q - 1)
    hidden, cache = model.prefill_rows(
      weights, tokens[last], positions[last], segments[last], cache, free
    )
    zeros = jnp.zeros(together, jnp.int32)
    begun = Slots(last, zeros, zeros, alive=(prompt < Q) & (limits[last] > 0))
    written, begun = add(written, begun, hidden[:, -1])
    state = jax.tree.map(lambda all_, new: all_.at[free].set(new), state, begun)
    return next_prompt + together, state, cache, written

  def step(carry):
    next_prompt, state, cache, written = carry
    hidden, cache = model.decode_step(weights, state.token, cache)
    written, state = add(written, state, hidden)
    return next_prompt, state, cache, written

  def narrowed(carry, rows):
    """The same with `rows` slots, all that are alive among them."""
    next_prompt, state, cache, written = carry
    kept = jnp.argsort(~state.alive)[:rows]
    state, cache = jax.tree.map(lambda x: x[kept] if x.ndim else x, (state, cache))
    return next_prompt, state, cache, written

  def decode(carry, rest):
    """Until a part of the slots is free for prompts that wait, or no more than `rest` are alive."""
    enough = lambda next_prompt: jnp.where(next_prompt < Q, slots - together, rest)
    busy = lambda carry: jnp.sum(carry[1].alive) > enough(carry[0])
    return jax.lax.while_loop(busy, step, carry)

  zeros = jnp.zeros(slots, jnp.int32)
  carry = (
    jnp.int32(0),
    Slots(zeros, zeros, zeros, jnp.zeros(slots, bool)),
    model.init_cache(slots, P + N),
    Written(jnp.zeros((Q, N), jnp.int32), jnp.zeros((Q, N)), jnp.zeros((Q, N)), jnp.zeros(Q, bool)),
  )
  widths = [*_narrower(slots, sharding.shards_in_scope()), 0]
  once = lambda _, carry: decode(refill(carry), widths[0])
  carry = jax.lax.fori_loop(0, -(-Q // together), once, carry)
  for rows, rest in itertools.pairwise(widths):
    carry = decode(narrowed(carry, rows), rest)
  written = carry[-1]
  return generation(prompts, segments, written.tokens, written.logps, written.mask, written.stopped)


def _together(slots: int) -> int:
  """How many slots are filled at a time."""
  return -(-slots // PARTS)


def _narrower(slots: int, shards: int) -> list[int]:
  """How many slots decode once the queue is empty. Rows of several devices stay where they are."""
  halvings = HALVINGS if shards == 1 else 0
  return [slots >> i for i in range(1, halvings + 1) if slots >> i]


def turns(prompts: int, settings: Sampling, shards: int) -> float:
  """How often each decoding loop of `write` turns, one like another, where every response is as long as it may be.

  `shards` are those of the data.
  """
  steps, slots = settings.max_new_tokens - 1, settings.slots
  if not is_refilled(prompts, settings):
    return steps
  refills = -(-prompts // _together(slots))
  return steps * prompts / (refills * slots + sum(_narrower(slots, shards)))
