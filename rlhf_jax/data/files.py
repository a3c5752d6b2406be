"""Rows of JSON Lines, JSON, CSV and Parquet files and of saved `datasets` folders, told by the extension.

  .jsonl .ndjson   an object a line; problems are named by line
  .json            a list of objects, or JSON Lines
  .csv .tsv        a heading, then a row a line: cells are texts, numbers, true and false, or JSON
                   (["yes", "no"]); an empty cell is no field
  .parquet         by row, the first is 1
  a folder         as `datasets.Dataset.save_to_disk` writes it, of one split

A field that is null is a field that the row does not have, so rows of several layouts can share a table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data import jsonl

# Columns that hold text whatever it looks like: the cell 007 is not a number, true is a word.
TEXTS = (
  "prompt",
  "response",
  "completion",
  "chosen",
  "rejected",
  "correction",
  "text",
  "annotator",
)

Found = tuple[int, Any, str | None]  # a row's number, the row, and what is wrong with it


class Rows(NamedTuple):
  """What a file holds."""

  items: list  # what became of the good rows
  problems: list[str]  # what is wrong with the others, by line
  count: int  # of all rows


def read(path: str, parse: Callable[[dict, str], list], expected: str, notes: list[str]) -> list:
  """What `parse(row, id)` makes of the rows of `path`; it raises ValueError for a bad one.

  Bad rows are counted and listed in a note. Raises FileNotFoundError without the file and
  ValueError when no row is left, which says what each should be: `expected`.
  """
  found = load(path, parse)
  if not found.items:
    each = "line should be an object" if _reader(path) is jsonl.lines else "row should be one"
    raise ValueError(
      f"{path} has no usable row; each {each} with {expected}. "
      + (jsonl.listed(found.problems) or "The file is empty.")
    )
  if found.problems:
    notes.append(jsonl.skipped(path, found.problems, found.count))
  return found.items


def load(path: str, parse: Callable[[dict, str], list]) -> Rows:
  """As `read`, with the problems in what is returned and nothing raised for them."""
  reader, name = _reader(path), Path(path).name
  unit = "line" if reader in (jsonl.lines, _csv) else "row"
  items, problems, count = [], [], 0
  for number, row, problem in reader(path):
    count += 1
    try:
      if problem:
        raise ValueError(problem)
      fields = {field: value for field, value in row.items() if value is not None}
      items += parse(fields, f"{name}:{number}")
    except ValueError as error:
      problems.append(f"{unit} {number}: {error}")
  return Rows(items, problems, count)


def _reader(path: str) -> Callable[[str], Iterator[Found]]:
  file = Path(path)
  if file.is_dir():
    return _dataset
  if not file.is_file():
    raise FileNotFoundError(
      f"{path} is not a file; give the path of a JSON Lines file, of .json, .csv or .parquet, or of "
      "a folder that datasets.save_to_disk wrote."
    )
  if file.suffix not in READERS:
    raise ValueError(
      f"{path} is of no kind that is read; name it {', '.join(READERS)} after what it holds."
    )
  return READERS[file.suffix]


def _json(path: str) -> Iterator[Found]:
  try:
    rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8 JSON.") from error
  except json.JSONDecodeError as error:
    if error.msg == "Extra data":  # an object a line, as many files of this name have it
      yield from jsonl.lines(path)
      return
    raise ValueError(
      f"{path} is not JSON ({error}); give a list of objects, or an object a line in a .jsonl file."
    ) from error
  if isinstance(rows, dict):
    rows = [rows]
  if not isinstance(rows, list):
    raise ValueError(f"{path} holds a {type(rows).__name__}; give a list of objects.")
  for number, row in enumerate(rows, start=1):
    good = isinstance(row, dict)
    problem = None if good else f"a {type(row).__name__} where an object was expected"
    yield number, row, problem


def _csv(path: str) -> Iterator[Found]:
  limit = csv.field_size_limit(1 << 30)  # a conversation may be longer than the default of 128 kB
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      table = csv.reader(file, delimiter="\t" if path.endswith(".tsv") else ",")
      heading = [name.strip() for name in next(table, [])]
      end = table.line_num
      for cells in table:
        begin, end = end + 1, table.line_num  # a cell may go over several lines
        if not any(cells):
          continue
        many = f"{len(cells)} cells under {len(heading)} headings; put a text with commas in quotes"
        row = {name: _cell(name, cell) for name, cell in zip(heading, cells, strict=False) if cell}
        yield begin, row, many if len(cells) > len(heading) else None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} is not a table of UTF-8 text ({error}); save it as such.") from error
  finally:
    csv.field_size_limit(limit)


def _cell(name: str, text: str):
  """What a cell stands for: JSON where it is, and in a column of texts only the turns of a conversation."""
  if name in TEXTS and not text.lstrip().startswith("[{"):
    return text
  try:
    return json.loads(text.lower() if text.lower() in ("true", "false") else text)
  except json.JSONDecodeError:
    return text


def _parquet(path: str) -> Iterator[Found]:
  import pyarrow.parquet

  try:
    table = pyarrow.parquet.read_table(path)
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f"{path} is not a Parquet file ({error}); write it again.") from error
  for number, row in enumerate(table.to_pylist(), start=1):
    yield number, row, None


def _dataset(path: str) -> Iterator[Found]:
  import datasets

  try:
    dataset = datasets.load_from_disk(path)
  except FileNotFoundError as error:
    raise ValueError(
      f"{path} is a folder that datasets.save_to_disk has not written; write it so, or give a file."
    ) from error
  if isinstance(dataset, datasets.DatasetDict):
    if len(dataset) != 1:
      splits = ", ".join(str(Path(path) / split) for split in dataset)
      raise ValueError(f"{path} holds several splits; give the folder of one of them: {splits}.")
    (dataset,) = dataset.values()
  for number, row in enumerate(dataset.with_format(None), start=1):
    yield number, row, None


READERS: dict[str, Callable[[str], Iterator[Found]]] = {
  ".jsonl": jsonl.lines,
  ".ndjson": jsonl.lines,
  ".json": _json,
  ".csv": _csv,
  ".tsv": _csv,
  ".parquet": _parquet,
}
