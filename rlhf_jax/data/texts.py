"""What people said of answers, before any of it is tokens.

`examples.Pair`, `Ranking` and `Labelled` (a mark) hold `Text`s here where they hold `Example`s later; what takes the whole
file to become numbers, or a tokenizer to become labels of tokens, has a record of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Turns = tuple[Mapping[str, Any], ...]  # messages of a conversation


class Text(NamedTuple):
  """A prompt and an answer to it: both plain text, or both turns of a conversation."""

  id: str
  prompt: str | Turns  # "" or () where the response is the whole text or conversation
  response: str | Turns

  @property
  def key(self) -> tuple[str, str]:
    """Prompt and response, as something to compare by."""
    return _key(self.prompt), _key(self.response)

  @property
  def answers(self) -> tuple[Text, ...]:
    return (self,)

  @property
  def answer_text(self) -> str:
    """The response where it is one text, plain or the assistant's only turn."""
    return self.response if isinstance(self.response, str) else self.response[0]["content"]


class Rated(NamedTuple):
  """An answer with numbers on scales of any kind."""

  answer: Text
  ratings: Mapping[str, float]
  annotator: str = ""

  @property
  def answers(self) -> tuple[Text, ...]:
    return (self.answer,)


class Classed(NamedTuple):
  """An answer and the name of its class."""

  answer: Text
  value: str | int
  annotator: str = ""

  @property
  def answers(self) -> tuple[Text, ...]:
    return (self.answer,)


class Correction(NamedTuple):
  """An answer and what somebody made of it."""

  original: Text
  corrected: Text
  annotator: str = ""

  @property
  def answers(self) -> tuple[Text, ...]:
    return self.corrected, self.original


class Span(NamedTuple):
  """Characters start to end of an answer, and what they are worth: 1 is good, 0 is wrong."""

  start: int
  end: int
  value: float


class Spanned(NamedTuple):
  """An answer in which errors are marked; what no span covers is good."""

  answer: Text
  spans: tuple[Span, ...]
  annotator: str = ""

  @property
  def answers(self) -> tuple[Text, ...]:
    return (self.answer,)

  @property
  def labels(self) -> tuple[float, ...]:
    return tuple(span.value for span in self.spans)


class Stepped(NamedTuple):
  """An answer in steps, each right or wrong or left open."""

  answer: Text
  steps: tuple[Span, ...]  # NaN is left open
  annotator: str = ""

  @property
  def answers(self) -> tuple[Text, ...]:
    return (self.answer,)

  @property
  def labels(self) -> tuple[float, ...]:
    return tuple(step.value for step in self.steps)


def _key(part: str | Turns) -> str:
  return part if isinstance(part, str) else json.dumps(part, sort_keys=True, ensure_ascii=False)
