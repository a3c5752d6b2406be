"""Rows from JSON Lines files: whole files fail with a remedy, single bad rows are skipped, counted and listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

LISTED = 5  # bad rows shown in a note; all of them are counted


def read(
  path: str,
  fields: Sequence[str],
  check: Callable[[dict], str | None] = lambda row: None,
  notes: list[str] | None = None,
) -> list[dict]:
  """The rows of `path` that hold a non-empty string in every field and pass `check`.

  `check(row)` returns what is wrong, or None. Each row gets an `id` of file name and line. What was
  skipped is appended to `notes`. Raises FileNotFoundError without the file and ValueError when no
  row is left, with the problems by line.
  """
  file = Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"{path} is not a file; give the path of a JSON Lines file.")
  rows, problems = [], []
  for number, row, problem in lines(path):
    problem = problem or text_problem(row, fields)
    row = {"id": f"{file.name}:{number}", **(row if isinstance(row, dict) else {})}
    problem = problem or check(row)
    if problem:
      problems.append(f"line {number}: {problem}")
    else:
      rows.append(row)
  if problems and notes is not None:
    notes.append(skipped(path, problems, len(rows) + len(problems)))
  if not rows:
    raise ValueError(
      f"{path} has no usable row; each line should be an object with {', '.join(fields)}. "
      + (listed(problems) or "The file is empty.")
    )
  return rows


def lines(path: str) -> Iterator[tuple[int, Any, str | None]]:
  """(line number, what stands there, or what is wrong with it) of every line that is not blank."""
  try:
    # Not splitlines(): a string may hold U+2028, which it takes for the end of a line.
    text = Path(path).read_text(encoding="utf-8-sig").split("\n")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8 JSON Lines.") from error
  for number, line in enumerate(text, start=1):
    if line.strip():
      yield number, *_parse(line)


def _parse(line: str) -> tuple[Any, str | None]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    return None, f"not JSON ({error.msg} at column {error.colno})"
  if not isinstance(row, dict):
    return None, f"a {type(row).__name__} where an object was expected"
  return row, None


def text_problem(row: dict, fields: Sequence[str]) -> str | None:
  """What keeps `fields` of `row` from being non-empty texts, or None."""
  for field in fields:
    if field not in row:
      return f"no field {field!r} (it has {', '.join(map(repr, row)) or 'none'})"
    if not isinstance(row[field], str):
      return f"field {field!r} should be a string, not {type(row[field]).__name__}"
    if not row[field].strip():
      return f"field {field!r} is empty"
    if any("\ud800" <= character <= "\udfff" for character in row[field]):
      return f"field {field!r} holds half of a character (a lone surrogate, \\ud800 to \\udfff)"
  return None


def skipped(path: str, problems: Sequence[str], rows: int) -> str:
  """The note on the bad ones among `rows` rows."""
  return f"{path}: skipped {len(problems)} of {rows} rows; {listed(problems)}"


def listed(problems: Sequence[str]) -> str:
  more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
  return "; ".join(problems[:LISTED]) + more
