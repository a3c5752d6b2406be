"""Where the steps of a response end: a step is a line with something visible in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Lines(NamedTuple):
  """Of each token of the vocabulary, bool[V]."""

  visible: np.ndarray  # it holds more than white space
  before: np.ndarray  # it begins a new line before anything visible
  after: np.ndarray  # it begins a new line after something visible


def lines(texts: list[str]) -> Lines:
  """From the text of every token; "" for special ones."""
  visible = [bool(text.strip()) for text in texts]
  before = ["\n" in text[: len(text) - len(text.lstrip())] for text in texts]
  after = [bool(text.strip()) and "\n" in text[len(text.rstrip()) :] for text in texts]
  return Lines(np.asarray(visible), np.asarray(before), np.asarray(after))


def ends(lines: Lines, tokens: Array, mask: Array) -> Array:
  """1 on the last visible token of each line of the response, float32[B, T]; `mask` is 1 on the response.

  What tokens outside the mask hold, a tool's turn or the next segment, begins a new line.
  """
  visible, before, after = (jnp.asarray(table)[tokens] for table in lines)  # bool[B, T]
  inside = mask > 0
  ends_line = ~inside | before
  # Of each token: the next one that is visible, or ends the line.
  T = tokens.shape[1]
  decisive = jnp.where(ends_line | visible, jnp.arange(T)[None], T)
  next_decisive = jax.lax.cummin(decisive[:, ::-1], axis=1)[:, ::-1]
  following = jnp.pad(next_decisive[:, 1:], ((0, 0), (0, 1)), constant_values=T)
  ended = jnp.take_along_axis(
    jnp.pad(ends_line, ((0, 0), (0, 1)), constant_values=True), following, axis=1
  )
  return (inside & visible & (after | ended)).astype(jnp.float32)
