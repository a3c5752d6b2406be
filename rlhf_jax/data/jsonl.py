"""Rows from JSON Lines files: whole files fail with a remedy, single bad rows are skipped, counted and listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

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
  try:
    # Not splitlines(): a string may hold U+2028, which it takes for the end of a line.
    lines = file.read_text(encoding="utf-8-sig").split("\n")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8 JSON Lines.") from error
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    row, problem = _parse(line, fields)
    row = {"id": f"{file.name}:{number}", **row}
    problem = problem or check(row)
    if problem:
      problems.append(f"line {number}: {problem}")
    else:
      rows.append(row)
  if problems and notes is not None:
    notes.append(
      f"{path}: skipped {len(problems)} of {len(rows) + len(problems)} rows; " + _listed(problems)
    )
  if not rows:
    raise ValueError(
      f"{path} has no usable row; each line should be an object with {', '.join(fields)}. "
      + (_listed(problems) or "The file is empty.")
    )
  return rows


def _parse(line: str, fields: Sequence[str]) -> tuple[dict, str | None]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    return {}, f"not JSON ({error.msg} at column {error.colno})"
  if not isinstance(row, dict):
    return {}, f"a {type(row).__name__} where an object was expected"
  for field in fields:
    if field not in row:
      return {}, f"no field {field!r} (it has {', '.join(map(repr, row)) or 'none'})"
    if not isinstance(row[field], str):
      return {}, f"field {field!r} should be a string, not {type(row[field]).__name__}"
    if not row[field].strip():
      return {}, f"field {field!r} is empty"
    if any("\ud800" <= character <= "\udfff" for character in row[field]):
      return {}, f"field {field!r} holds half of a character (a lone surrogate, \\ud800 to \\udfff)"
  return row, None


def _listed(problems: Sequence[str]) -> str:
  more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
  return "; ".join(problems[:LISTED]) + more
