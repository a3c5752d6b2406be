"""What annotators are asked: a folder with `project.toml`, the questions in it, and the items they are asked of.

    title = "Which review helps more?"
    guidelines = "guidelines.md"   # shown beside every item
    overlap = 2                    # how many annotators judge each item
    lease_seconds = 900            # an item that was handed out and not judged returns after that
    check_every = 10               # every tenth item of an annotator is one with a known answer; 0 for none

    [[questions]]
    name = "better"
    form = "pairs"
    text = "Which answer would you rather read?"

A judgement maps the name of each question to a value of its form (`QUESTIONS`). Values speak of answers by their place
in the item, whatever order they were shown in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.config import suggest
from rlhf_jax.data import jsonl

FILE = "project.toml"
MOST_ANSWERS = 10
LONGEST_TEXT = 100_000  # characters, of an answer or a correction


@dataclasses.dataclass(frozen=True)
class Question:
  """One question, asked of every item; the fields that are not of its form stay at their defaults."""

  name: str
  form: str  # of QUESTIONS
  text: str = ""
  optional: bool = False
  strength: bool = True  # pairs: whether to ask how much better
  scales: tuple[Mapping, ...] = ()  # ratings: {"name", "low", "high", "step"?}
  classes: tuple[str, ...] = ()  # classes: their names, the worst first
  categories: tuple[str, ...] = ()  # spans: what a marked passage may be


@dataclasses.dataclass(frozen=True)
class Project:
  title: str
  questions: tuple[Question, ...]
  guidelines: str = ""  # Markdown
  overlap: int = 1
  lease_seconds: int = 900
  check_every: int = 0
  step_separator: str = "\n"


class Item(NamedTuple):
  """A prompt with its answers, as annotators see it."""

  id: str
  prompt: Any  # text, or a list of messages {"role", "content"}
  answers: tuple[
    Mapping, ...
  ]  # {"content": text or messages, "model"?, "checkpoint"?, "sampling"?}
  known: Mapping | None = None  # a check item's judgement
  references: tuple[str, ...] = ()

  def as_json(self) -> dict:
    return {k: v for k, v in self._asdict().items() if v not in (None, ())}


def read(folder: Path) -> Project:
  """The project of `folder`. Raises FileNotFoundError or ValueError that names the file, the field and the remedy."""
  path = folder / FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist; make one with rlhf-jax label --workdir={folder} --items=items.jsonl --form=pairs."
    )
  try:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{path}: {error}") from error
  try:
    questions = tuple(_question(q, i) for i, q in enumerate(table.pop("questions", [])))
    _assert_fields(table, Project, "")
    guidelines = _guidelines(folder, table.pop("guidelines", ""))
    project = Project(questions=questions, guidelines=guidelines, **_typed(table, Project))
    _assert_sound(project)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return project


def items(path: Path, project: Project) -> list[Item]:
  """The items of a JSON Lines file. Raises FileNotFoundError, or ValueError that names the line and the field."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file; give the path of a JSON Lines file of items.")
  found = {}
  for number, row, problem in jsonl.lines(str(path)):
    where = f"{path}, line {number}"
    if problem:
      raise ValueError(f"{where}: {problem}")
    try:
      item = parse_item(row, project)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    if item.id in found:
      raise ValueError(f"{where}: an earlier line holds the item {item.id!r}; give each its own id")
    found[item.id] = item
  if not found:
    raise ValueError(
      f"{path} holds no item; each line should be an object with prompt and answers."
    )
  return list(found.values())


def parse_item(row: Mapping, project: Project) -> Item:
  """An item from a row `{"prompt", "answers", "id"?, "known"?, "references"?}`.

  Answers are texts, lists of messages, or objects with `content` beside what is known of their origin: `model`,
  `checkpoint`, `sampling`. Without an id it is the hash of prompt and answers.
  """
  unknown = set(row) - {"id", "prompt", "answers", "known", "references"}
  if unknown:
    raise ValueError(f"fields {', '.join(sorted(unknown))} are none of an item's")
  prompt = _content(row.get("prompt"), "prompt")
  given = row.get("answers")
  if not isinstance(given, Sequence) or isinstance(given, str) or not given:
    raise ValueError("field 'answers' should be a list of one answer or more")
  if len(given) > MOST_ANSWERS:
    raise ValueError(f"{len(given)} answers; an item holds at most {MOST_ANSWERS}")
  answers = tuple(_answer(answer, i) for i, answer in enumerate(given))
  id = row.get("id") or digest({"prompt": prompt, "answers": [a["content"] for a in answers]})
  if not isinstance(id, str) or len(id) > 200 or not id.isprintable():
    raise ValueError("field 'id' should be a text of at most 200 printable characters")
  references = row.get("references") or ()
  if isinstance(references, str) or not all(isinstance(r, str) for r in references):
    raise ValueError("field 'references' should be a list of texts")
  item = Item(id, prompt, answers, None, tuple(references))
  for question in project.questions:
    QUESTIONS[question.form].fits(question, item)
  known = row.get("known")
  if known is not None:
    item = item._replace(known=parse_judgement(project, item, known))
  return item


def parse_judgement(project: Project, item: Item, values: Any) -> dict:
  """What an annotator said of `item`: {name of question: value}. Raises ValueError that names the question and the field."""
  if not isinstance(values, Mapping):
    raise ValueError("a judgement should be an object with a value for each question")
  named = {question.name: question for question in project.questions}
  for name in values:
    if name not in named:
      raise ValueError(f"{name!r} is not a question of this project{suggest(name, named)}")
  said = {}
  for name, question in named.items():
    if values.get(name) is None:
      if question.optional:
        continue
      raise ValueError(f"question {name!r} is not answered")
    try:
      said[name] = QUESTIONS[question.form].parse(question, item, values[name], project)
    except ValueError as error:
      raise ValueError(f"question {name!r}: {error}") from error
  if not said:
    raise ValueError("no question is answered")
  return said


class Form(NamedTuple):
  fits: Callable  # (question, item) -> None; ValueError where it cannot be asked of the item
  parse: Callable  # (question, item, value, project) -> value; ValueError


# One function a form: what a value may be.


def _pairs(question: Question, item: Item, value, project: Project) -> dict:
  """{"choice": "first" | "second" | "tie" | "both_bad", "strength"?: 1 to 3}"""
  value = _object(value, {"choice", "strength"})
  choice = _one_of(value.get("choice"), ("first", "second", "tie", "both_bad"), "choice")
  strength = value.get("strength")
  if strength is None:
    return {"choice": choice}
  if choice not in ("first", "second"):
    raise ValueError(f"field 'strength' goes with a better answer, and 'choice' is {choice!r}")
  return {"choice": choice, "strength": _whole(strength, "strength", 1, 3)}


def _rankings(question: Question, item: Item, value, project: Project) -> dict:
  """{"ranks": one for each answer; 1 is best, equal ones tie, null is not ranked}"""
  ranks = _list(_object(value, {"ranks"}).get("ranks"), "ranks", len(item.answers))
  K = len(item.answers)
  ranks = [None if r is None else _whole(r, f"ranks[{i}]", 1, K) for i, r in enumerate(ranks)]
  if all(rank is None for rank in ranks):
    raise ValueError("field 'ranks' ranks no answer")
  return {"ranks": ranks}


def _ratings(question: Question, item: Item, value, project: Project) -> dict:
  """{name of scale: number within it}"""
  named = {scale["name"]: scale for scale in question.scales}
  value = _object(value, set(named))
  missing = [name for name in named if value.get(name) is None]
  if missing:
    raise ValueError(f"scale {missing[0]!r} is not rated")
  return {
    name: _number(value[name], name, scale["low"], scale["high"]) for name, scale in named.items()
  }


def _classes(question: Question, item: Item, value, project: Project) -> dict:
  """{"class": name}"""
  chosen = _object(value, {"class"}).get("class")
  return {"class": _one_of(chosen, question.classes, "class")}


def _marks(question: Question, item: Item, value, project: Project) -> dict:
  """{"label": true | false}"""
  return {"label": _boolean(_object(value, {"label"}).get("label"), "label")}


def _spans(question: Question, item: Item, value, project: Project) -> dict:
  """{"spans": [{"start", "end", "label"}]}, by characters of the answer; [] where nothing is to be marked"""
  spans = _list(_object(value, {"spans"}).get("spans"), "spans")
  length = len(text_of(item.answers[0]["content"]))
  parsed = []
  for i, span in enumerate(spans):
    span = _object(span, {"start", "end", "label"}, f"spans[{i}]")
    start = _whole(span.get("start"), f"spans[{i}].start", 0, length - 1)
    end = _whole(span.get("end"), f"spans[{i}].end", start + 1, length)
    label = _one_of(span.get("label"), question.categories, f"spans[{i}].label")
    parsed.append({"start": start, "end": end, "label": label})
  return {"spans": sorted(parsed, key=lambda s: (s["start"], s["end"], s["label"]))}


def _corrections(question: Question, item: Item, value, project: Project) -> dict:
  """{"text": the answer as it should be}; the answer itself where nothing is wrong with it"""
  text = _object(value, {"text"}).get("text")
  if not isinstance(text, str) or not text.strip():
    raise ValueError("field 'text' should be a text that is not empty")
  return {"text": writable(text, "text")}


def _steps(question: Question, item: Item, value, project: Project) -> dict:
  """{"labels": true | false | null for each step}"""
  count = len(steps_of(item, project))
  labels = _list(_object(value, {"labels"}).get("labels"), "labels", count)
  if all(label is None for label in labels):
    raise ValueError("field 'labels' marks no step")
  return {
    "labels": [None if x is None else _boolean(x, f"labels[{i}]") for i, x in enumerate(labels)]
  }


def _two_answers(question: Question, item: Item) -> None:
  if len(item.answers) != 2:
    raise ValueError(
      f"question {question.name!r} (pairs) compares two answers, and there are {len(item.answers)}"
    )


def _several_answers(question: Question, item: Item) -> None:
  if len(item.answers) < 2:
    raise ValueError(f"question {question.name!r} (rankings) ranks answers, and there is one")


def _one_answer(question: Question, item: Item) -> None:
  if len(item.answers) != 1:
    raise ValueError(
      f"question {question.name!r} ({question.form}) is asked of one answer, and there are {len(item.answers)}"
    )


def _one_text(question: Question, item: Item) -> None:
  _one_answer(question, item)
  if not isinstance(item.answers[0]["content"], str):
    raise ValueError(
      f"question {question.name!r} ({question.form}) is asked of an answer that is text, not messages"
    )


QUESTIONS = {
  "pairs": Form(_two_answers, _pairs),
  "rankings": Form(_several_answers, _rankings),
  "ratings": Form(_one_answer, _ratings),
  "classes": Form(_one_answer, _classes),
  "marks": Form(_one_answer, _marks),
  "spans": Form(_one_text, _spans),
  "corrections": Form(_one_text, _corrections),
  "steps": Form(_one_text, _steps),
}


def digest(value) -> str:
  """Twenty hexadecimal digits of the SHA-256 hash of a JSON value."""
  canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
  return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def text_of(content) -> str:
  """An answer as text: itself, or the contents of its messages."""
  return content if isinstance(content, str) else "\n\n".join(m["content"] for m in content)


def steps_of(item: Item, project: Project) -> list[str]:
  """The steps of an item's only answer."""
  parts = text_of(item.answers[0]["content"]).split(project.step_separator)
  return [part for part in parts if part.strip()]


def _question(table: Mapping, place: int) -> Question:
  where = f"questions[{place}]."
  if not isinstance(table, Mapping):
    raise ValueError(f"questions[{place}] should be a table")
  _assert_fields(table, Question, where)
  question = Question(**_typed(table, Question, where))
  if not question.name.isidentifier():
    raise ValueError(f"{where}name={question.name!r} should be a word of letters, digits and _")
  if question.form not in QUESTIONS:
    raise ValueError(
      f"{where}form={question.form!r} is not a form{suggest(question.form, QUESTIONS)}"
    )
  needs = {"ratings": "scales", "classes": "classes", "spans": "categories"}.get(question.form)
  if needs and not getattr(question, needs):
    raise ValueError(f"{where}{needs} is empty; a question of {question.form} needs it")
  for i, scale in enumerate(question.scales):
    if not isinstance(scale, Mapping) or not {"name", "low", "high"} <= set(scale):
      raise ValueError(f"{where}scales[{i}] should be a table with name, low and high")
    if not (isinstance(scale["name"], str) and scale["low"] < scale["high"]):
      raise ValueError(f"{where}scales[{i}]: low should be below high, and name a text")
  for field in ("classes", "categories"):
    names = getattr(question, field)
    if not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
      raise ValueError(f"{where}{field} should be different texts")
  return question


def _assert_sound(project: Project) -> None:
  if not project.questions:
    raise ValueError("there is no [[questions]] table, so nothing is asked")
  names = [question.name for question in project.questions]
  if len(set(names)) != len(names):
    raise ValueError(f"two questions have one name: {', '.join(names)}")
  for field, least in (("overlap", 1), ("lease_seconds", 1), ("check_every", 0)):
    if getattr(project, field) < least:
      raise ValueError(f"{field}={getattr(project, field)} should be at least {least}")


def _assert_fields(table: Mapping, cls, where: str) -> None:
  known = {f.name: f for f in dataclasses.fields(cls)}
  for name in table:
    if name not in known:
      raise ValueError(f"{where}{name} is not a field{suggest(name, known)}")
  for name, field in known.items():
    if field.default is dataclasses.MISSING and name not in table and name != "questions":
      raise ValueError(f"{where}{name} is missing")


def _typed(table: Mapping, cls, where: str = "") -> dict:
  """The fields of `table`, lists as tuples. Raises ValueError for one of another type than its default's."""
  defaults = {f.name: f.default for f in dataclasses.fields(cls)}
  typed = {}
  for name, value in table.items():
    value = tuple(value) if isinstance(value, list) else value
    wanted = str if defaults[name] is dataclasses.MISSING else type(defaults[name])
    if type(value) is not wanted:
      raise ValueError(f"{where}{name}={value!r} should be of type {wanted.__name__}")
    typed[name] = value
  return typed


def _guidelines(folder: Path, name) -> str:
  if not name:
    return ""
  path = folder / str(name)
  if path.resolve().parent != folder.resolve() or not path.is_file():
    raise ValueError(f"guidelines={name!r} is no file of that folder")
  return path.read_text(encoding="utf-8")


def _answer(answer, place: int) -> dict:
  where = f"answers[{place}]"
  if not isinstance(answer, Mapping):
    return {"content": _content(answer, where)}
  unknown = set(answer) - {"content", "model", "checkpoint", "sampling"}
  if unknown:
    raise ValueError(
      f"{where} has fields {', '.join(sorted(unknown))}, which are none of an answer's"
    )
  return {**answer, "content": _content(answer.get("content"), f"{where}.content")}


def _content(value, where: str):
  """A text, or messages. Raises ValueError for anything else."""
  if isinstance(value, str):
    return writable(value, where)
  if isinstance(value, Sequence) and value:
    for i, message in enumerate(value):
      good = isinstance(message, Mapping) and set(message) == {"role", "content"}
      if not good or not all(isinstance(x, str) for x in message.values()):
        raise ValueError(f"{where}[{i}] should be a message with role and content")
    return [
      {k: writable(x, f"{where}[{i}].{k}") for k, x in m.items()} for i, m in enumerate(value)
    ]
  raise ValueError(f"field {where!r} should be a text or a list of messages")


def writable(text: str, where: str, longest: int = LONGEST_TEXT) -> str:
  """`text` itself. Raises ValueError where it is too long or cannot be stored as UTF-8."""
  if len(text) > longest:
    raise ValueError(f"field {where!r} has {len(text)} characters; at most {longest}")
  if any("\ud800" <= c <= "\udfff" or c == "\0" for c in text):
    raise ValueError(f"field {where!r} holds a NUL or half of a character")
  return text


def _object(value, fields: set[str], where: str = "its value") -> Mapping:
  if not isinstance(value, Mapping):
    raise ValueError(f"{where} should be an object with {', '.join(sorted(fields))}")
  unknown = set(value) - fields
  if unknown:
    raise ValueError(
      f"{where} has a field {sorted(map(str, unknown))[0]!r}; known are {', '.join(sorted(fields))}"
    )
  return value


def _list(value, where: str, length: int | None = None) -> list:
  if not isinstance(value, list):
    raise ValueError(f"field {where!r} should be a list")
  if length is not None and len(value) != length:
    raise ValueError(f"field {where!r} has {len(value)} entries; it should have {length}")
  return value


def _one_of(value, choices: Sequence, where: str):
  if value not in choices:
    raise ValueError(
      f"field {where!r} is {_short(value)}; it should be one of {', '.join(map(str, choices))}"
    )
  return value


def _whole(value, where: str, low: int, high: int) -> int:
  if type(value) is not int or not low <= value <= high:
    raise ValueError(
      f"field {where!r} is {_short(value)}; it should be a whole number from {low} to {high}"
    )
  return value


def _number(value, where: str, low: float, high: float) -> float:
  good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  if not good or not low <= value <= high:
    raise ValueError(
      f"field {where!r} is {_short(value)}; it should be a number from {low} to {high}"
    )
  return value


def _boolean(value, where: str) -> bool:
  if not isinstance(value, bool):
    raise ValueError(f"field {where!r} is {_short(value)}; it should be true or false")
  return value


def _short(value) -> str:
  text = json.dumps(value, ensure_ascii=False, default=str)
  text = text.encode("utf-8", "replace").decode()  # half a character cannot be sent
  return text if len(text) <= 60 else text[:60] + "…"


def create(
  folder: Path,
  form: str,
  *,
  overlap: int = 1,
  scales: str | None = None,
  classes: str | None = None,
  categories: str | None = None,
) -> None:
  """Writes `project.toml` with one question of `form`. Raises FileExistsError where there is one.

  `scales` are "helpful:1:5,kind:1:5"; `classes` and `categories` are names with commas between them.
  """
  path = folder / FILE
  if path.exists():
    raise FileExistsError(
      f"{path} exists; leave --form out to serve it, or choose another workdir."
    )
  lists = {"classes": classes, "categories": categories}
  lines = [
    f"title = {json.dumps(TITLES[form])}",
    f"overlap = {overlap}",
    "",
    "[[questions]]",
    'name = "answer"' if form != "pairs" else 'name = "better"',
    f"form = {json.dumps(form)}",
    f"text = {json.dumps(TITLES[form])}",
    *(f"{name} = {json.dumps(text.split(','))}" for name, text in lists.items() if text),
  ]
  if scales:
    tables = ", ".join(_scale(text) for text in scales.split(","))
    lines.append(f"scales = [{tables}]")
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  try:
    read(folder)
  except ValueError:
    path.unlink()
    raise


TITLES = {
  "pairs": "Which answer is better?",
  "rankings": "Rank the answers, the best first.",
  "ratings": "How good is the answer?",
  "classes": "How good is the answer?",
  "marks": "Is the answer right?",
  "spans": "Mark what is wrong in the answer.",
  "corrections": "Correct the answer.",
  "steps": "Which steps are right?",
}


def _scale(text: str) -> str:
  parts = text.split(":")
  if len(parts) != 3 or not all(p.lstrip("-").isdigit() for p in parts[1:]):
    raise ValueError(f"scale {text!r} should look like helpful:1:5, a name and two whole numbers")
  return f"{{ name = {json.dumps(parts[0])}, low = {parts[1]}, high = {parts[2]} }}"
