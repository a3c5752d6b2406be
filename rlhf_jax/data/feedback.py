"""One schema for whatever people gave: the columns of a row say which form of feedback it is.

  form         columns                                          becomes
  pairs        prompt, chosen, rejected                         `Pair`
               chosen, rejected: whole texts or conversations   `Pair`, the shared beginning is the prompt
               + preference: chosen | rejected | tie | both_bad, or the probability of chosen
               + tie: true | false   + strength: -3 to 3, or a word of STRENGTHS   + margin: 0 or more
  rankings     prompt, responses (or completions), ranks        `Ranking`; 1 is best, null or 0 unranked
  ratings      prompt, response, rating                         `Rated` on the scale "rating"
               prompt, response, ratings: {name: number}        `Rated` on these scales; null is not given
               prompt, responses, scores                        k `Rated` on the scale "score"
  classes      prompt, response, class: a name or an int        `Classed`
  marks        prompt, completion (or response), label          `Labelled`; true or 1 is right
  corrections  prompt, response, correction                     `Correction`
  tokens       prompt, response, spans: [{start, end, label?, severity?}]     `Spanned`, by characters
               prompt, steps (or completions): texts, labels: true | false    `Stepped`; or the probability of true
  texts        prompt, response (or completion)                 `Text`
               text, or messages                                `Text` without a prompt

Every form takes `annotator`. Prompts and answers are texts, or lists of messages {"role", "content"}; beside a prompt of
messages an answer that is text is an assistant's turn. A row of one answer may give `messages` in place of
prompt and response: the answer is what follows the last user turn. Rows of several forms may share a file.

A strength s, positive where `chosen` is better, is a preference of sigmoid(s) and a margin of |s|: both say that the
rewards differ by s. `preference` and `margin` of the row go first. The better answer becomes `Pair.chosen`. "both_bad"
is two marks, wrong and wrong, and no pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.config import suggest
from rlhf_jax.data import fields, shared_prompt
from rlhf_jax.data.examples import Labelled, Pair, Ranking
from rlhf_jax.data.fields import Row
from rlhf_jax.data.texts import Classed, Correction, Rated, Span, Spanned, Stepped, Text, Turns

STRENGTHS = {
  "much worse": -3,
  "worse": -2,
  "slightly worse": -1,
  "negligibly": 0,
  "about the same": 0,
  "unsure": 0,
  "slightly": 1,
  "slightly better": 1,
  "better": 2,
  "much": 3,
  "much better": 3,
  "significantly better": 3,
}
PREFERENCES = {"chosen": 1.0, "rejected": 0.0, "tie": 0.5}

TextRecord = Text | Pair | Ranking | Rated | Classed | Labelled | Correction | Spanned | Stepped


class Layout(NamedTuple):
  """What a file's rows may be."""

  classes: tuple[str | int, ...] | None = ()  # the worst first; () takes ints, None takes any
  step_separator: str = "\n"  # between the steps of an answer


def parse(row: Row, id: str, layout: Layout, forms: Sequence[str] | None = None) -> list:
  """The records of one row. Raises ValueError that says what is wrong with it.

  `forms`: the only ones that the row may be; its other columns are then ignored.
  """
  return FORMS[form_of(row, forms)](row, id, layout)


def form_of(row: Row, forms: Sequence[str] | None = None) -> str:
  """The form whose columns `row` has; a row with columns of several is the first of them in SIGNS."""
  for form, signs in SIGNS:
    if (forms is None or form in forms) and any(sign <= row.keys() for sign in signs):
      return form
  if forms is not None:
    return forms[-1]  # which will name what is missing
  names = ", ".join(map(repr, row)) or "none"
  raise ValueError(f"its fields ({names}) are those of no form of feedback; see docs/feedback.md")


def prompt(row: Row, id: str) -> Text:
  """A prompt alone, of `prompt` or of `messages` that end before the assistant's turn."""
  if "prompt" in row or "messages" not in row:
    return Text(id, fields.content(row, "prompt"), ())
  turns = fields.content(row, "messages")
  if isinstance(turns, str) or turns[-1]["role"] == "assistant":
    raise ValueError("field 'messages' should end with a user turn, which the policy answers")
  return Text(id, turns, ())


# One function a form: (row, id, layout) -> records.


def texts(row: Row, id: str, layout: Layout) -> list[Text]:
  """A demonstration. Of `messages` every assistant turn is one."""
  for field in ("text", "messages"):
    if field in row and not {"response", "completion"} & row.keys():
      whole = fields.content(row, field)
      if not isinstance(whole, str):
        fields.assert_answered(whole, field)
      return [Text(id, "" if isinstance(whole, str) else (), whole)]
  return [_answer(row, id)]


def pairs(row: Row, id: str, layout: Layout) -> list[Pair | Labelled]:
  """One pair, the better answer first; or two marks where both are bad."""
  before, *sides = _sides(row)
  if sides[0] == sides[1]:
    raise ValueError("'chosen' and 'rejected' are the same text, so nothing is preferred")
  names = ("chosen", "rejected")
  first, second = (Text(f"{id}#{name}", before, s) for name, s in zip(names, sides, strict=True))
  annotator = _annotator(row)
  if row.get("preference") == "both_bad":
    return [Labelled(answer, (0.0,), annotator) for answer in (first, second)]
  probability, margin = _preference(row)
  if probability < 0.5:
    first, second, probability = second, first, 1 - probability
  return [Pair(first, second, probability, margin, annotator)]


def rankings(row: Row, id: str, layout: Layout) -> list[Ranking]:
  """k answers in order."""
  answers = _several(row, id, fields.either(row, "responses", "completions"))
  ranks = fields.values(row, "ranks", len(answers))
  for i, rank in enumerate(ranks):
    if fields.is_nan(rank):
      ranks[i] = None
    elif rank is not None and (not fields.is_number(rank) or rank != int(rank) or rank < 0):
      raise ValueError(f"ranks[{i}] is {rank!r}; 1 is the best, 0 or null is not ranked")
  ranks = tuple(int(rank or 0) for rank in ranks)
  if not any(ranks):
    raise ValueError("no answer is ranked, so nothing is preferred")
  return [Ranking(answers, ranks, _annotator(row))]


def ratings(row: Row, id: str, layout: Layout) -> list[Rated]:
  """An answer with its ratings; or several answers with a score each."""
  annotator = _annotator(row)
  if "scores" in row:
    answers = _several(row, id, fields.either(row, "responses", "completions"))
    scores = fields.values(row, "scores", len(answers))
    rated = [
      Rated(answer, {"score": fields.number(score, f"scores[{i}]")}, annotator)
      for i, (answer, score) in enumerate(zip(answers, scores, strict=True))
      if score is not None
    ]
    if not rated:
      raise ValueError("field 'scores' holds no number")
    return rated
  if "rating" in row:
    return [Rated(_answer(row, id), {"rating": fields.number(row["rating"], "rating")}, annotator)]
  given = row["ratings"]
  if not isinstance(given, Mapping):
    raise ValueError(
      f"field 'ratings' should be an object of numbers, not {fields.type_name(given)}"
    )
  numbers = {
    name: fields.number(value, f"ratings.{name}")
    for name, value in given.items()
    if value is not None
  }
  if not numbers:
    raise ValueError("field 'ratings' holds no number")
  return [Rated(_answer(row, id), numbers, annotator)]


def classes(row: Row, id: str, layout: Layout) -> list[Classed]:
  """An answer and its class, one of `layout.classes` if there are any."""
  value = row["class"]
  if fields.is_number(value) and value == int(value):
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise ValueError(f"class is {value!r}; it should be a name or a whole number")
  if layout.classes == () and isinstance(value, str):
    raise ValueError(f"class {value!r} has no place; set data.classes to all of them, worst first")
  if layout.classes:
    place = [str(known) for known in layout.classes]
    if str(value) not in place:
      raise ValueError(f"class {value!r} is not one of {', '.join(place)}")
    value = layout.classes[place.index(str(value))]
  return [Classed(_answer(row, id), value, _annotator(row))]


def marks(row: Row, id: str, layout: Layout) -> list[Labelled]:
  """Right (1) or wrong (0)."""
  return [Labelled(_answer(row, id), (fields.truth(row["label"], "label"),), _annotator(row))]


def corrections(row: Row, id: str, layout: Layout) -> list[Correction]:
  """An answer and its correction, which differ: what needed none is a mark."""
  original = _answer(row, f"{id}#response")
  corrected = _answer(row, f"{id}#correction", "correction")
  if original.key == corrected.key:
    raise ValueError(
      "'correction' is the response unchanged, so nothing is preferred; where that says it is right, "
      "give 'label': true instead"
    )
  return [Correction(original, corrected, _annotator(row))]


def tokens(row: Row, id: str, layout: Layout) -> list[Spanned | Stepped]:
  """Marked spans of an answer, or its labelled steps."""
  return [_spanned(row, id) if "spans" in row else _stepped(row, id, layout)]


FORMS: dict[str, Callable[[Row, str, Layout], list]] = {
  "texts": texts,
  "pairs": pairs,
  "rankings": rankings,
  "ratings": ratings,
  "classes": classes,
  "marks": marks,
  "corrections": corrections,
  "tokens": tokens,
}

# By which columns a form is known, the most telling first.
SIGNS: tuple[tuple[str, tuple[set[str], ...]], ...] = (
  ("pairs", ({"chosen"}, {"rejected"})),
  ("corrections", ({"correction"},)),
  ("tokens", ({"spans"}, {"steps"}, {"completions", "labels"})),
  ("ratings", ({"scores"}, {"rating"}, {"ratings"})),
  ("rankings", ({"ranks"}, {"responses"}, {"completions"})),
  ("classes", ({"class"},)),
  ("marks", ({"label"},)),
  ("texts", ({"text"}, {"messages"}, {"response"}, {"completion"})),
)


def _sides(row: Row) -> tuple[str | Turns, str | Turns, str | Turns]:
  """Prompt, chosen and rejected of a pair; the prompt is what the two share unless a column holds it."""
  chosen, rejected = fields.content(row, "chosen"), fields.content(row, "rejected")
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise ValueError("'chosen' and 'rejected' should both be texts, or both be lists of messages")
  if "prompt" in row and not fields.is_whole(chosen, row):
    before = fields.content(row, "prompt")
    first, second = (
      fields.joined(before, chosen, "chosen"),
      fields.joined(before, rejected, "rejected"),
    )
    return *first, second[1]
  if chosen == rejected:
    return "", chosen, rejected
  if isinstance(chosen, str):
    return shared_prompt.split_texts(chosen, rejected)
  for field, turns in (("chosen", chosen), ("rejected", rejected)):
    fields.assert_answered(turns, field)
  before, *rest = shared_prompt.split_turns(chosen, rejected)
  if any(turns[0]["role"] in ("user", "system") for turns in rest):
    raise ValueError("'chosen' and 'rejected' differ before an assistant's turn: two prompts")
  return before, *rest


def _preference(row: Row) -> tuple[float, float]:
  """(probability that `chosen` is better, by how much the better one is), from whatever the row says."""
  given, tie = row.get("preference"), row.get("tie", False)
  tie = fields.truth(tie, "tie") == 1 or given == "tie"
  strength = _strength(row["strength"]) if "strength" in row else None
  if tie and (strength or given not in (None, "tie", 0.5)):
    raise ValueError("a tie has no other preference and no strength; leave one of them out")
  if given == "chosen" and strength and strength < 0:
    raise ValueError(f"preference is 'chosen' and strength {row['strength']!r} says otherwise")
  if given == "rejected" and strength:
    strength = -abs(strength)
  if tie or (strength == 0 and given is None):
    probability = 0.5
  elif isinstance(given, str):
    if given not in PREFERENCES:
      raise ValueError(
        f"preference is {given!r}; it takes chosen, rejected, tie, both_bad or a number from 0 to 1"
      )
    probability = PREFERENCES[given] if strength is None else _sigmoid(strength)
  elif given is not None:
    probability = fields.number(given, "preference")
    if not 0 <= probability <= 1:
      raise ValueError(f"preference is {given}; a probability lies between 0 and 1")
  else:
    probability = 1.0 if strength is None else _sigmoid(strength)
  margin = fields.number(row["margin"], "margin") if "margin" in row else float(abs(strength or 0))
  if margin < 0:
    raise ValueError(f"margin is {margin}; it says by how much the better answer is, so 0 or more")
  return probability, 0.0 if probability == 0.5 else margin


def _strength(value) -> float:
  if isinstance(value, str):
    if value.strip().lower() not in STRENGTHS:
      raise ValueError(f"strength is {value!r}{suggest(value, STRENGTHS)}")
    return STRENGTHS[value.strip().lower()]
  if not -3 <= fields.number(value, "strength") <= 3:
    raise ValueError(f"strength is {value}; it lies between -3 and 3")
  return float(value)


def _spanned(row: Row, id: str) -> Spanned:
  answer = _one_text(_answer(row, id))
  size, spans = len(answer.answer_text), []
  for i, span in enumerate(fields.values(row, "spans")):
    where = f"spans[{i}]"
    if not isinstance(span, Mapping):
      raise ValueError(f'{where} should be an object: {{"start": 0, "end": 4}}')
    start, end = (span.get(name) for name in ("start", "end"))
    for name, place in (("start", start), ("end", end)):
      if not fields.is_number(place) or place != int(place):
        raise ValueError(f"{where}.{name} is {place!r}; it should count characters of the response")
    if end <= start:
      raise ValueError(f"{where} is empty: it goes from {start} to {end}")
    if start < 0 or end > size:
      raise ValueError(
        f"{where} goes from {start} to {end}, and the response has {size} characters"
      )
    severity = (
      1.0 if span.get("severity") is None else fields.number(span["severity"], f"{where}.severity")
    )
    if not 0 <= severity <= 1:
      raise ValueError(f"{where}.severity is {severity}; it lies between 0 and 1")
    spans.append(Span(int(start), int(end), 1 - severity))
  return Spanned(answer, tuple(spans), _annotator(row))


def _stepped(row: Row, id: str, layout: Layout) -> Stepped:
  field = fields.either(row, "steps", "completions")
  parts = fields.values(row, field)
  fields.assert_texts({f"{field}[{i}]": part for i, part in enumerate(parts)})
  labels = fields.values(row, "labels", len(parts))
  values = [
    math.nan if label is None else fields.share(label, f"labels[{i}]")
    for i, label in enumerate(labels)
  ]
  if all(map(math.isnan, values)):
    raise ValueError("no step has a label")
  spans, start = [], 0
  for part, value in zip(parts, values, strict=True):
    spans.append(Span(start, start + len(part), value))
    start += len(part) + len(layout.step_separator)
  before = fields.content(row, "prompt")
  text = Text(id, *fields.joined(before, layout.step_separator.join(parts), field))
  return Stepped(text, tuple(spans), _annotator(row))


def _several(row: Row, id: str, field: str) -> tuple[Text, ...]:
  """The answers in the list `field`, at least two."""
  given, before = fields.values(row, field), fields.content(row, "prompt")
  if len(given) < 2:
    raise ValueError(f"field {field!r} holds {len(given)} answers; it takes at least two")
  named = {f"{field}[{i}]": answer for i, answer in enumerate(given)}
  return tuple(
    Text(f"{id}#{i}", *fields.joined(before, fields.content(named, name), name))
    for i, name in enumerate(named, start=1)
  )


def _answer(row: Row, id: str, field: str | None = None) -> Text:
  """The one answer of a row: its `field`, else response, completion, or what ends its messages."""
  if field is None:
    field = "completion" if "completion" in row and "response" not in row else "response"
    if "messages" in row and not {"prompt", field} & row.keys():
      return Text(id, *fields.after_last_user(fields.content(row, "messages"), "messages"))
  answer = fields.content(row, field)
  if fields.is_whole(answer, row):
    return Text(id, *fields.after_last_user(answer, field))
  return Text(id, *fields.joined(fields.content(row, "prompt"), answer, field))


def _one_text(answer: Text) -> Text:
  if not isinstance(answer.response, str):
    if len(answer.response) != 1 or not isinstance(answer.response[0].get("content"), str):
      raise ValueError("spans need an answer of one assistant message, whose characters they count")
  return answer


def _annotator(row: Row) -> str:
  return str(row.get("annotator", ""))


def _sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x))
