"""Token log-probabilities and entropies from hidden states, without an array of logits [B, T, V].

The only place that shifts: the hidden state at t−1 predicts token t, and a segment's first token,
which nothing predicts, has log-probability 0. The first token of a branch (`types.Sequences.branches`) is
predicted by the last token that all branches see. Where `asked` int32[B, R] names columns, no logits are computed for
others, and everything said of them is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import sharding

Array = jax.Array

# Tokens whose logits are alive at once. Over a vocabulary of 128256 a GPU learned from 16384 tokens in 71 ms by 512, in
# 46.5 by 4096 and in 44.9 by 8192 (one NVIDIA H200, hidden size 2048, bfloat16).
CHUNK = 512
CHUNK_ON_ACCELERATORS = 4096
# A CPU has memory to spare, and what fits in one chunk is not computed again: 256 MB. A step of SFT on SmolLM2-135M took 1.37 s
# with its 1,016 tokens in one and 1.52 s by 512, for 25 MB more (two cores of an AMD EPYC, bfloat16).
LOGITS_ON_CPU = 1 << 26
LEAN_CHUNK = 128  # where memory counts more than time; a GRPO iteration of SmolLM2-135M takes 2.6 GB so, and 3.1 with 256 MB


def token_stats(
  hidden: Array,
  tokens: Array,
  segments: Array,
  unembed: Callable[[Array], Array],
  temperature: Array | float = 1.0,
  *,
  branches: Array | None = None,
  asked: Array | None = None,
  chunk: int = CHUNK,
) -> tuple[Array, Array, Array]:
  """log π(tokens[:, t]), and of the distribution it was drawn from the entropy and log Σ_v p(v)², float32[B, T] each.

  `hidden` is float[B, T, D] and `unembed` maps [..., D] to float32[..., V]. Logits are divided by
  `temperature` before the softmax, so that the sampler and the learner speak of one distribution.
  """

  def stats(hidden, tokens):
    logits = unembed(hidden).astype(jnp.float32) / temperature
    logp = _log_softmax(logits)
    p = jnp.exp(logp)
    collision = jax.lax.stop_gradient(jnp.log(_expectation(p, p)))
    return _chosen(logits, tokens), -_expectation(p, logp), collision

  where = _predictions(segments, branches, asked)
  per_prediction = _over_chunks(stats, chunk, where.before(hidden), where.of(tokens))
  return tuple(where.put(x) for x in per_prediction)


def compare_stats(
  hidden_p: Array,
  hidden_q: Array,
  tokens: Array,
  segments: Array,
  unembed_p: Callable[[Array], Array],
  unembed_q: Callable[[Array], Array],
  temperature: Array | float = 1.0,
  *,
  branches: Array | None = None,
  asked: Array | None = None,
  chunk: int = CHUNK,
) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
  """`token_stats` of p and of q, and KL(p ‖ q) = Σ_v p(v) (log p(v) − log q(v)) at every token.

  All float32[B, T], from one pass over each one's logits.
  """

  def stats(hidden_p, hidden_q, tokens):
    logits_p = unembed_p(hidden_p).astype(jnp.float32) / temperature
    logits_q = unembed_q(hidden_q).astype(jnp.float32) / temperature
    logp, logq = _log_softmax(logits_p), _log_softmax(logits_q)
    p, q = jnp.exp(logp), jnp.exp(logq)
    of_p = _chosen(logits_p, tokens), -_expectation(p, logp)
    of_q = _chosen(logits_q, tokens), -_expectation(q, logq)
    return of_p, of_q, _expectation(p, logp - logq)

  where = _predictions(segments, branches, asked)
  states = where.before(hidden_p), where.before(hidden_q)
  per_prediction = _over_chunks(stats, chunk, *states, where.of(tokens))
  return jax.tree.map(where.put, per_prediction)


@jax.custom_vjp
def _chosen(logits: Array, tokens: Array) -> Array:
  """log p(token) of logits[..., V]; its derivative reads them once more and writes one array like them."""
  return _chosen_forward(logits, tokens)[0]


def _chosen_forward(logits, tokens):
  total = normalizer(logits)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - total, (logits, tokens, total)


def _chosen_backward(residuals, g):
  logits, tokens, total = residuals
  words = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  chosen = (words == tokens[..., None]).astype(jnp.float32)
  return g[..., None] * (chosen - jnp.exp(logits - total[..., None])), None


_chosen.defvjp(_chosen_forward, _chosen_backward)


def _log_softmax(logits: Array) -> Array:
  """log p of logits[..., V], in slices."""
  return _sliced(logits) - normalizer(logits)[..., None, None]


def normalizer(logits: Array) -> Array:
  """log Σ_v exp(logits[..., v]), of slices first."""
  slices = _sliced(logits)
  if slices.shape[-2] == 1:  # as they are, for a CPU's compiler copies what gets an axis of one
    return jax.nn.logsumexp(logits, axis=-1)
  return jax.nn.logsumexp(jax.nn.logsumexp(slices, axis=-1), axis=-1)


def _expectation(p: Array, x: Array) -> Array:
  """Σ_v p(v) x(v) over arrays [..., slices, V / slices].

  As two products: a CPU's compiler (jax 0.10.2) takes 40 ms for `jnp.sum(p * x)` of 1,024 rows of 4,096 and 1.5 ms for their
  product, and would make one slow product of both axes.
  """
  exact = jax.lax.Precision.HIGHEST
  of_slices = jnp.einsum("...v,...v->...", p, x, precision=exact)
  return jnp.dot(of_slices, jnp.ones(of_slices.shape[-1]), precision=exact)


SLICES = range(4096, 255, -1)  # sizes of a part of a vocabulary, the best first


def _sliced(x: Array) -> Array:
  """x[..., V] as [..., slices, V / slices]: on a CPU, where a part divides V, and one slice elsewhere.

  A CPU's compiler (jax 0.10.2) sums exponentials of 1,024 rows of 49,152 in 94 ms, and those of 12 · 1,024 rows of 4,096 in 9.
  """
  V = x.shape[-1]
  sizes = SLICES if sharding.platform() == "cpu" else ()
  size = next((size for size in sizes if V % size == 0), V)
  return x.reshape(*x.shape[:-1], V // size, size)


def over_vocabulary(
  function: Callable,
  hidden: Sequence[Array],
  tokens: Array,
  segments: Array,
  views: Sequence[Callable],
  *,
  chunk: int = CHUNK,
):
  """`function` of what several models say of every token of the vocabulary, a slice of time after the other.

  `views[i]` maps `hidden[i]`, float[B, w, D] of a slice, to anything, such as logits [B, w, V]. `function` takes the tuple of
  the views and the tokens int32[B, w] that were chosen there, and returns a tree of [B, w]; what comes back is that tree of
  [B, T], where index t speaks of the choice of token t, and 0 where nothing chose it.
  """

  def of_slice(tokens, *hidden):
    return function(tuple(view(h) for view, h in zip(views, hidden, strict=True)), tokens)

  where = _predictions(segments, None, None)
  per_prediction = _over_chunks(of_slice, chunk, where.of(tokens), *map(where.before, hidden))
  return jax.tree.map(where.put, per_prediction)


def predicted(segments: Array) -> Array:
  """Which tokens have a predecessor in their own segment, bool[B, T]."""
  inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  return jnp.pad(inside, ((0, 0), (1, 0)))


def predecessors(segments: Array, branches: Array) -> Array:
  """The column that predicts each token, int32[B, T]; −1 where nothing does."""
  columns = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
  common = (segments > 0) & (branches == 0)
  fork = jax.lax.cummax(jnp.where(common, columns, -1), axis=1)
  same = predicted(segments) & predicted(jnp.where(segments > 0, branches + 1, 0))
  before = jnp.where(same, columns - 1, jnp.where(branches > 0, fork, -1))
  theirs = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
  return jnp.where((segments > 0) & (before >= 0) & (theirs == segments), before, -1)


def before_each(x: Array, segments: Array, branches: Array | None) -> Array:
  """What x[B, T] says at the token before each one, 0 where none is."""
  if branches is None:
    shifted = jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(predicted(segments), shifted, 0.0)
  before = predecessors(segments, branches)
  return jnp.where(before >= 0, jnp.take_along_axis(x, jnp.maximum(before, 0), axis=1), 0.0)


class _Predictions(NamedTuple):
  """Which tokens are predicted, R of them a row."""

  before: Callable  # hidden[B, T, D] -> [B, R, D], what predicts them
  of: Callable  # tokens[B, T] -> [B, R]
  put: Callable  # [B, R] -> [B, T], 0 where nothing was predicted


def _predictions(segments: Array, branches: Array | None, asked: Array | None) -> _Predictions:
  if branches is None and asked is None:
    shifted = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
    put = lambda x: jnp.where(predicted(segments), shifted(x), 0.0)
    return _Predictions(lambda x: x[:, :-1], lambda x: x[:, 1:], put)
  T = segments.shape[1]
  if asked is None:
    asked = jnp.broadcast_to(jnp.arange(T)[None], segments.shape)
  if branches is None:
    branches = jnp.zeros_like(segments)
  columns = jnp.maximum(asked, 0)
  before = jnp.take_along_axis(predecessors(segments, branches), columns, axis=1)
  known = (before >= 0) & (asked >= 0)
  nowhere = jnp.where(asked >= 0, asked, T)  # beyond the row, and dropped
  place = jax.vmap(lambda x, at: jnp.zeros(T, x.dtype).at[at].set(x, mode="drop"))
  return _Predictions(
    before=lambda x: jnp.take_along_axis(x, jnp.maximum(before, 0)[..., None], axis=1),
    of=lambda x: jnp.take_along_axis(x, columns, axis=1),
    put=lambda x: place(jnp.where(known, x, 0.0), nowhere),
  )


def _over_chunks(function, chunk: int, *arrays):
  """Maps `function` over slices of time; where there are several, each one's logits are computed again in the backward pass."""
  B, T = arrays[0].shape[:2]
  width = max(1, min(T, chunk // B))
  count = -(-T // width)
  if count == 1 and sharding.platform() == "cpu":  # nothing is computed again (`LOGITS_ON_CPU`)
    return function(*arrays)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, count * width - T)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, count, width, *x.shape[2:]), 1, 0)

  slices = jax.lax.map(lambda xs: jax.checkpoint(function)(*xs), tuple(split(x) for x in arrays))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T], slices)
