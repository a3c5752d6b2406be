"""Argilla, Label Studio and tables of crowd work, there and back, and the export to training's own forms."""

import csv
import io
import json

import pytest
from some_items import PAIRS, pairs

from rlhf_jax.data import feedback
from rlhf_jax.feedback import export, formats
from rlhf_jax.feedback.project import Project, Question, parse_item
from rlhf_jax.feedback.store import Store

SCALES = ({"name": "helpful", "low": 1, "high": 5}, {"name": "calm", "low": 0.0, "high": 1.0})
ONE = Project(
  "One answer",
  (
    Question("rates", "ratings", scales=SCALES, optional=True),
    Question("kind", "classes", classes=("poor", "good"), optional=True),
    Question("mark", "marks", optional=True),
    Question("spans", "spans", categories=("wrong", "rude"), optional=True),
    Question("fixed", "corrections", optional=True),
    Question("steps", "steps", optional=True),
  ),
)
SEVERAL = Project("Three answers", (Question("order", "rankings"),))
SAID = {
  "rates": {"helpful": 4, "calm": 0.25},
  "kind": {"class": "good"},
  "mark": {"label": False},
  "spans": {"spans": [{"start": 4, "end": 9, "label": "rude"}]},
  "fixed": {"text": "You are right, friend\nnow stop"},
  "steps": {"labels": [True, None]},
}


@pytest.fixture
def stores(tmp_path):
  """Stores of the three projects, with judgements of two annotators."""
  made = []

  def store(project, rows, said):
    opened = Store(f"sqlite:///{tmp_path}/{len(made)}.sqlite", project)
    opened.add_items([parse_item(row, project) for row in rows])
    found = [formats.Said(item, name, value) for item, name, value in said]
    opened.take_in(found, "test")
    made.append(opened)
    return opened

  one = store(
    ONE,
    [{"id": i, "prompt": "p", "answers": ["You fools are\nall wrong"]} for i in "ab"],
    [
      ("a", "ann", SAID),
      ("a", "bob", {"mark": {"label": True}}),
      ("b", "bob", {"spans": {"spans": []}}),
    ],
  )
  two = store(
    PAIRS,
    [{"id": i, "prompt": "p", "answers": ['x, "quoted"', "y\nz"]} for i in "abcd"],
    [
      ("a", "ann", {"better": {"choice": "second", "strength": 3}}),
      ("b", "ann", {"better": {"choice": "tie"}}),
      ("c", "bob", {"better": {"choice": "both_bad"}}),
      ("d", "bob", {"better": {"choice": "first"}}),
    ],
  )
  three = store(
    SEVERAL,
    [{"id": "a", "prompt": "p", "answers": ["x", "y", "z"]}],
    [
      ("a", "ann", {"order": {"ranks": [2, 1, 2]}}),
      ("a", "bob", {"order": {"ranks": [1, None, None]}}),
    ],
  )
  yield one, two, three
  for store in made:
    store.close()


def there_and_back(store, write, read):
  project, found = store.project, export.judgements(store)
  items = {item.id: item for item in store.items()}
  wire = json.loads(json.dumps(write(found, project)))
  back = formats.checked(read(wire, project), items, project)
  assert sorted(back) == sorted((j.item.id, j.annotator, j.said) for j in found)


def test_argilla_there_and_back(stores):
  for store in stores:
    there_and_back(store, formats.to_argilla, formats.from_argilla)


def test_label_studio_there_and_back(stores):
  for store in stores:
    there_and_back(store, formats.to_label_studio, formats.from_label_studio)


def test_an_argilla_record_by_hand(stores):
  record = formats.to_argilla(export.judgements(stores[1]), PAIRS)[0]
  assert record["id"] == "a" and record["fields"]["answer_2"] == "y\nz"
  assert record["responses"] == {
    "better": [{"value": "answer_2", "user_id": "ann"}],
    "better.strength": [{"value": 3, "user_id": "ann"}],
  }
  ranked = formats.to_argilla(export.judgements(stores[2]), SEVERAL)[0]["responses"]["order"]
  assert ranked[1]["value"] == [{"value": "answer_1", "rank": 1}]


def test_a_label_studio_interface_is_xml_with_every_question():
  import xml.etree.ElementTree as tree

  names = {e.get("name") for e in tree.fromstring(formats.label_studio_config(ONE, 1)).iter()}
  assert {"rates.helpful", "kind", "mark", "spans", "fixed", "steps", "prompt", "answer_1"} <= names
  tree.fromstring(formats.label_studio_config(PAIRS, 2))


def test_a_table_goes_out_and_comes_back_as_a_platform_writes_it(stores):
  _, two, _ = stores
  rows = list(csv.DictReader(io.StringIO(formats.to_table(two.items()), newline="")))
  assert rows[0] == {"id": "a", "prompt": "p", "answer_1": 'x, "quoted"', "answer_2": "y\nz"}
  out = io.StringIO()
  columns = [
    "HITId",
    "WorkerId",
    "AssignmentStatus",
    "Input.id",
    "Answer.better",
    "Answer.better.strength",
  ]
  writer = csv.writer(out)
  writer.writerows(
    [
      columns,
      ["1", "w1", "Approved", "a", "answer_2", "2"],
      ["2", "w2", "Rejected", "a", "answer_1", ""],
    ]
  )
  found = formats.from_table(out.getvalue(), PAIRS)
  assert found == [("a", "w1", {"better": {"choice": "second", "strength": 2}})]
  items = {item.id: item for item in two.items()}
  assert two.take_in(formats.checked(found, items, PAIRS), "crowd.csv") == 1
  assert two.take_in(formats.checked(found, items, PAIRS), "crowd.csv") == 0


def test_bad_imports_are_refused_by_place(stores):
  _, two, _ = stores
  items = {item.id: item for item in two.items()}
  with pytest.raises(ValueError, match="line 2: there is no WorkerId"):
    formats.from_table("id,better\na,tie\n", PAIRS)
  with pytest.raises(ValueError, match="'nobody' is not in this project"):
    formats.checked([formats.Said("nobody", "w", {})], items, PAIRS)
  with pytest.raises(ValueError, match="item 'a', annotator 'w': question 'better'.*'choice'"):
    formats.checked([formats.Said("a", "w", {"better": {"choice": "nonsense"}})], items, PAIRS)


def test_an_export_is_what_training_reads(stores):
  forms = set()
  for store in stores:
    for i, row in enumerate(export.rows(store)):
      records = feedback.parse(row, f"row {i}", feedback.Layout(classes=("poor", "good")))
      assert records
      forms.add(feedback.form_of(row, None))
  assert forms == {"pairs", "rankings", "ratings", "classes", "marks", "tokens", "corrections"}


def test_a_pair_by_hand(stores):
  first, tie, bad, plain = export.rows(stores[1])
  assert (first["chosen"], first["rejected"], first["strength"]) == ("y\nz", 'x, "quoted"', 3)
  assert (tie["preference"], bad["preference"], plain["preference"]) == (
    "tie",
    "both_bad",
    "chosen",
  )


def test_the_same_events_give_the_same_bytes_whatever_their_order_of_items(tmp_path, stores):
  _, two, _ = stores
  other = Store(f"sqlite:///{tmp_path}/again.sqlite", PAIRS)
  other.add_items(two.items())
  said = [formats.Said(j.item.id, j.annotator, j.said) for j in export.judgements(two)]
  other.take_in(said[::-1], "another time")
  assert export.jsonl(other) == export.jsonl(two)
  other.take_in([formats.Said("d", "bob", {"better": {"choice": "tie"}})], "changed")
  assert export.jsonl(other)[1] != export.jsonl(two)[1]
  other.close()


def test_check_items_are_not_exported_and_origins_are(tmp_path):
  store = Store(f"sqlite:///{tmp_path}/x.sqlite", PAIRS)
  (plain,) = pairs(1)
  known = plain._replace(id="check", known={"better": {"choice": "first"}})
  origin = plain._replace(
    id="origin",
    answers=({"content": "a", "model": "m", "sampling": {"temperature": 1.0}}, {"content": "b"}),
  )
  store.add_items([known, origin])
  said = {"better": {"choice": "first"}}
  store.take_in([formats.Said(id, "ann", said) for id in ("check", "origin")], "test")
  (row,) = export.rows(store)
  assert row["item"] == "origin" and row["answers_from"][0]["model"] == "m"
  store.close()


def test_the_command_line_exports_and_imports(tmp_path, stores, capsys, monkeypatch):
  import datasets

  from rlhf_jax.cli import main
  from rlhf_jax.feedback import project

  folder = tmp_path / "labels"
  project.create(folder, "pairs", overlap=2)
  items = tmp_path / "items.jsonl"
  rows = [{"id": i, "prompt": "p", "answers": ["x", "y"]} for i in "abc"]
  items.write_text("".join(json.dumps(row) + "\n" for row in rows))
  workdir = f"--workdir={folder}"
  assert main(["label", "add", workdir, f"--items={items}"]) == 0
  table = tmp_path / "results.csv"
  table.write_text(
    "annotator,id,better\nann,a,answer_1\nbob,a,answer_1\nann,b,answer_2\nbob,b,tie\n"
  )
  for expected in ("4 new judgements of 4", "0 new judgements of 4"):
    assert main(["label", "import", str(table), workdir, "--format=table"]) == 0
    assert expected in capsys.readouterr().out
  out = tmp_path / "feedback.jsonl"
  assert main(["label", "export", workdir, f"--out={out}"]) == 0
  assert [json.loads(line)["chosen"] for line in out.read_text().splitlines()] == [
    "x",
    "x",
    "y",
    "x",
  ]
  soft = tmp_path / "soft.jsonl"
  assert main(["label", "export", workdir, f"--out={soft}", "--together=majority"]) == 0
  assert [json.loads(line)["preference"] for line in soft.read_text().splitlines()] == [1.0, 0.25]
  saved = tmp_path / "saved"
  assert main(["label", "export", workdir, f"--out={saved}", "--format=datasets"]) == 0
  assert len(datasets.load_from_disk(str(saved))) == 4
  for kind in ("argilla", "label_studio"):
    wire = tmp_path / f"{kind}.json"
    assert main(["label", "export", workdir, f"--out={wire}", f"--format={kind}"]) == 0
    assert main(["label", "import", str(wire), workdir, f"--format={kind}"]) == 0
  wrong = tmp_path / "wrong.csv"
  wrong.write_text("annotator,id,better\nann,nowhere,tie\n")
  assert main(["label", "import", str(wrong), workdir, "--format=table"]) == 1
  assert "wrong.csv" in capsys.readouterr().err
