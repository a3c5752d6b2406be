"""What a store says now, as feedback to learn from: rows of the forms in `data/feedback.py`.

The same judgements give the same bytes: rows stand in the order of items, annotators and questions, with sorted fields.
`jsonl` gives their SHA-256 hash too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data import write
from rlhf_jax.feedback.project import Item, Project, steps_of, text_of
from rlhf_jax.feedback.store import Store


class Judgement(NamedTuple):
  """What counts of what an annotator said of an item: neither taken back nor said again later."""

  item: Item
  annotator: str
  said: dict  # question -> value
  shown: list[int]
  at: float
  client_ms: float
  comment: str


def judgements(store: Store, *, checks: bool = False) -> list[Judgement]:
  """All that counts, in the order of items and annotators; with `checks` of check items too."""
  counting: dict[tuple[str, str], Any] = {}
  for event in store.events():
    place = (event.item, event.annotator)
    if event.kind == "judged":
      counting[place] = event
    elif event.kind in ("undone", "skipped", "flagged"):
      counting.pop(place, None)
  items = {item.id: (place, item) for place, item in enumerate(store.items())}
  found = []
  for id, name in sorted(counting, key=lambda place: (items[place[0]][0], place[1])):
    item, event = items[id][1], counting[id, name]
    if item.known is None or checks:
      p = event.payload
      said = (p["said"], p["shown"], event.at, p["client_ms"], p["comment"])
      found.append(Judgement(item, name, *said))
  return found


def adjudicated(store: Store) -> dict[str, tuple[str, dict]]:
  """Of each item that was decided: by whom, and how, in the last word on it."""
  decided = {}
  for event in store.events():
    if event.kind == "adjudicated":
      decided[event.item] = (event.annotator, event.payload["said"])
  return decided


def rows(store: Store) -> list[dict]:
  """One row for every question that an annotator answered; of a decided item only the decision."""
  decided, made = adjudicated(store), []
  project, done = store.project, set()
  for judgement in judgements(store):
    item, annotator, said = judgement.item, judgement.annotator, judgement.said
    if item.id in decided:
      if item.id in done:
        continue
      annotator, said = decided[item.id]
    done.add(item.id)
    for question in project.questions:
      if question.name in said:
        row = ROWS[question.form](item, said[question.name], project)
        origin = [{k: x for k, x in a.items() if k != "content"} for a in item.answers]
        about = {"item": item.id, "question": question.name, "annotator": annotator}
        if any(origin):
          about["answers_from"] = origin
        if judgement.comment and item.id not in decided:
          about["comment"] = judgement.comment
        made.append({"prompt": item.prompt, **row, **about})
  return made


def jsonl(store: Store) -> tuple[bytes, str]:
  """`rows` as JSON Lines, and their SHA-256 hash in hexadecimal digits."""
  return as_jsonl(rows(store))


def as_jsonl(found: Sequence[Mapping]) -> tuple[bytes, str]:
  """Rows as JSON Lines with sorted fields, and the hash of these bytes."""
  lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in found)
  data = "".join(lines).encode()
  return data, hashlib.sha256(data).hexdigest()


def as_dataset(found: Sequence[Mapping]):
  """Rows as a `datasets.Dataset`. Raises ValueError where one column would hold texts and messages."""
  return write.dataset([dict(sorted(row.items())) for row in found])


# One function a form: the columns of a judgement, by `data/feedback.py`.


def _pairs(item: Item, value: dict, project: Project) -> dict:
  first, second = (answer["content"] for answer in item.answers)
  if value["choice"] == "second":
    first, second = second, first
  decided = value["choice"] in ("first", "second")
  row = {"chosen": first, "rejected": second}
  row["preference"] = "chosen" if decided else value["choice"]
  if "strength" in value:
    del row["preference"]
    row["strength"] = value["strength"]
  return row


def _one(columns: Callable[[dict], dict]) -> Callable:
  """The row of a question about the only answer."""
  return lambda item, value, project: {
    "response": item.answers[0]["content"],
    **columns(value),
  }


def _corrections(item: Item, value: dict, project: Project) -> dict:
  response = text_of(item.answers[0]["content"])
  if value["text"] == response:  # nothing to correct: the answer is right as it is
    return {"response": response, "label": True}
  return {"response": response, "correction": value["text"]}


def _steps(item: Item, value: dict, project: Project) -> dict:
  return {"steps": steps_of(item, project), "labels": value["labels"]}


ROWS = {
  "pairs": _pairs,
  "rankings": lambda item, value, project: {
    "responses": [answer["content"] for answer in item.answers],
    "ranks": value["ranks"],
  },
  "ratings": _one(lambda value: {"ratings": value}),
  "classes": _one(lambda value: {"class": value["class"]}),
  "marks": _one(lambda value: {"label": value["label"]}),
  "spans": _one(lambda value: {"spans": value["spans"]}),
  "corrections": _corrections,
  "steps": _steps,
}
