"""Records of texts as rows in the layouts that `data/feedback.py` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data.examples import Labelled, Pair, Ranking
from rlhf_jax.data.scales import Scales
from rlhf_jax.data.texts import Text


def rows(records: Sequence, form: str, scales: Scales) -> list[dict[str, Any]]:
  """A row a record of `form`; ratings on their own scales again, classes by their names."""
  return [_ROW[form](record, scales) | _annotator(record) for record in records]


def dataset(rows: Sequence[dict[str, Any]]):
  """Rows as a `datasets.Dataset`; a column that a row lacks is null there.

  Raises ValueError for a column that holds texts in some rows and lists in others, which a table cannot.
  """
  import datasets

  columns = dict.fromkeys(name for row in rows for name in row)
  for name in columns:
    kinds = {type(row[name]).__name__ for row in rows if row.get(name) is not None}
    if len(kinds - {"int"} if "float" in kinds else kinds) > 1:
      raise ValueError(
        f"column {name!r} holds {' and '.join(sorted(kinds))}, and a table has one type a column; write JSON Lines."
      )
  return datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])


def _pair(pair: Pair, scales: Scales) -> dict[str, Any]:
  row = {"chosen": pair.chosen.response, "rejected": pair.rejected.response}
  given = {"preference": pair.preference} if pair.preference != 1 else {}
  return _prompt(pair.chosen) | row | given | ({"margin": pair.margin} if pair.margin else {})


def _ranking(ranking: Ranking, scales: Scales) -> dict[str, Any]:
  responses = [answer.response for answer in ranking.answers]
  return _prompt(ranking.answers[0]) | {"responses": responses, "ranks": list(ranking.ranks)}


def _rating(record: Labelled, scales: Scales) -> dict[str, Any]:
  """A class that became a rating is on no scale of the file's."""
  raw = scales.raw(record.labels) if scales.attributes else {"class": record.labels[0]}
  return _text(record.answer, scales) | {"ratings": raw}


def _class(record: Labelled, scales: Scales) -> dict[str, Any]:
  place = int(record.labels[0])
  return _text(record.answer, scales) | {
    "class": scales.classes[place] if scales.classes else place
  }


def _mark(record: Labelled, scales: Scales) -> dict[str, Any]:
  answer = {"completion": record.answer.response, "label": bool(record.labels[0])}
  return _prompt(record.answer) | answer


def _text(text: Text, scales: Scales) -> dict[str, Any]:
  if text.prompt:
    return _prompt(text) | {"response": text.response}
  return {"text" if isinstance(text.response, str) else "messages": text.response}


def _prompt(text: Text) -> dict[str, Any]:
  return {"prompt": text.prompt} if text.prompt else {}


def _annotator(record) -> dict[str, Any]:
  name = getattr(record, "annotator", "")
  return {"annotator": name} if name else {}


_ROW: dict[str, Callable[[Any, Scales], dict[str, Any]]] = {
  "pairs": _pair,
  "rankings": _ranking,
  "ratings": _rating,
  "classes": _class,
  "marks": _mark,
  "texts": _text,
}
