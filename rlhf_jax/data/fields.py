"""Fields of a row as what they should be: texts, conversations, lists and numbers; a ValueError names the one that is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_jax.data import jsonl
from rlhf_jax.data.texts import Turns

Row = Mapping[str, Any]  # without fields that are null


def joined(before: str | Turns, answer: str | Turns, field: str) -> tuple[str | Turns, str | Turns]:
  """Prompt and answer of one kind: beside messages, a text is one too."""
  if isinstance(before, str) and isinstance(answer, str):
    return before, answer
  if isinstance(answer, str):
    answer = ({"role": "assistant", "content": answer},)
  if isinstance(before, str):
    before = ({"role": "user", "content": before},)
  assert_answered(answer, field)
  return before, answer


def after_last_user(turns: Turns, field: str) -> tuple[Turns, Turns]:
  """The turns up to the last of a user, and the answer after it."""
  if isinstance(turns, str):
    raise ValueError(f"field {field!r} should be a list of messages, not str")
  last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
  assert_answered(turns[last + 1 :], field)
  return turns[: last + 1], turns[last + 1 :]


def is_whole(answer: str | Turns, row: Row) -> bool:
  """Whether `answer` is a conversation that holds its own prompt; a `prompt` of the row is then found in it."""
  if isinstance(answer, str) or answer[0]["role"] not in ("system", "user"):
    return False
  before = content(row, "prompt") if "prompt" in row else ()
  if not isinstance(before, str):
    return answer[: len(before)] == before
  asked = [turn.get("content") for turn in answer if turn["role"] == "user"]
  if before not in asked:
    raise ValueError("'prompt' is none of the user's turns in the conversations beside it")
  return True


def assert_answered(turns: Turns, field: str) -> None:
  if not any(turn["role"] == "assistant" for turn in turns):
    raise ValueError(f"field {field!r} has no assistant message where the answer should be")


def content(row: Row, field: str) -> str | Turns:
  """A text, or turns of a conversation as a tuple."""
  assert_has(row, field)
  if not isinstance(row[field], list | tuple):
    assert_texts({field: row[field]})
    return row[field]
  turns = row[field]
  if not turns:
    raise ValueError(f"field {field!r} is empty")
  for i, turn in enumerate(turns):
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
      raise ValueError(f'{field}[{i}] should be a message: {{"role": "user", "content": "..."}}')
    if isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
      assert_texts({f"{field}[{i}].content": turn["content"]})
  return tuple(_without_nulls(turn) for turn in turns)


def _without_nulls(value):
  """A table gives every object the fields of all, null where it has none; content alone may be null."""
  if isinstance(value, Mapping):
    given = {k: v for k, v in value.items() if v is not None or k == "content"}
    return {name: _without_nulls(inner) for name, inner in given.items()}
  return [_without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def assert_texts(named: Row) -> None:
  problem = jsonl.text_problem(named, tuple(named))
  if problem:
    raise ValueError(problem)


def assert_has(row: Row, *fields: str) -> None:
  missing = [field for field in fields if field not in row]
  if missing:
    raise ValueError(f"no field {missing[0]!r} (it has {', '.join(map(repr, row)) or 'none'})")


def either(row: Row, name: str, other: str) -> str:
  return other if other in row and name not in row else name


def values(row: Row, field: str, size: int | None = None) -> list:
  assert_has(row, field)
  value = row[field]
  if not isinstance(value, list | tuple):
    raise ValueError(f"field {field!r} should be a list, not {type_name(value)}")
  if size is not None and len(value) != size:
    raise ValueError(f"field {field!r} holds {len(value)} values for {size} answers or steps")
  return list(value)


def number(value, name: str) -> float:
  if not is_number(value):
    raise ValueError(f"{name} is {value!r}; it should be a finite number")
  return float(value)


def is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_nan(value) -> bool:
  return isinstance(value, float) and math.isnan(value)


def truth(value, name: str) -> float:
  if isinstance(value, bool) or (is_number(value) and value in (0, 1)):
    return float(value)
  raise ValueError(f"{name} is {value!r}; it should be true or false, or 1 or 0")


def share(value, name: str) -> float:
  """A truth, or how likely it is."""
  if is_number(value) and 0 <= value <= 1:
    return float(value)
  return truth(value, name)


def type_name(value) -> str:
  return type(value).__name__
