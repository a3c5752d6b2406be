"""Rows from every kind of file: what stands in them, by which line or row it is called, what whole files are refused for."""

import datasets
import pytest
from some_files import KINDS, write

from rlhf_jax.data import files


def keep(row, id):
  if row.get("bad"):
    raise ValueError(f"bad is {row['bad']!r}")
  return [(id, dict(row))]


# The first row's number: a heading comes before it in a table of text.
FIRST = {".csv": 2, ".tsv": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
  rows = [
    {"prompt": "007", "n": 3, "x": 0.5, "ok": True, "list": ["a, b", 'c"d'], "text": "é\n\u2028z"},
    {"prompt": "true", "n": None, "x": 2.5, "ok": False, "list": ["e"], "text": None},
  ]
  found = files.load(write(tmp_path, kind, rows), keep)
  assert found.problems == [] and found.count == 2
  first = FIRST.get(kind, 1)
  second = first + 2 if kind in FIRST else 2  # the first row's text goes over two lines
  expected = [{k: v for k, v in row.items() if v is not None} for row in rows]
  assert found.items == [
    (f"rows{kind}:{first}", expected[0]),
    (f"rows{kind}:{second}", expected[1]),
  ]


@pytest.mark.parametrize(
  "kind, place",
  [
    (".jsonl", "line 2"),
    (".json", "row 2"),
    (".csv", "line 3"),
    (".parquet", "row 2"),
    ("_f", "row 2"),
  ],
)
def test_bad_rows_are_skipped_counted_and_named(kind, place, tmp_path):
  path = write(tmp_path, kind, [{"a": 1}, {"a": 2, "bad": "x"}, {"a": 3}])
  notes = []
  items = files.read(path, keep, "a", notes)
  assert [row["a"] for _, row in items] == [1, 3]
  assert notes == [f"{path}: skipped 1 of 3 rows; {place}: bad is 'x'"]


def test_blank_lines_of_a_table_are_no_rows_and_count_as_lines(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("prompt,bad\nx,\n\n,\ny,1\n")
  assert files.load(str(path), keep).problems == ["line 5: bad is 1"]


def test_cells_beyond_the_headings_are_a_bad_row(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("prompt,response\na,b,c\nd,e\n")
  found = files.load(str(path), keep)
  assert found.problems == ["line 2: 3 cells under 2 headings; put a text with commas in quotes"]
  assert found.items == [("a.csv:3", {"prompt": "d", "response": "e"})]


def test_a_conversation_in_a_cell_is_read_and_text_that_begins_like_one_stays(tmp_path):
  turns = [{"role": "user", "content": "hi"}]
  path = write(tmp_path, ".csv", [{"prompt": turns, "response": "[{not JSON"}])
  ((_, row),) = files.load(path, keep).items
  assert row == {"prompt": turns, "response": "[{not JSON"}


def test_a_long_cell_is_read(tmp_path):
  path = write(tmp_path, ".csv", [{"prompt": "x" * 200_000}])
  ((_, row),) = files.load(path, keep).items
  assert len(row["prompt"]) == 200_000


def test_a_json_file_of_lines_is_read_by_line(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text('{"a": 1}\n\n{"bad": 1}\n{"a": 3}\n')
  found = files.load(str(path), keep)
  assert [id for id, _ in found.items] == ["rows.json:1", "rows.json:4"]


def test_a_json_object_alone_is_one_row(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text('{"a": 1}')
  assert files.load(str(path), keep).items == [("rows.json:1", {"a": 1})]


def test_a_saved_split_is_read_and_several_are_named(tmp_path):
  data = datasets.Dataset.from_dict({"a": [1, 2]})
  datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "one")
  assert len(files.load(str(tmp_path / "one"), keep).items) == 2
  datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
  with pytest.raises(ValueError, match=r"holds several splits; .*two/train, .*two/test"):
    files.load(str(tmp_path / "two"), keep)
  assert len(files.load(str(tmp_path / "two" / "test"), keep).items) == 2


@pytest.mark.parametrize(
  "name, content, says",
  [
    ("a.txt", b"x", "is of no kind that is read; name it .jsonl, .ndjson, .json, .csv"),
    ("a.json", b"[1", "is not JSON (.*an object a line in a .jsonl file"),
    ("a.json", b"3", "holds a int; give a list of objects"),
    ("a.json", "é".encode("latin-1"), "is not UTF-8 text .*save it as UTF-8 JSON"),
    ("a.csv", "é,b\n".encode("latin-1"), "is not a table of UTF-8 text .*save it as such"),
    ("a.parquet", b"PAR", "is not a Parquet file .*write it again"),
    ("a.jsonl", b"", "has no usable row; each line should be an object with a, b. The file is empty"),
    ("a.csv", b"a,b\n", "has no usable row; each row should be one with a, b. The file is empty"),
    ("a.json", b"[3]", "no usable row.* row 1: a int where an object was expected"),
  ],
)  # fmt: skip
def test_a_whole_file_is_refused_with_a_remedy(name, content, says, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=says.replace("(", r"\(")):
    files.read(str(tmp_path / name), keep, "a, b", [])


def test_a_folder_that_holds_no_dataset_is_refused(tmp_path):
  with pytest.raises(ValueError, match="a folder that datasets.save_to_disk has not written"):
    files.load(str(tmp_path), keep)


def test_a_missing_file_is_named_with_what_is_read():
  with pytest.raises(
    FileNotFoundError, match="none.csv is not a file; .* or .parquet, or of a folder"
  ):
    files.load("none.csv", keep)
