"""Policies and reward models made from a language model and heads: what the algorithms call.

The trees are those of `types.Policy` and `types.Scorer`: `params["model"]` is an adapter over
`frozen["base"]`, or a whole model where that is {}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.models import heads, lora, q_heads
from rlhf_jax.ops import logprobs, reward, steps
from rlhf_jax.types import (
  LanguageModel,
  Params,
  Policy,
  Reading,
  Scorer,
  Sequences,
  Shared,
  TokenStats,
  Words,
)

Array = jax.Array

CRITICS = ("none", "shared", "separate")
AT_THE_END = Reading()


def make_policy(
  model: LanguageModel,
  *,
  lora_scale: float = 1.0,
  critic: str = "none",
  chunk: int | None = None,
) -> Policy:
  """`model` as a policy.

  `critic` says where values come from: "shared" is `params["value_head"]` on the policy's own
  trunk, "separate" is `params["critic"]`, a trunk and head of its own. Parameters without the head,
  such as the reference's, get values None. `chunk` is how many tokens' logits are alive at once on each
  device, by default what suits it.
  """
  if critic not in CRITICS:
    raise ValueError(f"critic={critic!r} is not one of {', '.join(CRITICS)}.")

  def trunk(tree: Params, frozen: Params, seen: _Seen):
    return _trunk(model, lora_scale, tree["model"], frozen.get("base", {}), seen)

  def wanted(rows: Sequences) -> dict:
    return {
      "branches": rows.branches,
      "asked": rows.asked,
      "chunk": _together(chunk, model.config.vocab_size),
    }

  def values(params, frozen, seen: _Seen, hidden) -> Array | None:
    if critic == "shared" and "value_head" in params:
      return _aligned_values(params["value_head"], hidden, seen.rows)
    if critic == "separate" and "critic" in params:
      hidden, _ = trunk(params["critic"], frozen, seen)
      return _aligned_values(params["critic"]["value_head"], hidden, seen.rows)
    return None

  def evaluate(params, frozen, sequences: Sequences | Shared, temperature=1.0) -> TokenStats:
    seen = _seen(sequences)
    rows = seen.rows
    hidden, unembed = trunk(params, frozen, seen)
    logps, entropy, collision = logprobs.token_stats(
      hidden, rows.tokens, rows.segments, unembed, temperature, **wanted(rows)
    )
    return seen.apart(TokenStats(logps, entropy, values(params, frozen, seen, hidden), collision))

  def compare(params, other, frozen, sequences: Sequences | Shared, temperature=1.0):
    seen = _seen(sequences)
    rows = seen.rows
    hidden_p, unembed_p = trunk(params, frozen, seen)
    hidden_q, unembed_q = trunk(other, frozen, seen)
    of_p, of_q, kl = logprobs.compare_stats(
      hidden_p,
      hidden_q,
      rows.tokens,
      rows.segments,
      unembed_p,
      unembed_q,
      temperature,
      **wanted(rows),
    )
    return seen.apart(
      (
        TokenStats(*of_p, values(params, frozen, seen, hidden_p)),
        TokenStats(*of_q, values(other, frozen, seen, hidden_q)),
        kl,
      )
    )

  def view(tree: Params, frozen: Params, temperature):
    """What `logprobs.over_vocabulary` is to see of `tree`, a function of hidden states."""
    weights = lora.attach(frozen.get("base", {}), tree["model"], lora_scale)
    own = tree.get(q_heads.NAME) or weights.get(q_heads.NAME)
    plain = {name: x for name, x in weights.items() if name != q_heads.NAME}

    def words(hidden) -> Words:
      return Words(
        logits=model.unembed(plain, hidden).astype(jnp.float32) / temperature,
        q=model.q_values(own, hidden) if own else None,
        values=heads.apply_head(tree["value_head"], hidden) if "value_head" in tree else None,
      )

    return words

  def over_vocabulary(function, trees, frozen, sequences: Sequences, temperature=1.0):
    seen = _seen(sequences)
    said = logprobs.over_vocabulary(
      function,
      [trunk(tree, frozen, seen)[0] for tree in trees],
      seen.rows.tokens,
      seen.rows.segments,
      [view(tree, frozen, temperature) for tree in trees],
      chunk=_together(chunk, model.config.vocab_size),
    )
    return seen.apart(said)

  return Policy(evaluate, compare, over_vocabulary)


def make_scorer(
  model: LanguageModel,
  *,
  lora_scale: float = 1.0,
  reading: Reading = AT_THE_END,
  lines: steps.Lines | None = None,
  combine: str = "mean",
) -> Scorer:
  """`model` as a reward model: `params["reward_head"]` on its hidden states, read as `reading` says.

  A tree with a "base" of its own stands on that instead of the one shared in `frozen`. `lines` tells where
  steps end, for a reading of steps. `combine` says how the scores of a tree's "members" make one, by
  `params["disagreement_coef"]` where that needs a number.
  """
  if reading.steps and lines is None:
    raise ValueError("a reward read at the end of steps needs `lines`, made from a tokenizer.")

  def hidden_of(params, frozen, seen: _Seen) -> Array:
    base = params.get("base", frozen.get("base", {}))
    return _trunk(model, lora_scale, params["model"], base, seen)[0]

  def outputs(params, frozen, sequences: Sequences | Shared) -> Array:
    seen = _seen(sequences)
    hidden = seen.at_last(hidden_of(params, frozen, seen))
    said = heads.apply_head(params["reward_head"], hidden)
    return said if params["reward_head"]["kernel"].ndim == 2 else said[..., None]

  def tokens(params, frozen, sequences: Sequences | Shared) -> Array:
    seen = _seen(sequences)
    return seen.apart(heads.apply_head(params["reward_head"], hidden_of(params, frozen, seen)))

  def score(params, frozen, sequences: Sequences | Shared) -> Array:
    if reading.aggregate is None:
      said = outputs(params, frozen, sequences)
      weights = jnp.asarray(reading.weights or (1.0 / said.shape[-1],) * said.shape[-1])
      return jnp.sum(said * weights.reshape(*(1,) * (said.ndim - 1), -1), axis=-1)
    seen = _seen(sequences)
    said = tokens(params, frozen, sequences)  # [B, T] or [N, G, T]
    flat = lambda x: x.reshape(-1, x.shape[-1])
    text, chosen = (flat(x) for x in seen.apart((seen.rows.tokens, seen.rows.response_mask)))
    where = steps.ends(lines, text, chosen) if reading.steps else chosen
    return reward.AGGREGATES[reading.aggregate](flat(said), where).reshape(said.shape[:-1])

  def normalized(params, frozen, sequences: Sequences) -> Array:
    return _normalized(params, score(params, frozen, sequences))

  def each(function, params, *args) -> Array:
    """`function` of every member, [M, ...]; what they share, such as the trunk, is computed once."""
    shared = {n: x for n, x in params.items() if n not in ("members", "normalization")}
    return jax.vmap(lambda member: function({**shared, **member}, *args))(params["members"])

  def combined(params, *args) -> Array:
    if "members" not in params:
      return normalized(params, *args)
    scores = each(normalized, params, *args)  # [M, B]
    together = reward.COMBINATIONS[combine](scores, params["disagreement_coef"])
    return _normalized(params, together)

  def mean(function):
    def of_members(params, *args) -> Array:
      alone = "members" not in params
      return function(params, *args) if alone else jnp.mean(each(function, params, *args), axis=0)

    return of_members

  return Scorer(combined, mean(outputs), mean(tokens))


def as_probability(scorer: Scorer) -> Scorer:
  """`scorer` with σ of what its head says as its score: the probability that its likelihood gives.

  Gain and bias are left out, which are there to compare rewards and belong to no likelihood.
  """

  def plain(params: Params) -> Params:
    params = {name: x for name, x in params.items() if name != "normalization"}
    if "members" in params:
      params["members"] = plain(params["members"])
    return params

  def score(params, frozen, sequences: Sequences) -> Array:
    return jax.nn.sigmoid(scorer.score(plain(params), frozen, sequences))

  return scorer._replace(score=score)


def _normalized(params: Params, scores: Array) -> Array:
  gain_and_bias = params.get("normalization")
  if gain_and_bias is None:
    return scores
  return gain_and_bias["gain"] * scores + gain_and_bias["bias"]


class _Seen(NamedTuple):
  """What the trunk sees of sequences, and how what it says goes back to them: [B, ...] of rows, [N, G, ...] of answers that share some."""

  rows: Sequences
  apart: Callable  # a tree of [rows, W, ...] -> of their tokens, [B, T, ...] or [N, G, T, ...]
  at_last: Callable  # [rows, W, D] -> [B, D] or [N, G, D], of the last token of each answer
  fork: tuple[int, int] | None = None


def _seen(sequences: Sequences | Shared) -> _Seen:
  if isinstance(sequences, Sequences):
    segments = sequences.segments
    columns = jnp.arange(segments.shape[1])[None]
    last = jnp.max(jnp.where(segments > 0, columns, 0), axis=1)
    rows, there = _dense(sequences)
    return _Seen(rows, lambda tree: jax.tree.map(there, tree), lambda x: there(x, last))
  N, G, _ = sequences.at.shape
  if not sharding.spreads(N):  # over the devices, as the answers do
    alone = _seen(sequences.alone)
    group = lambda x: x.reshape(N, G, *x.shape[1:])
    return _Seen(
      alone.rows, lambda tree: jax.tree.map(group, tree), lambda x: group(alone.at_last(x))
    )
  last = jnp.max(jnp.where(sequences.apart(sequences.rows.segments) > 0, sequences.at, 0), axis=2)
  rows, there = _dense(sequences.rows)
  apart = lambda x: sequences.apart(there(x))
  return _Seen(
    rows, lambda tree: jax.tree.map(apart, tree), lambda x: there(x, last), sequences.fork
  )


def _dense(rows: Sequences) -> tuple[Sequences, Callable]:
  """The rows that a trunk sees for `rows`, and a function of what it says there, x[M, W, ...], and of columns int32[B, ...] of `rows`.

  It says the same of these columns, [B, ..., ...], or of all, [B, T, ...].
  """

  def of_columns(x, columns):
    at = columns.reshape(len(columns), -1, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, at, axis=1).reshape(*columns.shape, *x.shape[2:])

  if rows.packing is None:
    return rows, lambda x, columns=None: x if columns is None else of_columns(x, columns)
  dense, places = rows.packed()

  def there(x, columns=None):
    at = places if columns is None else of_columns(places, columns)
    found = x.reshape(-1, *x.shape[2:])[jnp.maximum(at, 0)]
    return jnp.where(at.reshape(*at.shape, *(1,) * (x.ndim - 2)) >= 0, found, 0)

  return dense, there


def _together(chunk: int | None, vocabulary: int) -> int:
  """Tokens whose logits are alive at once, of all devices: with fewer, each would multiply thin slices and fetch the matrix anew for each."""
  if chunk is None:
    # A TPU has little memory for its speed, and 1,024 tokens keep it busy: with 4,096, Llama's logits are 2 GiB, some three times over.
    sizes = {"cpu": max(logprobs.CHUNK, logprobs.LOGITS_ON_CPU // vocabulary), "tpu": 1024}
    chunk = sizes.get(sharding.platform(), logprobs.CHUNK_ON_ACCELERATORS)
  return chunk * sharding.shards_in_scope()


def _trunk(model, lora_scale, adapter, base, seen: _Seen):
  """hidden[B, T, D], and the unembedding that goes with it."""
  weights, rows = lora.attach(base, adapter, lora_scale), seen.rows
  hidden = model.hidden(
    weights, rows.tokens, rows.positions, rows.segments, rows.branches, seen.fork
  )
  return hidden, lambda hidden: model.unembed(weights, hidden)


def _aligned_values(head: Params, hidden: Array, rows: Sequences) -> Array:
  """float32[B, T]: the value before token t is read at t − 1, and is 0 where a segment begins."""
  return logprobs.before_each(heads.apply_head(head, hidden), rows.segments, rows.branches)
