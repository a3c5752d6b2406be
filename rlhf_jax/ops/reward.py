"""Likelihoods of what people said of answers, given the answers' scores; per answer, pair or ranking, unreduced."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import stats

Array = jax.Array

MOST_TIED = 10  # answers of a ranking whose subsets are enumerated

log_sigmoid = jax.nn.log_sigmoid


def logistic_loss(scores: Array, labels: Array) -> Array:
  """−y log σ(z) − (1 − y) log σ(−z), of the shape of both; y is in [0, 1]."""
  return -labels * log_sigmoid(scores) - (1.0 - labels) * log_sigmoid(-scores)


def squared_loss(predicted: Array, labels: Array) -> Array:
  """(ŷ − y)², of the shape of both."""
  return jnp.square(predicted - labels)


def huber_loss(predicted: Array, labels: Array, delta) -> Array:
  """½ e² up to |e| = δ, and its tangent δ (|e| − ½ δ) beyond (Huber 1964); e = ŷ − y."""
  size = jnp.abs(predicted - labels)
  within = jnp.minimum(size, delta)
  return 0.5 * jnp.square(within) + delta * (size - within)


def rao_kupper_loss(difference: Array, preference: Array, tied: Array, threshold: Array) -> Array:
  """−log P of what was said, float32[B] (Rao & Kupper, JASA 62, 1967).

    P(w ≻ l) = σ(d − η)    P(l ≻ w) = σ(−d − η)    P(tie) = (e^2η − 1) σ(d − η) σ(−d − η)

  d = r_w − r_l; below the threshold η = log θ > 0 nobody notices a difference. A pair is a tie where
  `tied` bool[B] says so; else its preference weighs the two ways to decide it.
  """
  first, second = log_sigmoid(difference - threshold), log_sigmoid(-difference - threshold)
  tie = jnp.log(jnp.expm1(2.0 * threshold)) + first + second
  return -jnp.where(tied, tie, preference * first + (1.0 - preference) * second)


def davidson_loss(difference: Array, preference: Array, tied: Array, log_nu: Array) -> Array:
  """−log P of what was said, float32[B] (Davidson, JASA 65, 1970).

    P(w ≻ l) : P(l ≻ w) : P(tie) = π_w : π_l : ν √(π_w π_l),  π = e^r

  `difference` is r_w − r_l. A pair is a tie where `tied` bool[B] says so; else its preference weighs
  the two ways to decide it.
  """
  half = 0.5 * difference
  logits = jnp.stack([half, -half, jnp.broadcast_to(log_nu, half.shape)])
  first, second, tie = jax.nn.log_softmax(logits, axis=0)
  return -jnp.where(tied, tie, preference * first + (1.0 - preference) * second)


def plackett_luce_loss(scores: Array, ranks: Array, unranked: Array) -> Array:
  """−log P of each ranking, float32[B] (Plackett 1975; Luce 1959).

    log P = Σ_i (s_i − log Σ_{j not yet placed} e^{s_j})

  `scores` float32[B, K]; `ranks` int[B, K], 1 the best, and 0 for answers that have no term of their
  own: of these, `unranked` bool[B, K] are known to be worse than all ranked ones and stand in every
  sum, and the others are left out.

  Equal ranks are a tie: the mean of log P over all orders of the tied, which for two answers is
  Bradley-Terry with the soft label ½. In a random order, the tied that are still to be placed are a
  random subset, so the mean is taken over subsets, 2^K of them.
  """
  K = scores.shape[1]
  subsets = np.array(list(itertools.product((False, True), repeat=K))[1:])  # [S, K]
  sizes = subsets.sum(axis=1)
  in_subset = lambda x, reduce, empty: reduce(jnp.where(subsets[None], x[:, None], empty), axis=2)
  lowest, highest = in_subset(ranks, jnp.min, K + 1), in_subset(ranks, jnp.max, 0)  # [B, S]
  of_one_tie = (lowest == highest) & (lowest > 0)
  tied = jnp.sum(ranks[:, None] == lowest[:, :, None], axis=2)  # how many share that rank
  choose = np.array([[math.comb(n, k) for k in range(K + 1)] for n in range(K + 1)], np.float32)
  weights = jnp.where(
    of_one_tie, 1.0 / jnp.maximum(jnp.asarray(choose)[tied, sizes[None]], 1.0), 0.0
  )

  worse = (ranks[:, None] > lowest[:, :, None]) | unranked[:, None]
  unplaced = subsets[None] | worse  # [B, S, K]
  left = jnp.broadcast_to(scores[:, None], unplaced.shape)
  normalizers = jnp.sum(weights * jax.nn.logsumexp(left, axis=2, where=unplaced), axis=1)
  return normalizers - jnp.sum(jnp.where(ranks > 0, scores, 0.0), axis=1)


def breslow_loss(scores: Array, ranks: Array, unranked: Array) -> Array:
  """`plackett_luce_loss` but for ties, float32[B]: the tied all stay in each other's sums (Breslow 1974).

  The same where nothing is tied. It needs K² numbers a ranking instead of 2^K, and counts the tie of
  two twice what `plackett_luce_loss` does.
  """
  no_better = (ranks[:, None] >= ranks[:, :, None]) & (ranks[:, None] > 0)  # [B, i, j]
  itself = np.eye(ranks.shape[1], dtype=bool)[None]
  unplaced = no_better | unranked[:, None] | itself
  left = jnp.broadcast_to(scores[:, None], unplaced.shape)
  terms = jax.nn.logsumexp(left, axis=2, where=unplaced) - scores
  return jnp.sum(jnp.where(ranks > 0, terms, 0.0), axis=1)


def top_one_loss(scores: Array, ranks: Array, unranked: Array) -> Array:
  """−log softmax of the best answer, float32[B] (arXiv:1909.08593, eq. 1); the mean of several best."""
  K = scores.shape[1]
  best_rank = jnp.min(jnp.where(ranks > 0, ranks, K + 1), axis=1, keepdims=True)
  best = (ranks == best_rank) & (ranks > 0)
  count = jnp.sum(best, axis=1)
  normalizer = jax.nn.logsumexp(scores, axis=1, where=(ranks > 0) | unranked)
  mean = jnp.sum(jnp.where(best, scores, 0.0), axis=1) / jnp.maximum(count, 1)
  return jnp.where(count > 0, normalizer - mean, 0.0)


def cutpoints(link: dict) -> Array:
  """The ordered cutpoints float32[K − 1] of K classes, from a first one and the logarithms of the gaps, if any."""
  gaps = jnp.exp(link["log_gaps"]) if "log_gaps" in link else jnp.zeros(0)
  return link["first"] + jnp.pad(jnp.cumsum(gaps), (1, 0))


def cumulative_link_loss(scores: Array, classes: Array, cutpoints: Array) -> Array:
  """−log P(Y = y), float32[B], of ordered classes (McCullagh, JRSS B 42, 1980, eq. 2.3: proportional odds).

    P(Y ≤ k) = σ(c_k − r)

  `classes` int[B] runs from 0, the worst, to K − 1; `cutpoints` float32[K − 1] rise.
  """
  K = cutpoints.shape[0] + 1
  below = cutpoints[jnp.clip(classes - 1, 0, K - 2)] - scores
  above = cutpoints[jnp.clip(classes, 0, K - 2)] - scores
  lowest, highest = classes <= 0, classes >= K - 1
  # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)), which keeps its precision in the tails.
  gap = jnp.where(lowest | highest, 1.0, above - below)
  inner = log_sigmoid(above) + log_sigmoid(-below) + jnp.log(-jnp.expm1(-gap))
  logp = jnp.where(lowest, log_sigmoid(above), jnp.where(highest, log_sigmoid(-below), inner))
  return -logp


def _last(scores: Array, mask: Array) -> Array:
  columns = jnp.arange(scores.shape[1])[None]
  last = jnp.max(jnp.where(mask > 0, columns, 0), axis=1, keepdims=True)
  return jnp.where(jnp.sum(mask, axis=1) > 0, jnp.take_along_axis(scores, last, axis=1)[:, 0], 0.0)


def _lowest(scores: Array, mask: Array) -> Array:
  lowest = jnp.min(jnp.where(mask > 0, scores, jnp.inf), axis=1)
  return jnp.where(jnp.sum(mask, axis=1) > 0, lowest, 0.0)


# Each maps token scores float32[B, T] and a mask to float32[B]; 0 where the mask is empty.
AGGREGATES = {
  "mean": lambda z, mask: stats.row_sum(z, mask) / jnp.maximum(jnp.sum(mask, axis=1), 1.0),
  "min": _lowest,
  "product": lambda z, mask: stats.row_sum(log_sigmoid(z), mask),
  "last": _last,
}


# Each maps the scores of M members float32[M, B] and λ to float32[B].
COMBINATIONS = {
  "mean": lambda scores, coef: jnp.mean(scores, axis=0),
  "min": lambda scores, coef: jnp.min(scores, axis=0),
  "penalized": lambda scores, coef: jnp.mean(scores, axis=0) - coef * jnp.std(scores, axis=0),
  "penalized_variance": lambda scores, coef: (
    jnp.mean(scores, axis=0) - coef * jnp.var(scores, axis=0)
  ),
}


def correlation(x: Array, y: Array) -> Array:
  """Pearson's correlation over the batch, float32[]; 0 where either does not vary."""
  return cosine(x - jnp.mean(x), y - jnp.mean(y))


def cosine(x: Array, y: Array) -> Array:
  """Of the angle between two vectors, float32[]; 0 where either is 0."""
  sizes = jnp.sum(jnp.square(x)) * jnp.sum(jnp.square(y))
  return jnp.where(sizes > 0, jnp.sum(x * y) * jax.lax.rsqrt(jnp.where(sizes > 0, sizes, 1.0)), 0.0)
