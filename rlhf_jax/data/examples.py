"""Tokenized examples, and how they become batches of fixed width: packed, padded, in a seekable order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.types import PreferenceBatch, Sequences


class Example(NamedTuple):
  """A prompt and its response as one list of tokens."""

  id: str
  tokens: list[int]
  start: int  # the response's first token; len(tokens) for a prompt alone


class Pair(NamedTuple):
  """Two answers, the first preferred."""

  chosen: Example
  rejected: Example

  @property
  def id(self) -> str:
    return f"{self.chosen.id} > {self.rejected.id}"


def batch_rows(size: int, batch_size: int, seed: int | Sequence[int], step: int) -> np.ndarray:
  """The rows int[batch_size] of batch `step`: epoch after epoch, each in its own order of `seed`.

  A pure function of its arguments, so the data cursor is the step itself. Raises ValueError when
  there are fewer rows than one batch takes.
  """
  if size < batch_size:
    raise ValueError(
      f"batch_size={batch_size} exceeds the {size} rows of data; lower it to at most {size}."
    )
  first = step * batch_size
  epochs = range(first // size, (first + batch_size - 1) // size + 1)
  order = np.concatenate(
    [np.random.default_rng((*np.atleast_1d(seed), epoch)).permutation(size) for epoch in epochs]
  )
  start = first - epochs[0] * size
  return order[start : start + batch_size]


def pack(examples: Sequence[Example], width: int) -> list[list[Example]]:
  """Examples sharing rows of at most `width` tokens: first fit, longest first."""
  rows: list[list[Example]] = []
  room: list[int] = []
  for example in sorted(examples, key=lambda e: -len(e.tokens)):
    size = len(example.tokens)
    if size > width:
      raise ValueError(f"example {example.id} has {size} tokens, more than the row's {width}.")
    row = next((i for i, free in enumerate(room) if free >= size), None)
    if row is None:
      rows.append([])
      room.append(width)
      row = len(rows) - 1
    rows[row].append(example)
    room[row] -= size
  return rows


def collate(rows: Sequence[Sequence[Example]], width: int) -> Sequences:
  """Rows of packed examples as `Sequences` of numpy arrays [B, width], padded on the right."""
  shape = (len(rows), width)
  tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  segments, response = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for i, row in enumerate(rows):
    at = 0
    for segment, example in enumerate(row, start=1):
      size = len(example.tokens)
      span = slice(at, at + size)
      tokens[i, span] = example.tokens
      positions[i, span] = np.arange(size)
      segments[i, span] = segment
      response[i, at + example.start : at + size] = 1
      at += size
  return Sequences(tokens, positions, segments, response)


def collate_pairs(pairs: Sequence[Pair], width: int) -> PreferenceBatch:
  """Pairs as a `PreferenceBatch`, both sides [B, width]."""
  return PreferenceBatch(
    chosen=collate([[pair.chosen] for pair in pairs], width),
    rejected=collate([[pair.rejected] for pair in pairs], width),
  )


def batches_by_width(
  pairs: Sequence[Pair], batch_size: int, buckets: int, seed: int | Sequence[int]
) -> list[tuple[int, list[Pair]]]:
  """One epoch as (width, pairs) batches of at most `buckets` widths, so that short pairs are not padded long.

  Each width holds its share of the pairs, shortest first; what does not fill a batch joins the next
  width, and fewer than `batch_size` of the longest are left for another epoch. Batches come in
  random order. Raises ValueError when there are fewer pairs than one batch takes.
  """
  if len(pairs) < batch_size:
    raise ValueError(
      f"batch_size={batch_size} exceeds the {len(pairs)} pairs of data; lower it to at most {len(pairs)}."
    )
  rng = np.random.default_rng(seed)
  longest = np.asarray([max(len(p.chosen.tokens), len(p.rejected.tokens)) for p in pairs])
  shares = np.quantile(longest, np.arange(1, buckets + 1) / buckets, method="higher")
  widths = sorted({_round_up(int(share)) for share in shares})
  batches, waiting = [], []
  for below, width in zip([0, *widths], widths, strict=False):
    waiting += [pairs[i] for i in np.flatnonzero((longest > below) & (longest <= width))]
    order = rng.permutation(len(waiting))
    full = len(waiting) // batch_size * batch_size
    for start in range(0, full, batch_size):
      batches.append((width, [waiting[i] for i in order[start : start + batch_size]]))
    waiting = [waiting[i] for i in order[full:]]
  return [batches[i] for i in rng.permutation(len(batches))]


def width_of(examples: Sequence[Example], multiple: int = 8) -> int:
  """The longest example's length, rounded up to a multiple."""
  return _round_up(max(len(e.tokens) for e in examples), multiple)


def _round_up(size: int, multiple: int = 8) -> int:
  return -(-size // multiple) * multiple
