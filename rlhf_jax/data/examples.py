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

import numpy as np

from rlhf_jax.types import LabelledBatch, PreferenceBatch, RankingBatch, Sequences

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
      response[i, span] = example.response_mask
      at += size
  return Sequences(tokens, positions, segments, response)


def collate_records(
  records: Sequence[Record], width: int, ref_logps: Logps | None = None
) -> Sequences | PreferenceBatch | RankingBatch | LabelledBatch:
  """Records of one form as its batch, every sequence padded to `width`; an answer a row.

  With `ref_logps` the reference's log-probabilities come along, and need not be computed again.
  """
  return _COLLATE[type(records[0])](records, width, ref_logps)


def _examples(records, width, ref_logps) -> Sequences:
  return collate([[example] for example in records], width)


def _pairs(pairs: Sequence[Pair], width: int, ref_logps) -> PreferenceBatch:
  side = lambda name: [getattr(pair, name) for pair in pairs]
  return PreferenceBatch(
    chosen=_examples(side("chosen"), width, None),
    rejected=_examples(side("rejected"), width, None),
    preference=np.asarray(side("preference"), np.float32),
    margin=np.asarray(side("margin"), np.float32),
    ref_chosen_logps=_aligned(side("chosen"), width, ref_logps),
    ref_rejected_logps=_aligned(side("rejected"), width, ref_logps),
  )


def _rankings(rankings: Sequence[Ranking], width: int, ref_logps) -> RankingBatch:
  """Rankings of fewer answers than the longest are filled with their own first answer, of rank −1."""
  K = max(len(ranking.answers) for ranking in rankings)
  fill = lambda r: (*r.answers, *[r.answers[0]] * (K - len(r.answers)))
  answers = [answer for ranking in rankings for answer in fill(ranking)]
  apart = lambda x: x.reshape(len(rankings), K, width)
  sequences = _examples(answers, width, None)
  logps = _aligned(answers, width, ref_logps)
  return RankingBatch(
    answers=Sequences(*(apart(getattr(sequences, f)) for f in sequences.__dataclass_fields__)),
    ranks=np.asarray([[*r.ranks, *[-1] * (K - len(r.ranks))] for r in rankings], np.int32),
    ref_logps=None if logps is None else apart(logps),
  )


def _labelled(records: Sequence[Labelled], width: int, ref_logps) -> LabelledBatch:
  answers = [record.answer for record in records]
  mismatched = [r.mismatched for r in records if r.mismatched is not None]
  return LabelledBatch(
    answers=_examples(answers, width, None),
    labels=np.asarray([record.labels for record in records], np.float32),
    ref_logps=_aligned(answers, width, ref_logps),
    mismatched=_examples(mismatched, width, None) if mismatched else None,
    ref_mismatched_logps=_aligned(mismatched, width, ref_logps) if mismatched else None,
  )


def _token_labelled(records: Sequence[TokenLabelled], width: int, ref_logps) -> LabelledBatch:
  labels = np.full((len(records), width), np.nan, np.float32)
  for row, record in zip(labels, records, strict=True):
    row[: len(record.labels)] = record.labels
  answers = [record.answer for record in records]
  return LabelledBatch(
    answers=_examples(answers, width, None),
    labels=labels,
    ref_logps=_aligned(answers, width, ref_logps),
  )


_COLLATE: dict[type, Callable[..., Any]] = {
  Example: _examples,
  Pair: _pairs,
  Ranking: _rankings,
  Labelled: _labelled,
  TokenLabelled: _token_labelled,
}


def _aligned(examples: Sequence[Example], width: int, logps: Logps | None) -> np.ndarray | None:
  """float32[B, width] of each example's own log-probabilities."""
  if logps is None:
    return None
  return np.stack([np.pad(logps(e), (0, width - len(e.tokens))) for e in examples])


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
