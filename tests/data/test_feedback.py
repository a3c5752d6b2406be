"""Every layout of feedback from every kind of file, and what a bad row is told."""

import json
import math
import re
from pathlib import Path

import pytest
from some_files import KINDS, write

from rlhf_jax.data import feedback, files
from rlhf_jax.data.examples import Labelled, Pair, Ranking
from rlhf_jax.data.feedback import Layout
from rlhf_jax.data.texts import Classed, Correction, Rated, Span, Spanned, Stepped, Text

USER, OTHER = {"role": "user", "content": "Q"}, {"role": "user", "content": "Q2"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}


def text(id, response="yes", prompt="Q"):
  return Text(id, prompt, response)


def pair(*more, chosen="yes", rejected="no", prompt="Q"):
  return Pair(text("r#chosen", chosen, prompt), text("r#rejected", rejected, prompt), *more)


TURNS = dict(chosen=(YES,), rejected=(NO,), prompt=(USER,))
# name: a row with the id "r" -> its records
LAYOUTS = {
  "pairs": (dict(prompt="Q", chosen="yes", rejected="no"), [pair()]),
  "pairs of messages": (dict(prompt=[USER], chosen=[YES], rejected=[NO]), [pair(**TURNS)]),
  "pairs of texts beside messages": (
    dict(prompt=[USER], chosen="yes", rejected="no"),
    [pair(**TURNS)],
  ),
  "pairs of whole conversations": (dict(chosen=[USER, YES], rejected=[USER, NO]), [pair(**TURNS)]),
  "pairs of conversations whose prompt is said twice": (
    dict(prompt="Q", chosen=[USER, YES], rejected=[USER, NO]),
    [pair(**TURNS)],
  ),
  "pairs of conversations whose first turns are said twice": (
    dict(prompt=[USER], chosen=[USER, YES], rejected=[USER, NO]),
    [pair(**TURNS)],
  ),
  "pairs of turns that a user begins": (
    dict(prompt=[USER, NO], chosen=[OTHER, YES], rejected=[OTHER, NO]),
    [pair(chosen=(OTHER, YES), rejected=(OTHER, NO), prompt=(USER, NO))],
  ),
  "a completion that is a whole conversation": (
    dict(prompt="Q2", completion=[USER, NO, OTHER, YES], label=True),
    [Labelled(text("r", (YES,), (USER, NO, OTHER)), (1.0,))],
  ),
  "pairs of whole texts": (
    dict(chosen="Q A: yes", rejected="Q A: no"),
    [pair(chosen=" yes", rejected=" no", prompt="Q A:")],
  ),
  "pairs with margin and annotator": (
    dict(prompt="Q", chosen="yes", rejected="no", margin=1.5, annotator="ann"),
    [pair(1.0, 1.5, "ann")],
  ),
  "a tie": (dict(prompt="Q", chosen="yes", rejected="no", tie=True), [pair(0.5)]),
  "both bad": (
    dict(prompt="Q", chosen="yes", rejected="no", preference="both_bad", annotator="ann"),
    [
      Labelled(text("r#chosen"), (0.0,), "ann"),
      Labelled(text("r#rejected", "no"), (0.0,), "ann"),
    ],
  ),
  "rankings": (
    dict(prompt="Q", responses=["a", "b", "c", "d"], ranks=[2, 1, None, 2]),
    [Ranking(tuple(text(f"r#{i}", a) for i, a in enumerate("abcd", 1)), (2, 1, 0, 2))],
  ),
  "rankings of completions": (
    dict(prompt="Q", completions=["a", "b"], ranks=[1, 2], annotator="bob"),
    [Ranking((text("r#1", "a"), text("r#2", "b")), (1, 2), "bob")],
  ),
  "rankings of messages": (
    dict(prompt=[USER], responses=[[YES], [NO]], ranks=[1, 2]),
    [Ranking((text("r#1", (YES,), (USER,)), text("r#2", (NO,), (USER,))), (1, 2))],
  ),
  "scores": (
    dict(prompt="Q", responses=["a", "b", "c"], scores=[0.5, None, -2]),
    [Rated(text("r#1", "a"), {"score": 0.5}), Rated(text("r#3", "c"), {"score": -2.0})],
  ),
  "ratings": (
    dict(prompt="Q", response="yes", rating=4),
    [Rated(text("r"), {"rating": 4.0})],
  ),
  "ratings on several scales": (
    dict(prompt="Q", response="yes", ratings={"help": 4, "kind": None, "true": 0.5}),
    [Rated(text("r"), {"help": 4.0, "true": 0.5})],
  ),
  "ratings of a conversation": (
    dict(messages=[USER, NO, OTHER, YES], rating=1),
    [Rated(text("r", (YES,), (USER, NO, OTHER)), {"rating": 1.0})],
  ),
  "classes": (dict(prompt="Q", response="yes", **{"class": "fair"}), [Classed(text("r"), "fair")]),
  "marks": (dict(prompt="Q", completion="yes", label=True), [Labelled(text("r"), (1.0,))]),
  "marks by number": (dict(prompt="Q", completion="yes", label=0), [Labelled(text("r"), (0.0,))]),
  "corrections": (
    dict(prompt="Q", response="yse", correction="yes"),
    [Correction(text("r#response", "yse"), text("r#correction"))],
  ),
  "spans": (
    dict(
      prompt="Q", response="yes", spans=[{"start": 0, "end": 2}, {"start": 2, "end": 3, "severity": 0.25}]
    ),
    [Spanned(text("r"), (Span(0, 2, 0.0), Span(2, 3, 0.75)))],
  ),
  "no spans": (dict(prompt="Q", response="yes", spans=[]), [Spanned(text("r"), ())]),
  "steps": (
    dict(prompt="Q", steps=["a", "bc"], labels=[True, False]),
    [Stepped(text("r", "a\nbc"), (Span(0, 1, 1.0), Span(2, 4, 0.0)))],
  ),
  "steps called completions": (
    dict(prompt="Q", completions=["a", "bc"], labels=[True, False]),
    [Stepped(text("r", "a\nbc"), (Span(0, 1, 1.0), Span(2, 4, 0.0)))],
  ),
  "steps by how likely they are right": (
    dict(prompt="Q", steps=["a", "bc"], labels=[0.25, 1.0]),
    [Stepped(text("r", "a\nbc"), (Span(0, 1, 0.25), Span(2, 4, 1.0)))],
  ),
  "the best of some answers": (
    dict(prompt="Q", responses=["a", "b"], ranks=[None, 1]),
    [Ranking((text("r#1", "a"), text("r#2", "b")), (0, 1))],
  ),
  "a demonstration": (dict(prompt="Q", response="yes"), [text("r")]),
  "a completion": (dict(prompt="Q", completion="yes"), [text("r")]),
  "a text": (dict(text="yes"), [text("r", prompt="")]),
  "messages": (dict(messages=[USER, YES]), [text("r", (USER, YES), ())]),
}  # fmt: skip
LAYOUT = Layout(("poor", "fair", "good"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_becomes_the_records_of_its_form(name):
  row, records = LAYOUTS[name]
  given = {field: value for field, value in row.items() if value is not None}
  assert feedback.parse(given, "r", LAYOUT) == records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_file_holds_every_layout(name, kind, tmp_path):
  row, records = LAYOUTS[name]
  path = write(tmp_path, kind, [row])
  found = files.load(path, lambda row, id: feedback.parse(row, "r", LAYOUT))
  assert (found.items, found.problems) == (records, [])


def test_rows_of_several_forms_share_a_table(tmp_path):
  plain = {  # a column of a table has one type
    name: (row, records)
    for name, (row, records) in LAYOUTS.items()
    if not any(isinstance(v, list | dict) for v in row.values()) and name != "marks by number"
  }
  rows = [row for row, _ in plain.values()]
  records = [record for _, found in plain.values() for record in found]
  for kind in KINDS:
    found = files.load(write(tmp_path, kind, rows), lambda r, id: feedback.parse(r, "r", LAYOUT))
    assert len(rows) > 10 and (found.items, found.problems) == (records, []), kind


DOCUMENTED = re.findall(  # of the table in docs/feedback.md: form or nothing, and a row
  r"^\| (\w*) ?\|[^|]*\| `(\{.*?\})` \|",
  (Path(__file__).parents[2] / "docs" / "feedback.md").read_text(encoding="utf-8"),
  re.MULTILINE,
)


def test_the_rows_of_the_documentation_are_of_the_forms_it_says():
  form, seen = "", set()
  for name, row in DOCUMENTED:
    form = name or form
    seen.add(form)
    if form == "prompts":
      assert feedback.prompt(json.loads(row), "r").prompt == "2+2?"
    else:
      assert feedback.form_of(json.loads(row)) == form and feedback.parse(
        json.loads(row), "r", LAYOUT
      )
  assert seen == {*feedback.FORMS, "prompts"} and len(DOCUMENTED) == 14


SIGMOID = {s: 1 / (1 + math.exp(-s)) for s in (1, 2, 3)}


@pytest.mark.parametrize(
  "given, expected",
  [  # preference, margin, and whether the sides change places
    (dict(strength=2), (SIGMOID[2], 2.0, False)),
    (dict(strength=-3), (SIGMOID[3], 3.0, True)),
    (dict(strength="slightly"), (SIGMOID[1], 1.0, False)),
    (dict(strength="Much worse"), (SIGMOID[3], 3.0, True)),
    (dict(strength=0), (0.5, 0.0, False)),
    (dict(strength="about the same"), (0.5, 0.0, False)),
    (dict(preference="chosen"), (1.0, 0.0, False)),
    (dict(preference="rejected"), (1.0, 0.0, True)),
    (dict(preference="rejected", strength=2), (SIGMOID[2], 2.0, True)),
    (dict(preference="rejected", strength=-2), (SIGMOID[2], 2.0, True)),
    (dict(preference="tie"), (0.5, 0.0, False)),
    (dict(preference=0.75), (0.75, 0.0, False)),
    (dict(preference=0.25, margin=1), (0.75, 1.0, True)),
    (dict(preference=0.75, strength=3), (0.75, 3.0, False)),
    (dict(strength=1, margin=0.5), (SIGMOID[1], 0.5, False)),
    (dict(tie=False, strength=1), (SIGMOID[1], 1.0, False)),
    (dict(tie=True, margin=2), (0.5, 0.0, False)),
  ],
)
def test_strengths_preferences_and_ties_say_how_sure_and_by_how_much(given, expected):
  probability, margin, swapped = expected
  (found,) = feedback.parse(dict(prompt="Q", chosen="yes", rejected="no", **given), "r", LAYOUT)
  assert found.preference == pytest.approx(probability) and found.margin == margin
  assert (found.chosen.response, found.rejected.response) == (
    ("no", "yes") if swapped else ("yes", "no")
  )


def test_whole_numbers_are_classes_without_being_named():
  row = {"prompt": "Q", "response": "yes", "class": 3.0}
  assert feedback.parse(row, "r", Layout())[0].value == 3
  assert feedback.parse(row, "r", Layout(("2", "3")))[0].value == "3"


def test_another_separator_joins_the_steps():
  row = dict(prompt="Q", steps=["a", "bc"], labels=[True, None])
  (found,) = feedback.parse(row, "r", Layout(step_separator=" ; "))
  assert found.answer.response == "a ; bc"
  assert [found.answer.response[s.start : s.end] for s in found.steps] == ["a", "bc"]
  assert found.steps[0].value == 1 and math.isnan(found.steps[1].value)


def test_a_file_of_demonstrations_ignores_columns_of_feedback():
  row = dict(prompt="Q", response="yes", rating="n/a", label="x")
  assert feedback.parse(row, "r", LAYOUT, forms=("corrections", "texts")) == [text("r")]


def test_a_prompt_is_text_or_messages_that_a_user_ends():
  assert feedback.prompt(dict(prompt="Q", label=1), "r").prompt == "Q"
  assert feedback.prompt(dict(prompt=[USER]), "r").prompt == (USER,)
  assert feedback.prompt(dict(messages=[USER, YES, OTHER]), "r").prompt == (USER, YES, OTHER)
  with pytest.raises(ValueError, match="'messages' should end with a user turn"):
    feedback.prompt(dict(messages=[USER, YES]), "r")
  with pytest.raises(ValueError, match="no field 'prompt'"):
    feedback.prompt(dict(question="Q"), "r")


def test_nulls_of_a_table_are_not_fields_of_a_message():
  turns = [USER | {"tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [
    {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}]}]  # fmt: skip
  (found,) = feedback.parse(dict(messages=turns), "r", LAYOUT)
  call = {"function": {"name": "f", "arguments": {"x": 1}}}
  assert found.response == (USER, {"role": "assistant", "content": None, "tool_calls": [call]})


PAIR = dict(prompt="Q", chosen="yes", rejected="no")
SPANS = dict(prompt="Q", response="yes")
RANKED = dict(prompt="Q", responses=["a", "b"])
STEPS = dict(prompt="Q", steps=["a", "b"])
BAD = [  # a row, and what it is told
  (dict(a=1, b=2), "its fields ('a', 'b') are those of no form of feedback; see docs/feedback.md"),
  (dict(), "its fields (none) are those of no form"),
  (dict(prompt="Q", chosen="yes"), "no field 'rejected' (it has 'prompt', 'chosen')"),
  (PAIR | dict(rejected="yes"), "'chosen' and 'rejected' are the same text, so nothing is preferred"),
  (dict(chosen="yes", rejected="yes"), "are the same text"),
  (PAIR | dict(chosen=""), "field 'chosen' is empty"),
  (PAIR | dict(chosen=3), "field 'chosen' should be a string, not int"),
  (PAIR | dict(prompt=" "), "field 'prompt' is empty"),
  (PAIR | dict(chosen=[YES]), "should both be texts, or both be lists of messages"),
  (PAIR | dict(chosen=["yes"], rejected=[NO]), 'chosen[0] should be a message: {"role": "user"'),
  (PAIR | dict(chosen=[], rejected=[NO]), "field 'chosen' is empty"),
  (PAIR | dict(chosen=[{"role": "tool", "content": "x"}], rejected=[NO]), "'chosen' has no assistant"),
  (dict(chosen=[USER, YES], rejected=[OTHER, YES]), "differ before an assistant's turn: two prompts"),
  (dict(prompt="x", chosen=[USER, YES], rejected=[USER, NO]), "'prompt' is none of the user's turns"),
  (dict(chosen=[USER], rejected=[USER, YES]), "field 'chosen' has no assistant message"),
  (PAIR | dict(margin="big"), "margin is 'big'; it should be a finite number"),
  (PAIR | dict(margin=-1), "margin is -1.0; it says by how much the better answer is, so 0 or more"),
  (PAIR | dict(strength=4), "strength is 4; it lies between -3 and 3"),
  (PAIR | dict(strength="slightlyy"), "strength is 'slightlyy'; did you mean slightly"),
  (PAIR | dict(preference="left"), "preference is 'left'; it takes chosen, rejected, tie, both_bad"),
  (PAIR | dict(preference=1.5), "preference is 1.5; a probability lies between 0 and 1"),
  (PAIR | dict(preference="chosen", strength=-1), "preference is 'chosen' and strength -1 says other"),
  (PAIR | dict(tie=True, strength=2), "a tie has no other preference and no strength"),
  (PAIR | dict(tie="no"), "tie is 'no'; it should be true or false, or 1 or 0"),
  (RANKED, "no field 'ranks'"),
  (RANKED | dict(ranks=[1]), "field 'ranks' holds 1 values for 2 answers"),
  (RANKED | dict(ranks="1,2"), "field 'ranks' should be a list, not str"),
  (RANKED | dict(ranks=[1, "2"]), "ranks[1] is '2'; 1 is the best, 0 or null is not ranked"),
  (RANKED | dict(ranks=[1, -1]), "ranks[1] is -1;"),
  (RANKED | dict(ranks=[1, 1.5]), "ranks[1] is 1.5;"),
  (RANKED | dict(ranks=[None, 0]), "no answer is ranked, so nothing is preferred"),
  (dict(prompt="Q", responses=["a"], ranks=[1]), "holds 1 answers; it takes at least two"),
  (dict(prompt="Q", responses=["a", ""], ranks=[1, 2]), "field 'responses[1]' is empty"),
  (RANKED | dict(scores=[1, "x"]), "scores[1] is 'x'; it should be a finite number"),
  (RANKED | dict(scores=[None, None]), "field 'scores' holds no number"),
  (SPANS | dict(rating="4"), "rating is '4'; it should be a finite number"),
  (SPANS | dict(rating=math.inf), "rating is inf; it should be a finite number"),
  (SPANS | dict(rating=True), "rating is True; it should be a finite number"),
  (SPANS | dict(ratings=[4]), "field 'ratings' should be an object of numbers, not list"),
  (SPANS | dict(ratings={"help": "4"}), "ratings.help is '4'; it should be a finite number"),
  (SPANS | dict(ratings={"help": None}), "field 'ratings' holds no number"),
  (dict(response="yes", rating=4), "no field 'prompt' (it has 'response', 'rating')"),
  (SPANS | {"class": "great"}, "class 'great' is not one of poor, fair, good"),
  (SPANS | {"class": 0.5}, "class is 0.5; it should be a name or a whole number"),
  (SPANS | dict(label="good"), "label is 'good'; it should be true or false, or 1 or 0"),
  (SPANS | dict(label=2), "label is 2; it should be true or false"),
  (SPANS | dict(correction="yes"), "'correction' is the response unchanged"),
  (SPANS | dict(spans=[[0, 2]]), 'spans[0] should be an object: {"start": 0, "end": 4}'),
  (SPANS | dict(spans=[dict(start=0)]), "spans[0].end is None; it should count characters"),
  (SPANS | dict(spans=[dict(start=1, end=1)]), "spans[0] is empty: it goes from 1 to 1"),
  (SPANS | dict(spans=[dict(start=0, end=1), dict(start=2, end=4)]), "spans[1] goes from 2 to 4, and the response has 3 characters"),
  (SPANS | dict(spans=[dict(start=-1, end=1)]), "spans[0] goes from -1 to 1"),
  (SPANS | dict(spans=[dict(start=0, end=1, severity=2)]), "spans[0].severity is 2.0; it lies between 0 and 1"),
  (dict(messages=[USER, YES, {"role": "tool", "content": "t"}, YES], spans=[]), "one assistant message, whose characters"),
  (STEPS, "no field 'labels'"),
  (STEPS | dict(labels=[True]), "field 'labels' holds 1 values for 2 answers or steps"),
  (STEPS | dict(labels=[True, "no"]), "labels[1] is 'no'; it should be true or false"),
  (STEPS | dict(labels=[True, 1.5]), "labels[1] is 1.5; it should be true or false"),
  (STEPS | dict(labels=[None, None]), "no step has a label"),
  (dict(prompt="Q", steps=["a", " "], labels=[True, True]), "field 'steps[1]' is empty"),
  (dict(messages=[USER]), "field 'messages' has no assistant message"),
  (dict(messages=[USER, {"role": "assistant", "content": "\ud83d"}]), "holds half of a character"),
]  # fmt: skip


@pytest.mark.parametrize("row, says", BAD, ids=lambda case: json.dumps(case)[:60])
def test_a_bad_row_is_told_what_is_wrong(row, says):
  with pytest.raises(ValueError) as caught:
    feedback.parse(row, "r", LAYOUT)
  assert says in str(caught.value)


def test_names_of_classes_without_an_order_are_told_where_to_give_it():
  with pytest.raises(
    ValueError, match="class 'good' has no place; set data.classes to all of them"
  ):
    feedback.parse(SPANS | {"class": "good"}, "r", Layout())
