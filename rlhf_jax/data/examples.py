"""Tokenized examples and what people said of them, and how they become batches: packed, padded, in a seekable order.

A form of feedback is a name, a record and a way to collate it. The forms:

  texts     `Example`   a demonstration
  pairs     `Pair`      two answers, the first preferred: how far, by what margin, or a tie
  rankings  `Ranking`   k answers in order, ties and unranked ones allowed
  ratings   `Labelled`  a number on each of one or several scales
  classes   `Labelled`  one of K ordered classes, 0 the worst
  marks     `Labelled`  right (1) or wrong (0)
  tokens    `TokenLabelled`  a number for some of its tokens: marked spans, reasoning steps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.types import LabelledBatch, Packing, PreferenceBatch, RankingBatch, Sequences, Shared

FORMS = ("texts", "pairs", "rankings", "ratings", "classes", "marks", "tokens")


class Example(NamedTuple):
  """A prompt and its response, or a whole conversation, as one list of tokens."""

  id: str
  tokens: list[int]
  response_mask: list[int]  # 1 on tokens that the policy would have chosen, its end marks included

  @classmethod
  def prompt(cls, id: str, tokens: list[int]) -> Example:
    return cls(id, tokens, [0] * len(tokens))

  @classmethod
  def text(cls, id: str, tokens: list[int]) -> Example:
    """A text without a prompt."""
    return cls(id, tokens, [1] * len(tokens))

  def continued(self, id: str, answer: list[int]) -> Example:
    """This prompt with an answer."""
    return Example(id, [*self.tokens, *answer], [*self.response_mask, *[1] * len(answer)])

  @property
  def answers(self) -> tuple[Example, ...]:
    return (self,)

  @property
  def key(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and response, as something to compare by."""
    start = _response_start(self)
    return tuple(self.tokens[:start]), tuple(self.tokens[start:])


class Pair(NamedTuple):
  """Two answers, the first preferred."""

  chosen: Example
  rejected: Example
  preference: float = 1.0  # the probability that `chosen` is the better one; 0.5 is a tie
  margin: float = 0.0  # by how much, in the units of the reward
  annotator: str = ""

  @property
  def id(self) -> str:
    return f"{self.chosen.id} > {self.rejected.id}"

  @property
  def answers(self) -> tuple[Example, ...]:
    return self.chosen, self.rejected


class Ranking(NamedTuple):
  """k answers to one prompt in the order that somebody gave them."""

  answers: tuple[Example, ...]
  ranks: tuple[int, ...]  # 1 is best, equal ranks are ties, 0 was not ranked
  annotator: str = ""

  @property
  def id(self) -> str:
    return " | ".join(answer.id for answer in self.answers)


class Labelled(NamedTuple):
  """An answer and what somebody made of it."""

  answer: Example
  labels: tuple[float, ...]  # a number a scale; NaN where there is none
  annotator: str = ""
  mismatched: Example | None = None  # the prompt with another prompt's answer

  @property
  def id(self) -> str:
    return self.answer.id

  @property
  def answers(self) -> tuple[Example, ...]:
    return (self.answer,) if self.mismatched is None else (self.answer, self.mismatched)


class TokenLabelled(NamedTuple):
  """An answer and what somebody made of its parts."""

  answer: Example
  labels: list[float]  # a number a token; NaN where there is none
  annotator: str = ""

  @property
  def id(self) -> str:
    return self.answer.id

  @property
  def answers(self) -> tuple[Example, ...]:
    return (self.answer,)


Record = Example | Pair | Ranking | Labelled | TokenLabelled
Logps = Callable[[Example], np.ndarray]  # an example's reference log-probabilities, float32[tokens]


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
  sizes = [len(example.tokens) for example in examples]
  for example, size in zip(examples, sizes, strict=True):
    if size > width:
      raise ValueError(f"example {example.id} has {size} tokens, more than the row's {width}.")
  rows, starts = first_fit(sizes, width)
  packed = [[] for _ in range(max(rows, default=-1) + 1)]
  for i in np.lexsort((starts, rows)):
    packed[rows[i]].append(examples[i])
  return packed


def first_fit(sizes: Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
  """The row that each of `sizes` goes into and where it starts there, int[N] each, in rows of `width`; longest first."""
  room: list[int] = []
  rows, starts = np.zeros(len(sizes), int), np.zeros(len(sizes), int)
  for i in np.argsort(-np.asarray(sizes), kind="stable"):
    row = next((row for row, free in enumerate(room) if free >= sizes[i]), len(room))
    if row == len(room):
      room.append(width)
    rows[i], starts[i] = row, width - room[row]
    room[row] -= sizes[i]
  return rows, starts


# What a layout leaves out brings the tokens down to this share at most, or it is not worth the gathering; nor, where a
# pair shares a row, the scores of one answer's tokens with the other's, which are computed and masked.
WORTHWHILE = 0.9
WORTHWHILE_SHARED = 0.75


class Layout(NamedTuple):
  """The sizes of a batch's arrays, which every batch of a width has in common, so that each width compiles once."""

  width: int  # T, of an answer
  asked: int | None = None  # R, of the tokens whose log-probabilities are wanted; None wants all
  shared: int | None = (
    None  # W, of a pair's row where both share their prompt; None keeps them apart
  )
  asked_shared: int | None = None  # R of such a row
  # P, where such a row is P columns of what both begin with and then half of the rest for each answer
  fork: int | None = None
  dense: int | None = None  # W where rows are packed; None where pairs share none
  packed: int | None = None  # into so many rows of that; None leaves each pair its own


def collate(rows: Sequence[Sequence[Example]], width: int, asked: int | None = None) -> Sequences:
  """Rows of packed examples as `Sequences` of numpy arrays [B, width], padded on the right.

  With `asked`, at least as many as any row has, only response tokens have log-probabilities.
  """
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
      response[i, span] = example.response_mask
      at += size
  return Sequences(tokens, positions, segments, response, asked=_asked(response, asked))


def asked_of(rows: Sequence[Sequence[Example]], width: int) -> int | None:
  """How many response tokens a row of packed examples has at most; None where that is nearly `width`."""
  most = _round_up(max(sum(sum(example.response_mask) for example in row) for row in rows))
  return most if most <= WORTHWHILE * width else None


def _asked(response: np.ndarray, size: int | None) -> np.ndarray | None:
  """The columns of each row's response tokens, int32[B, size]; −1 where there are fewer."""
  if size is None:
    return None
  columns = np.full((len(response), size), -1, np.int32)
  for row, mask in zip(columns, response, strict=True):
    found = np.flatnonzero(mask)
    row[: len(found)] = found
  return columns


def collate_together(pairs: Sequence[Pair], layout: Layout) -> Shared:
  """Both answers of each pair in one row: what they begin with, the rest of the chosen one, the rest of the other."""
  shape = (len(pairs), layout.shared)
  tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  segments, branches = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  response = np.zeros(shape, np.float32)
  at = np.full((len(pairs), 2, layout.width), -1, np.int32)
  for i, pair in enumerate(pairs):
    common = _in_common(pair)
    rest = [len(answer.tokens) - common for answer in pair.answers]
    starts = (common, common + rest[0])
    if layout.fork is not None:
      starts = (layout.fork, (layout.fork + layout.shared) // 2)
    at[i, :, :common] = np.arange(common)
    parts = [(0, pair.chosen, 0, slice(0, common))]
    for branch, (answer, start, size) in enumerate(zip(pair.answers, starts, rest, strict=True), 1):
      at[i, branch - 1, common : common + size] = np.arange(start, start + size)
      parts.append((branch, answer, start, slice(common, common + size)))
    for branch, answer, start, part in parts:
      span = slice(start, start + part.stop - part.start)
      tokens[i, span] = answer.tokens[part]
      positions[i, span] = np.arange(part.start, part.stop)
      response[i, span] = answer.response_mask[part]
      branches[i, span] = branch
      segments[i, span] = 1
  asked = _asked(response, layout.asked_shared)
  fork = None if layout.fork is None else (layout.fork, 2)
  packing = None
  if layout.packed is not None:
    rows, starts = first_fit(list(map(_shared_width, pairs)), layout.shared)
    packing = Packing(np.asarray(rows * layout.shared + starts, np.int32), layout.packed)
  rows = Sequences(tokens, positions, segments, response, branches, asked, packing)
  return Shared(rows, at, fork)


def _in_common(pair: Pair) -> int:
  """With how many tokens both answers begin. What stands before these is the same too, and so is all that is said of them."""
  sides = (zip(answer.tokens, answer.response_mask, strict=True) for answer in pair.answers)
  return next(
    (i for i, (ours, theirs) in enumerate(zip(*sides, strict=False)) if ours != theirs),
    min(len(answer.tokens) for answer in pair.answers),
  )


def _shared_width(pair: Pair) -> int:
  return sum(len(answer.tokens) for answer in pair.answers) - _in_common(pair)


def layouts(
  batches: Sequence[tuple[int, Sequence[Record]]], *, share_prompt: bool
) -> dict[int, Layout]:
  """Of each width, the smallest layout that holds all of its batches."""
  of_width: dict[int, dict[int, Record]] = {}
  for width, records in batches:  # a record comes again in every epoch
    of_width.setdefault(width, {}).update({id(record): record for record in records})
  return {width: _layout(width, [*r.values()], share_prompt) for width, r in of_width.items()}


def _layout(width: int, records: list[Record], share_prompt: bool) -> Layout:
  answers = [answer for record in records for answer in record.answers]
  apart = Layout(width, asked_of([[answer] for answer in answers], width))
  if not (share_prompt and isinstance(records[0], Pair)):
    return apart
  shared = _round_up(max(map(_shared_width, records)))
  layout = apart._replace(dense=shared)
  return _sharing(layout, shared, records) if shared <= WORTHWHILE_SHARED * 2 * width else layout


def _sharing(layout: Layout, shared: int, records: Sequence[Pair]) -> Layout:
  """Each pair in a row of `shared` columns, or of a few more with columns of their own for prompt and answers, which attention knows."""
  prompt = _round_up(max(map(_in_common, records)))
  rest = max(len(a.tokens) - _in_common(pair) for pair in records for a in pair.answers)
  forked = prompt + 2 * _round_up(rest)
  fork = prompt if forked <= 1.1 * shared else None
  shared = shared if fork is None else forked
  asked = asked_of([pair.answers for pair in records], shared)
  return layout._replace(shared=shared, asked_shared=asked, fork=fork)


SEEN = 4096, 64  # pairs and batches, at least, that say how full those of a long run will be


def heights(
  layout: Layout, batches: Sequence[Sequence[Pair]], multiple: int, compiling: float
) -> tuple[int, ...]:
  """Into how many rows batches of a layout are packed: the numbers that cost least, each of which compiles once.

  To compile a program takes as long as `compiling` batches do. A batch takes the smallest number that holds it, or a pair a
  row. () where packing is not worth it.
  """
  if layout.dense is None:
    return ()
  size = len(batches[0])
  few = max(-(-SEEN[0] // size), SEEN[1])
  seen = batches[:: max(len(batches) // few, 1)]
  needed = np.sort([_height(layout, pairs, multiple) for pairs in seen])
  apart = size * (layout.shared or 2 * layout.width) / layout.dense  # rows' worth of a pair a row
  worth = [int(rows) for rows in np.unique(needed) if rows <= WORTHWHILE * apart]
  held = np.searchsorted(needed, [*worth, np.inf], side="right") * len(batches) / len(seen)
  # Of the batches that the smallest i numbers hold, the least cost, and which of these numbers are in use, the last for sure.
  least: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
  for i, rows in enumerate([*worth, apart]):
    costs = [
      before + (held[i] - n) * rows + compiling * apart
      for (before, _), n in zip(least, [0.0, *held[:i]], strict=True)
    ]
    j = int(np.argmin(costs))
    least.append((costs[j], (*least[j][1], i)))
  _, chosen = min(found for found, n in zip(least[1:], held, strict=True) if n == held[-1])
  return tuple(worth[i] for i in chosen if i < len(worth))


def _height(layout: Layout, pairs: Sequence[Pair], multiple: int) -> int:
  fit, _ = first_fit(list(map(_shared_width, pairs)), layout.dense)
  return multiple * -(-(int(fit.max()) + 1) // multiple)


def packed(layout: Layout, pairs: Sequence[Pair], heights: Sequence[int], multiple: int) -> Layout:
  """`layout` with the rows of this batch packed into one of `heights`, if one holds it."""
  if not heights:
    return layout
  needed = _height(layout, pairs, multiple)
  rows = next((rows for rows in heights if rows >= needed), None)
  if rows is None:
    return layout
  return layout._replace(shared=layout.dense, packed=rows, asked_shared=None, fork=None)


def step_of(size: int, steps: int, needed: int) -> int:
  """The smallest of so many even `steps` up to `size` that is at least `needed`."""
  return next(x for i in range(1, steps + 1) if (x := -(-size * i // steps)) >= needed)


def collate_records(
  records: Sequence[Record], layout: Layout | int, ref_logps: Logps | None = None
) -> Sequences | PreferenceBatch | RankingBatch | LabelledBatch:
  """Records of one form as its batch, every sequence padded to the layout's width, or to a width; an answer a row.

  With `ref_logps` the reference's log-probabilities come along, and need not be computed again.
  """
  layout = Layout(layout) if isinstance(layout, int) else layout
  return _COLLATE[type(records[0])](records, layout, ref_logps)


def _examples(records, layout, ref_logps) -> Sequences:
  return collate([[example] for example in records], layout.width, layout.asked)


def _pairs(pairs: Sequence[Pair], layout: Layout, ref_logps) -> PreferenceBatch:
  side = lambda name: [getattr(pair, name) for pair in pairs]
  return PreferenceBatch(
    chosen=_examples(side("chosen"), layout, None),
    rejected=_examples(side("rejected"), layout, None),
    preference=np.asarray(side("preference"), np.float32),
    margin=np.asarray(side("margin"), np.float32),
    ref_chosen_logps=_aligned(side("chosen"), layout, ref_logps),
    ref_rejected_logps=_aligned(side("rejected"), layout, ref_logps),
    together=None if layout.shared is None else collate_together(pairs, layout),
  )


def _rankings(rankings: Sequence[Ranking], layout: Layout, ref_logps) -> RankingBatch:
  """Rankings of fewer answers than the longest are filled with their own first answer, of rank −1."""
  K = max(len(ranking.answers) for ranking in rankings)
  fill = lambda r: (*r.answers, *[r.answers[0]] * (K - len(r.answers)))
  answers = [answer for ranking in rankings for answer in fill(ranking)]
  apart = lambda x: x.reshape(len(rankings), K, -1)
  logps = _aligned(answers, layout, ref_logps)
  return RankingBatch(
    answers=jax.tree.map(apart, _examples(answers, layout, None)),
    ranks=np.asarray([[*r.ranks, *[-1] * (K - len(r.ranks))] for r in rankings], np.int32),
    ref_logps=None if logps is None else apart(logps),
  )


def _labelled(records: Sequence[Labelled], layout: Layout, ref_logps) -> LabelledBatch:
  answers = [record.answer for record in records]
  mismatched = [r.mismatched for r in records if r.mismatched is not None]
  return LabelledBatch(
    answers=_examples(answers, layout, None),
    labels=np.asarray([record.labels for record in records], np.float32),
    ref_logps=_aligned(answers, layout, ref_logps),
    mismatched=_examples(mismatched, layout, None) if mismatched else None,
    ref_mismatched_logps=_aligned(mismatched, layout, ref_logps) if mismatched else None,
  )


def _token_labelled(records: Sequence[TokenLabelled], layout: Layout, ref_logps) -> LabelledBatch:
  labels = np.full((len(records), layout.width), np.nan, np.float32)
  for row, record in zip(labels, records, strict=True):
    row[: len(record.labels)] = record.labels
  answers = [record.answer for record in records]
  return LabelledBatch(
    answers=_examples(answers, layout, None),
    labels=labels,
    ref_logps=_aligned(answers, layout, ref_logps),
  )


_COLLATE: dict[type, Callable[..., Any]] = {
  Example: _examples,
  Pair: _pairs,
  Ranking: _rankings,
  Labelled: _labelled,
  TokenLabelled: _token_labelled,
}


def _aligned(examples: Sequence[Example], layout: Layout, logps: Logps | None) -> np.ndarray | None:
  """float32[B, T] of each example's own log-probabilities."""
  if logps is None:
    return None
  return np.stack([np.pad(logps(e), (0, layout.width - len(e.tokens))) for e in examples])


def with_mismatched(records: Sequence[Labelled], seed: int | Sequence[int]) -> list[Labelled]:
  """Each record with its prompt before the answer of another record, in a random cycle of `seed`.

  What KTO estimates its KL from (arXiv:2402.01306).
  """
  order = np.random.default_rng(seed).permutation(len(records))
  other = np.empty(len(records), int)
  other[order] = np.roll(order, 1)
  joined = []
  for record, j in zip(records, other, strict=True):
    mine, theirs = record.answer, records[j].answer
    begin, at = _response_start(mine), _response_start(theirs)
    prompt = Example.prompt(f"{mine.id} with {theirs.id}", mine.tokens[:begin])
    room = max(len(mine.tokens), len(theirs.tokens)) - begin  # no longer than a row may be
    answer = theirs.tokens[at : at + room]
    joined.append(record._replace(mismatched=prompt.continued(prompt.id, answer)))
  return joined


def _response_start(example: Example) -> int:
  return example.response_mask.index(1) if 1 in example.response_mask else len(example.tokens)


def batches_by_width(
  records: Sequence[Record], batch_size: int, buckets: int, seed: int | Sequence[int]
) -> list[tuple[int, list[Record]]]:
  """One epoch as (width, records) batches of at most `buckets` widths, so that short ones are not padded long.

  Each width holds its share of the records, shortest first; what does not fill a batch joins the next
  width, and fewer than `batch_size` of the longest are left for another epoch. Batches come in
  random order. Raises ValueError when there are fewer records than one batch takes.
  """
  if len(records) < batch_size:
    raise ValueError(
      f"batch_size={batch_size} exceeds the {len(records)} rows of data; lower it to at most {len(records)}."
    )
  rng = np.random.default_rng(seed)
  longest = np.asarray([max(len(answer.tokens) for answer in r.answers) for r in records])
  shares = np.quantile(longest, np.arange(1, buckets + 1) / buckets, method="higher")
  widths = sorted({_round_up(int(share)) for share in shares})
  batches, waiting = [], []
  for below, width in zip([0, *widths], widths, strict=False):
    waiting += [records[i] for i in np.flatnonzero((longest > below) & (longest <= width))]
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
