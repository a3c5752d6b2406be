"""Writing and scoring texts in bulk, outside of training: for pairs, for normalisation, for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from rlhf_jax import sharding
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example
from rlhf_jax.rollout import refill
from rlhf_jax.rollout.generate import Generation, left_pad, responses
from rlhf_jax.sharding import processes
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params, Scorer, Sequences

_write = jax.jit(refill.write, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _score(scorer, params, frozen, sequences):
  return scorer.score(params, frozen, sequences)


def sample(
  setup: Setup,
  base: Params,
  adapter: Params,
  prompts: Sequence[Example],
  purpose: str,
  *,
  count: int = 1,
  batch_size: int,
) -> Generation:
  """`count` responses to each prompt from `adapter` over `base`, a row each, as host arrays.

  The k-th response to a prompt depends on the run's seed, `purpose`, k, the prompt and its place in
  `prompts` alone.
  """
  width = examples.width_of(prompts)
  weights = setup.decoding(base, adapter)
  rows = np.arange(len(prompts) * count)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  each = jax.vmap(jax.random.fold_in)
  keys = each(fold(setup.key(purpose), rows // count), rows % count)

  def batch(chosen):
    tokens, mask = left_pad([prompts[i // count].tokens for i in chosen], width)
    placed = setup.place_batch((tokens, mask, keys[chosen]))
    return _write(setup.model, weights, *placed, setup.sampling)

  return in_batches(setup, batch, len(rows), batch_size, "writing")


def score(
  setup: Setup,
  params: Params,
  frozen: Params,
  sequences: Sequences,
  *,
  batch_size: int,
  scorer: Scorer | None = None,
) -> np.ndarray:
  """Scores float32[N] of host sequences: rewards, or those of another `scorer`."""

  def batch(rows):
    return _score(scorer or setup.scorer, params, frozen, setup.place_batch(take(sequences, rows)))

  return in_batches(setup, batch, len(sequences.tokens), batch_size, "scoring")


def take(tree, rows: np.ndarray):
  """The given rows of every array."""
  return jax.tree.map(lambda x: x[rows], tree)


def in_batches(setup: Setup, function, count: int, batch_size: int, doing: str):
  """`function(rows)` over 0 … count − 1 in batches of one size, the last filled up and cut again.

  The size is `batch_size`, or as few as hold all rows, rounded up to what divides over the devices.
  """
  shards = sharding.data_shards(setup.mesh)
  size = -(-min(batch_size, count) // shards) * shards
  parts = []
  starts = range(0, count, size)
  for start in tqdm(
    starts,
    desc=f"{doing:>12}",
    unit="batch",
    leave=False,
    dynamic_ncols=True,
    disable=not processes.is_first(),
  ):
    rows = np.arange(start, start + size) % count
    parts.append(processes.fetch(function(rows)))
  return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)


def texts(setup: Setup, sequences: Sequences) -> list[str]:
  """The responses as text, without special tokens."""
  return setup.tokenizer.batch_decode(
    responses(sequences.tokens, sequences.response_mask), skip_special_tokens=True
  )


def prompt_texts(setup: Setup, sequences: Sequences) -> list[str]:
  """What stands before the responses, as text."""
  prompt = (sequences.segments > 0) & (sequences.response_mask == 0)
  return setup.tokenizer.batch_decode(responses(sequences.tokens, prompt), skip_special_tokens=True)
