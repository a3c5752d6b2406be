"""Judgements in the formats of other tools, both ways: Argilla's records, Label Studio's tasks, and a table for crowd work.

Reading gives `Said`s, which `Store.take_in` adds as events; writing needs a store's items and judgements. Places in an item are
"answer_1", "answer_2", … in all three. A value that the other tool has no type for goes as JSON in a text.

| | Argilla 2 | Label Studio | table |
|---|---|---|---|
| pairs | a label: answer_1, answer_2, tie, both_bad | choices | that word |
| rankings | ranking: value, rank | ranker | JSON |
| ratings | a rating a scale, `question.scale` | rating, or number | a column a scale |
| classes, marks | a label | choices | that word |
| spans | span | labels | JSON |
| corrections | text | textarea | text |
| steps | a text of JSON | a textarea of JSON | JSON |

A pair's strength is a rating `question.strength`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.feedback.export import Judgement
from rlhf_jax.feedback.project import Item, Project, Question, parse_judgement, text_of

NOTHING = "nothing to mark"  # in Label Studio, where an empty list of labels is no answer


class Said(NamedTuple):
  """What somebody said of an item, in another tool."""

  item: str
  annotator: str
  said: dict


# Every value becomes plain fields of simple types, {name: text | number | list}, which the tools differ in wrapping.


def flat(question: Question, value: Mapping) -> dict[str, Any]:
  """A judgement's value as fields `question` and `question.part`."""
  name = question.name
  if question.form == "pairs":
    fields = {name: _places.get(value["choice"], value["choice"])}
    return fields | ({f"{name}.strength": value["strength"]} if "strength" in value else {})
  if question.form == "ratings":
    return {f"{name}.{scale}": rating for scale, rating in value.items()}
  if question.form == "marks":
    return {name: "right" if value["label"] else "wrong"}
  (only,) = value.values()  # class, text, ranks, spans or labels
  return {name: only}


def deep(question: Question, fields: Mapping[str, Any]) -> dict | None:
  """The value that `flat` made `fields` of; None where the question is not answered."""
  name = question.name
  if question.form == "ratings":
    rated = {
      s["name"]: fields[f"{name}.{s['name']}"]
      for s in question.scales
      if f"{name}.{s['name']}" in fields
    }
    return rated or None
  if fields.get(name) in (None, ""):
    return None
  value = fields[name]
  if question.form == "pairs":
    said = {"choice": {place: choice for choice, place in _places.items()}.get(value, value)}
    strength = fields.get(f"{name}.strength")
    return said if strength is None else {**said, "strength": strength}
  if question.form == "marks":
    return {"label": {"right": True, "wrong": False}.get(value, value)}
  field = {"classes": "class", "corrections": "text", "rankings": "ranks", "spans": "spans"}
  return {field.get(question.form, "labels"): value}


_places = {"first": "answer_1", "second": "answer_2"}


def answers(item: Item) -> dict[str, str]:
  """{"answer_1": text, …}"""
  return {f"answer_{i}": text_of(a["content"]) for i, a in enumerate(item.answers, start=1)}


# Argilla.


def to_argilla(found: Sequence[Judgement], project: Project) -> list[dict]:
  """Records as `rg.Record.to_dict` has them, for a dataset with a field for the prompt and one for each answer."""
  records: dict[str, dict] = {}
  for j in found:
    record = records.setdefault(
      j.item.id,
      {
        "id": j.item.id,
        "fields": {"prompt": text_of(j.item.prompt), **answers(j.item)},
        "metadata": {},
        "suggestions": {},
        "responses": {},
        "vectors": {},
      },
    )
    for question in project.questions:
      if question.name in j.said:
        for name, value in flat(question, j.said[question.name]).items():
          said = {"value": _ARGILLA.get(question.form, _same).out(value), "user_id": j.annotator}
          record["responses"].setdefault(name, []).append(said)
  return list(records.values())


def from_argilla(records: Sequence[Mapping], project: Project) -> list[Said]:
  """Raises ValueError that names the record."""
  found = []
  for record in records:
    fields: dict[str, dict] = {}
    for name, responses in record.get("responses", {}).items():
      for response in responses:
        fields.setdefault(str(response["user_id"]), {})[name] = response["value"]
    for annotator, given in fields.items():
      found.append(_said(record["id"], annotator, given, project, _ARGILLA))
  return found


# Label Studio.


def to_label_studio(found: Sequence[Judgement], project: Project) -> list[dict]:
  """Tasks as its JSON export has them; `label_studio_config` is the interface that shows them."""
  tasks: dict[str, dict] = {}
  for j in found:
    data = {"id": j.item.id, "prompt": text_of(j.item.prompt), **answers(j.item)}
    task = tasks.setdefault(j.item.id, {"data": data, "annotations": []})
    result = []
    for question in project.questions:
      if question.name in j.said:
        for name, value in flat(question, j.said[question.name]).items():
          result += _studio_results(question, name, value, data)
    task["annotations"].append({"completed_by": {"email": j.annotator}, "result": result})
  return list(tasks.values())


def from_label_studio(tasks: Sequence[Mapping], project: Project) -> list[Said]:
  """Raises ValueError that names the task."""
  found = []
  for task in tasks:
    for annotation in task.get("annotations", []):
      who = annotation.get("completed_by", "")
      annotator = str(who.get("email", who.get("id", "")) if isinstance(who, Mapping) else who)
      fields: dict[str, Any] = {}
      for result in annotation.get("result", []):
        name, value = result["from_name"], result["value"]
        if "labels" in value and "start" in value:
          span = {"start": value["start"], "end": value["end"], "label": value["labels"][0]}
          fields.setdefault(name, []).append(span)
        else:
          said = _studio_value(value)
          fields[name] = [] if said == NOTHING else said
      found.append(_said(task["data"]["id"], annotator, fields, project, _STUDIO))
  return found


def label_studio_config(project: Project, answers: int) -> str:
  """The labelling interface of a project, in Label Studio's XML."""
  names = [f"answer_{i}" for i in range(1, answers + 1)]
  lines = ["<View>", '  <Text name="prompt" value="$prompt"/>']
  lines += [f'  <Text name="{name}" value="${name}"/>' for name in names]
  choose = lambda name, options: [
    f'  <Choices name="{name}" toName="answer_1" choice="single">',
    *(f'    <Choice value="{option}"/>' for option in options),
    "  </Choices>",
  ]
  for q in project.questions:
    if q.form == "pairs":
      lines += choose(q.name, [*names, "tie", "both_bad"])
      lines += (
        [f'  <Rating name="{q.name}.strength" toName="answer_1" maxRating="3"/>']
        if q.strength
        else []
      )
    elif q.form in ("classes", "marks"):
      lines += choose(q.name, q.classes or ("right", "wrong"))
    elif q.form == "ratings":
      lines += [
        f'  <Number name="{q.name}.{s["name"]}" toName="answer_1" min="{s["low"]}" max="{s["high"]}"/>'
        for s in q.scales
      ]
    elif q.form == "spans":
      lines.append(f'  <Labels name="{q.name}" toName="answer_1">')
      lines += [f'    <Label value="{name}"/>' for name in q.categories] + ["  </Labels>"]
    else:
      lines.append(f'  <TextArea name="{q.name}" toName="answer_1" maxSubmissions="1"/>')
  return "\n".join([*lines, "</View>"]) + "\n"


# A table, for platforms of crowd work.


def to_table(items: Sequence[Item]) -> str:
  """CSV that a platform makes tasks of: id, prompt and answers."""
  most = max(len(item.answers) for item in items)
  columns = ["id", "prompt", *(f"answer_{i}" for i in range(1, most + 1))]
  out = io.StringIO()
  writer = csv.DictWriter(out, columns, restval="", lineterminator="\r\n")
  writer.writeheader()
  for item in items:
    writer.writerow({"id": item.id, "prompt": text_of(item.prompt), **answers(item)})
  return out.getvalue()


def from_table(text: str, project: Project) -> list[Said]:
  """CSV that a platform gives back: Input.id or id, WorkerId or annotator, and Answer.QUESTION or QUESTION.

  Rows whose AssignmentStatus is Rejected are left out. Raises ValueError that names the line and the column.
  """
  found = []
  for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
    if row.get("AssignmentStatus", "") == "Rejected":
      continue
    item = row.get("Input.id") or row.get("id")
    annotator = row.get("WorkerId") or row.get("annotator")
    for value, what in ((item, "Input.id or id"), (annotator, "WorkerId or annotator")):
      if not value:
        raise ValueError(f"line {number}: there is no {what}")
    given = {
      name.removeprefix("Answer."): v for name, v in row.items() if name and v not in (None, "")
    }
    try:
      found.append(_said(item, annotator, given, project, _TABLE))
    except ValueError as error:
      raise ValueError(f"line {number}: {error}") from error
  return found


class _Wrapping(NamedTuple):
  """How one tool writes the value of a field, and how it is read again."""

  out: Callable = lambda value: value
  back: Callable = lambda value: value


_same = _Wrapping()
_json = _Wrapping(json.dumps, lambda text: json.loads(text) if isinstance(text, str) else text)
_ranked = lambda ranks: [
  {"value": f"answer_{i}", "rank": rank} for i, rank in enumerate(ranks, 1) if rank is not None
]


def _ranks(ranked: Sequence[Mapping]) -> list[int | None]:
  """Of every answer up to the last that is ranked."""
  by_place = {int(r["value"].removeprefix("answer_")): r["rank"] for r in ranked}
  return [by_place.get(i) for i in range(1, max(by_place, default=0) + 1)]


_ARGILLA = {"rankings": _Wrapping(_ranked, _ranks), "steps": _json}
_STUDIO = {"rankings": _json, "steps": _json}
_number = _Wrapping(str, lambda text: _read_number(text))
_TABLE = {"rankings": _json, "steps": _json, "spans": _json, "ratings": _number, "pairs": _number}


def _read_number(text):
  try:
    number = float(text)
  except (TypeError, ValueError):
    return text
  return int(number) if number.is_integer() else number


def _said(item: str, annotator: str, fields: Mapping, project: Project, wraps: Mapping) -> Said:
  values = {}
  for question in project.questions:
    own = {
      n: v for n, v in fields.items() if n == question.name or n.startswith(f"{question.name}.")
    }
    try:
      own = {n: wraps.get(question.form, _same).back(v) for n, v in own.items()}
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"item {item!r}, question {question.name!r}: {error}") from error
    value = deep(question, own)
    if value is not None:
      values[question.name] = value
  return Said(str(item), str(annotator), values)


def checked(found: Sequence[Said], items: Mapping[str, Item], project: Project) -> list[Said]:
  """The same, every judgement parsed. Raises ValueError for one of an unknown item or of another form."""
  result = []
  for said in found:
    if said.item not in items:
      raise ValueError(f"item {said.item!r} is not in this project; add its items first")
    item = items[said.item]
    values = dict(said.said)
    for question in project.questions:  # answers after the last ranked one are not ranked
      if question.form == "rankings" and question.name in values:
        ranks = list(values[question.name]["ranks"])
        values[question.name] = {"ranks": ranks + [None] * (len(item.answers) - len(ranks))}
    try:
      result.append(said._replace(said=parse_judgement(project, item, values)))
    except ValueError as error:
      raise ValueError(f"item {said.item!r}, annotator {said.annotator!r}: {error}") from error
  return result


def _studio_results(question: Question, name: str, value, data: Mapping) -> list[dict]:
  def result(kind, value):
    return {"from_name": name, "to_name": "answer_1", "type": kind, "value": value}

  if question.form == "spans":
    if not value:
      return [result("choices", {"choices": [NOTHING]})]
    text = data["answer_1"]
    return [
      result("labels", {**_span(s), "text": text[s["start"] : s["end"]], "labels": [s["label"]]})
      for s in value
    ]
  if question.form in _STUDIO:
    return [result("textarea", {"text": [json.dumps(value)]})]
  if question.form == "corrections":
    return [result("textarea", {"text": [value]})]
  if question.form == "ratings":
    return [result("number", {"number": value})]
  if name.endswith(".strength"):
    return [result("rating", {"rating": value})]
  return [result("choices", {"choices": [value]})]


def _span(span: Mapping) -> dict:
  return {"start": span["start"], "end": span["end"]}


def _studio_value(value: Mapping):
  for kind in ("choices", "text"):
    if kind in value:
      said = value[kind]
      return said[0] if isinstance(said, list) else said
  for kind in ("rating", "number"):
    if kind in value:
      return value[kind]
  raise ValueError(f"a result with {', '.join(value)} is not known")
