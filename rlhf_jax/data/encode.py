"""Records of texts as records of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlhf_jax.data import chat
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, Record, TokenLabelled
from rlhf_jax.data.texts import Spanned, Stepped, Text


def example(tokenizer, text: Text) -> Example:
  """`text` as tokens: a conversation through the chat template, plain text as `chat.plain` has it.

  The mask is on what the assistant wrote after the prompt; a conversation without one has it on all of
  the assistant's turns.
  """
  if isinstance(text.response, str):
    row = chat.plain(tokenizer, text.prompt, text.response)
  else:
    row = chat.conversation(tokenizer, [*text.prompt, *text.response], len(text.prompt))
  if 1 not in row.response_mask:
    raise ValueError("the answer has no token of its own")
  return Example(text.id, row.tokens, row.response_mask)


def prompt(tokenizer, text: Text) -> Example:
  """The prompt alone, up to where an answer begins."""
  if isinstance(text.prompt, str):
    return Example.prompt(text.id, chat.plain_prompt(tokenizer, text.prompt))
  return Example.prompt(text.id, chat.conversation_prompt(tokenizer, text.prompt))


def record(tokenizer, record, example: Callable[[Text], Example]) -> Record:
  """A record of texts with `example` of each of them, and labels of characters as labels of tokens."""
  match record:
    case Text():
      return example(record)
    case Pair():
      return record._replace(chosen=example(record.chosen), rejected=example(record.rejected))
    case Ranking():
      return record._replace(answers=tuple(map(example, record.answers)))
    case Labelled():
      return record._replace(answer=example(record.answer))
    case Spanned() | Stepped():
      answer = example(record.answer)
      return TokenLabelled(answer, token_labels(tokenizer, record, answer), record.annotator)
  raise TypeError(f"{type(record).__name__} has no tokens yet; see scales.by_form")


def token_labels(tokenizer, record: Spanned | Stepped, answer: Example) -> list[float]:
  """A label a token: NaN on the prompt and wherever nobody said anything.

  A marked span is on every token that overlaps it, the lowest value where spans meet, and the rest of
  the response, its end mark too, is 1. A step's label is on its last token that is no blank.
  """
  text = record.answer
  if isinstance(text.response, str):
    offsets = chat.plain_offsets(tokenizer, text.prompt, text.response)
  else:
    offsets = chat.conversation_offsets(tokenizer, [*text.prompt, *text.response])
  if isinstance(record, Stepped):
    return _at_last_tokens(record, offsets)
  labels = [1.0 if inside else math.nan for inside in answer.response_mask]
  for span in record.spans:
    for j in _overlapping(offsets, span.start, span.end):
      labels[j] = min(labels[j], span.value) if answer.response_mask[j] else labels[j]
  return labels


def _at_last_tokens(record: Stepped, offsets) -> list[float]:
  labels = [math.nan] * len(offsets)
  for step in record.steps:
    last = step.start + len(record.answer.answer_text[step.start : step.end].rstrip())
    j = _overlapping(offsets, last - 1, last)[-1]
    labels[j] = step.value if math.isnan(labels[j]) else min(labels[j], step.value)
  return labels


def _overlapping(offsets, start: int, end: int) -> list[int]:
  """Tokens that stand for any character from `start` to `end`."""
  return [j for j, (first, last) in enumerate(offsets) if first < end and last > start]
