"""The seam: data that flows between the parts, and the tuples of pure functions that stand for a model or an algorithm.

Shape letters: `B` batch, `T` time, `V` vocabulary, `D` embedding, `S` cache length, `N` prompts.

Everything is indexed by the token it belongs to: `logps[:, t]` is the log-probability *of* `tokens[:, t]`,
`values[:, t]` is the value *before* choosing it, `rewards[:, t]` is what choosing it earned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.ops.stats import Mean as Mean  # part of the seam, and of the maths

Array = jax.Array
Params = Any  # nested dict of arrays


@struct.dataclass
class Sequences:
  """Rows holding prompt and response; several rows' worth when packed."""

  tokens: Array  # int32[B, T]
  positions: Array  # int32[B, T], restarting in each segment
  segments: Array  # int32[B, T], 0 = padding
  response_mask: Array  # float32[B, T], 1 on tokens the policy chose, EOS included
  # int32[B, T], where a segment goes on in several ways: 0 is seen by all of it, and stands first; k > 0 is a
  # continuation that is seen by itself alone. None is 0 everywhere.
  branches: Array | None = None
  # int32[B, R], the columns whose log-probabilities are wanted, −1 where there are fewer; the others are 0. None wants
  # all. A rollout's are the last R columns of every row.
  asked: Array | None = None
  packing: Packing | None = None  # the same rows in fewer, which is what a model then sees

  @classmethod
  def from_mask(cls, tokens: Array, mask: Array, response_mask: Array) -> Sequences:
    """One segment a row: `mask` is 1 on real tokens, on whichever side the padding lies."""
    mask = (jnp.asarray(mask) > 0).astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0).astype(jnp.int32)
    return cls(
      tokens=jnp.where(mask > 0, jnp.asarray(tokens), 0).astype(jnp.int32),
      positions=positions,
      segments=mask,
      response_mask=jnp.asarray(response_mask, jnp.float32) * mask,
    )

  def in_groups(self, group: int) -> Shared:
    """The answers to each prompt in one row, `group` adjacent rows of a rollout, whose prompts end where R columns remain."""
    B, T = self.tokens.shape
    N, R = B // group, self.asked.shape[1]
    P, W = T - R, T - R + group * R

    def joined(x):
      x = x.reshape(N, group, T)
      return jnp.concatenate([x[:, 0, :P], x[:, :, P:].reshape(N, group * R)], axis=1)

    spread = lambda x: jnp.broadcast_to(x[None], (N, *x.shape))
    own = jnp.arange(P, W).reshape(group, R)
    at = jnp.concatenate([jnp.broadcast_to(jnp.arange(P)[None], (group, P)), own], axis=1)
    rows = Sequences(
      tokens=joined(self.tokens),
      positions=joined(self.positions),
      segments=joined(self.segments),
      response_mask=joined(self.response_mask),
      branches=spread(jnp.pad(jnp.repeat(jnp.arange(1, group + 1), R), (P, 0))),
      asked=spread(jnp.arange(P, W)),
    )
    return Shared(rows, at=spread(at), fork=(P, group))

  def packed(self) -> tuple[Sequences, Array]:
    """The rows of `packing`, each of the rows here a segment of its own, and where each token stands there, int32[B, T], −1 is padding.

    All of a row's log-probabilities are then said, whatever was `asked`.
    """
    B, T = self.tokens.shape
    live = self.segments > 0
    at = jnp.where(live, self.packing.place[:, None] + jnp.cumsum(live, axis=1) - 1, -1)
    size = self.packing.rows * T
    where = jnp.where(live, at, size)  # beyond all rows, and dropped
    put = lambda x: jnp.zeros(size, x.dtype).at[where].set(x, mode="drop").reshape(-1, T)
    first = jnp.max(self.segments) * jnp.arange(B)[:, None]
    rows = Sequences(
      tokens=put(self.tokens),
      positions=put(self.positions),
      segments=put(first + self.segments),
      response_mask=put(self.response_mask),
      branches=None if self.branches is None else put(self.branches),
    )
    return rows, at


@struct.dataclass
class Packing:
  """Where the rows of `Sequences` go in fewer rows of the same width, several in one."""

  place: Array  # int32[B], where each row begins, counted through all rows of the packing
  rows: int = struct.field(pytree_node=False)


@struct.dataclass
class Shared:
  """Answers to one prompt in one row, where what they have in common stands once and each goes on as a branch.

  A `Policy` and a `Scorer` take it in place of G `Sequences`, and say [N, G, ...] of the answers where they say [B, ...] of rows.
  """

  rows: Sequences  # [N, W]
  at: Array  # int32[N, G, T], where token t of answer g stands in its row; −1 is padding
  # (P, G) where every row is P columns of the prompt and then G times as many of an answer: the model then
  # looks from each answer at the prompt and itself alone, where it would else mask the other answers.
  fork: tuple[int, int] | None = struct.field(pytree_node=False, default=None)

  @property
  def alone(self) -> Sequences:
    """Each answer in a row of its own, [N · G, T]."""
    flat = lambda x: self.apart(x).reshape(-1, self.at.shape[2])
    rows = self.rows
    return Sequences(*map(flat, (rows.tokens, rows.positions, rows.segments, rows.response_mask)))

  def apart(self, x: Array) -> Array:
    """What belongs to the tokens of each answer, [N, G, T, ...], of x[N, W, ...]; 0 is padding."""
    N, G, T = self.at.shape
    trailing = x.shape[2:]
    at = self.at.reshape(N, G * T, *(1,) * len(trailing))
    found = jnp.take_along_axis(x, jnp.maximum(at, 0), axis=1)
    return jnp.where(at >= 0, found, 0).reshape(N, G, T, *trailing)


@struct.dataclass
class PreferenceBatch:
  """Pairs of answers to one prompt, the first preferred unless `preference` says how far."""

  chosen: Sequences
  rejected: Sequences
  preference: Array  # float32[B], the probability that `chosen` is the better one; 0.5 is a tie
  margin: Array  # float32[B], by how much, in the units of the reward; 0 where nobody said
  ref_chosen_logps: Array | None = None  # float32[B, T], from a cache or by annotate()
  ref_rejected_logps: Array | None = None  # float32[B, T]
  together: Shared | None = None  # both answers of a pair in one row, chosen first

  @property
  def both(self) -> Sequences:
    """All chosen, then all rejected; `ops.preference.of_both` computes something of them."""
    return jax.tree.map(lambda w, l: jnp.concatenate([w, l]), self.chosen, self.rejected)


@struct.dataclass
class RankingBatch:
  """K answers to each prompt and the places they were given; every leaf of `answers` is [B, K, T]."""

  answers: Sequences
  ranks: Array  # int32[B, K]: 1 is best, equal ones tie, 0 was not ranked, −1 only fills the row
  ref_logps: Array | None = None  # float32[B, K, T]


@struct.dataclass
class LabelledBatch:
  """Single answers with labels: ratings, classes and marks an answer, or a label a token."""

  answers: Sequences
  labels: Array  # float32[B, A], or float32[B, T] for labels of tokens; NaN where nobody gave one
  ref_logps: Array | None = None  # float32[B, T]
  mismatched: Sequences | None = None  # each prompt with another prompt's answer, for KTO
  ref_mismatched_logps: Array | None = None  # float32[B, T]


@struct.dataclass
class Rollout:
  """What a policy wrote and how it was scored; the rest is filled by annotate() where an algorithm wants it."""

  sequences: Sequences
  logps: Array  # float32[B, T], the sampler's own
  rewards: Array  # float32[B, T], the score on each response's last token
  truncated: Array  # bool[B], True where the length limit cut the response
  ref_logps: Array | None = None  # float32[B, T]
  values: Array | None = None  # float32[B, T]
  bootstrap: Array | None = (
    None  # float32[B], V after the last token where cut and so configured, else 0
  )
  baseline: Array | None = None  # float32[B], the score of the greedy answer to the same prompt
  greedy: Sequences | None = None  # that answer
  costs: Array | None = None  # float32[B, T], as `rewards`: what a cost model says of each response


@struct.dataclass
class TrainState:
  """Everything that changes while training, and so everything a checkpoint holds."""

  step: Array  # int32[]
  params: Params
  opt_state: Any
  key: Array
  extra: dict  # KL coefficient, running moments, target networks, multipliers


class TokenStats(NamedTuple):
  """What one pass of the trunk says of every token."""

  logps: Array  # float32[B, T], 0 at the first token of each segment
  entropy: Array  # float32[B, T], of the distribution the token was drawn from
  values: Array | None  # float32[B, T], None without a value head
  collision: Array | None = None  # float32[B, T], log Σ_v p(v)², without gradient


class LanguageModel(NamedTuple):
  """A decoder as pure functions. `params` is a plain nested dict, one subtree per layer."""

  config: Any  # the family's frozen config: vocab_size, hidden_size, max_positions, ...
  init: Callable  # key -> params
  hidden: Callable  # (params, tokens, positions, segments, branches=None, fork=None) -> float32[B, T, D], after the final norm
  unembed: Callable  # (params, hidden[..., D]) -> float32[..., V] logits; called on chunks
  q_values: Callable  # (params["q_heads"], hidden[..., D]) -> float32[H, ..., V]; called on chunks
  init_cache: Callable  # (batch, length) -> cache
  prefill: Callable  # (params, tokens, positions, segments, cache) -> (hidden[B, T, D], cache)
  decode_step: Callable  # (params, token int32[B], cache) -> (hidden[B, D], cache)
  # (params, tokens[k, T], positions, segments, cache, rows int32[k]) -> (hidden[k, T, D], cache); these rows forget the rest
  prefill_rows: Callable


class Words(NamedTuple):
  """What a policy's tree says of every token of the vocabulary, at w places of each row."""

  logits: Array  # float32[B, w, V] of the language model, over the temperature and not moved by Q
  q: Array | None  # float32[H, B, w, V], None without Q heads
  values: Array | None  # float32[B, w], None without a value head


class ValueHeads(NamedTuple):
  """Which heads an algorithm learns values of tokens with; its module says so as `HEADS`."""

  q: int  # Q heads
  # Whether they are part of the policy's model and move what it writes, by `config.scale`; else they stand
  # beside it, as a critic does.
  acts: bool
  v: bool = False  # a value head too


class Policy(NamedTuple):
  """A language model as the algorithms see it; `params` is {"model": ..., "value_head": ..., "critic": ...}.

  `frozen["base"]` holds what the adapters in `params["model"]` are attached to ({} when the whole model trains), and
  `frozen["reference"]` is a `params` of the same form: `evaluate(frozen["reference"], frozen, ...)` is the reference policy.
  """

  evaluate: Callable  # (params, frozen, sequences, temperature) -> TokenStats; one trunk pass
  # (params, other, frozen, sequences, temperature) -> (TokenStats, TokenStats of other, float32[B, T] KL(params || other)
  # over the whole vocabulary); one trunk pass each
  compare: Callable
  # (function, trees, frozen, sequences, temperature) -> `function(Words of each tree, tokens)`, a tree of float32[B, T],
  # without arrays [B, T, V]; Q heads are those of the tree's model, or tree["q_heads"]
  over_vocabulary: Callable | None = None


class Scorer(NamedTuple):
  """A reward model: `params` is {"model": ..., "reward_head": ...} over `frozen["base"]`.

  `params` may hold more: "normalization", the gain and bias that `score` is given afterwards; "link",
  numbers of its likelihood that no score needs; "base" of its own; "members" of an ensemble.
  """

  score: Callable  # (params, frozen, sequences) -> float32[B], the reward
  # (params, frozen, sequences) -> float32[B, A], what the head says at each row's last token
  outputs: Callable | None = None
  # (params, frozen, sequences) -> float32[B, T], what a head of one output says at every token
  tokens: Callable | None = None


class Reading(NamedTuple):
  """How a reward is read from a reward model's head."""

  weights: tuple[float, ...] | None = None  # of several outputs; None is their mean
  # None reads each row's last token. Else the token scores z_t of the response become one: "mean", "min" and "last"
  # of z_t, or "product", Σ log σ(z_t), the log-probability that every one of them is right.
  aggregate: str | None = None
  steps: bool = False  # only tokens that end a step count: the last visible one of each line


class Beginning(NamedTuple):
  """What a reward model starts from, where that depends on its data."""

  outputs: int | None = None  # of the head; None is one number
  bias: Any = 0.0  # of the head, float32[outputs]
  link: Any = None  # params["link"], None where the likelihood has no numbers of its own


def no_extra(params, config) -> dict:
  return {}


def as_it_is(batch, config):
  return batch


def no_annotation(params, frozen, batch, config, extra):
  return batch, {}


def keep_extra(extra, params, metrics, config) -> dict:
  return extra


class Algorithm(NamedTuple):
  """Pure functions, in the spirit of an optax transformation. Metrics and terms are dicts of `Mean`.

  `annotate` runs what does not learn from this batch; `loss` is the only thing differentiated, and is
  the sum of its terms' values. `per_update` computes what is a function of all rows of one optimizer update, before
  these are split into micro-batches.
  """

  init_extra: Callable  # (params, config) -> extra
  annotate: Callable  # (params, frozen, batch, config, extra) -> (batch, metrics)
  loss: Callable  # (params, frozen, batch, config, extra) -> (terms, metrics)
  update_extra: Callable  # (extra, params, metrics, config) -> extra; metrics as float32[] each
  per_update: Callable = as_it_is  # (batch, config) -> batch
  # (params, frozen, batch, config, extra) -> (*loss()'s, *annotate()'s) of a batch whose first update is of all its rows:
  # what annotate(), per_update() and loss() come to, from one pass. None where that saves nothing.
  at_once: Callable | None = None
