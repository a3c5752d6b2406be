"""Feedback of one form as another: every conversion with counts that one can check by hand."""

import inspect
import math

import pytest

from rlhf_jax.data import convert
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, TokenLabelled
from rlhf_jax.data.texts import Correction, Span, Spanned, Stepped, Text

nan = math.nan


def text(name, prompt="Q"):
  return Text(name, prompt, name)


a, b, c, d = (text(name) for name in "abcd")
other = text("o", "another prompt")


def said(records):
  """Records as short tuples of names."""
  short = {
    Pair: lambda r: (r.chosen.id, r.rejected.id, r.preference, r.margin),
    Ranking: lambda r: (*(answer.id for answer in r.answers), r.ranks),
    Labelled: lambda r: (r.answer.id, *r.labels),
  }
  return [short[type(record)](record) for record in records]


def test_a_ranking_is_every_ordered_pair_without_ties():
  ranking = Ranking((a, b, c, d), (2, 1, 0, 2), "ann")  # b before a and d, which tie; c unranked
  pairs = convert.rankings_to_pairs([ranking])
  assert said(pairs) == [("b", "a", 1.0, 0.0), ("b", "d", 1.0, 0.0)]
  assert {pair.annotator for pair in pairs} == {"ann"}
  kept = convert.rankings_to_pairs([ranking], keep_ties=True)
  assert said(kept) == [("b", "a", 1.0, 0.0), ("a", "d", 0.5, 0.0), ("b", "d", 1.0, 0.0)]


def test_a_full_ranking_of_four_is_six_pairs():
  assert len(convert.rankings_to_pairs([Ranking((a, b, c, d), (4, 2, 1, 3))])) == 6


def test_of_the_best_alone_no_pair_and_no_mark_is_known():
  best = [Ranking((a, b, c), (0, 1, 0))]
  assert convert.rankings_to_pairs(best) == convert.rankings_to_marks(best) == []


def test_the_ends_of_a_ranking_are_right_and_wrong():
  rankings = [Ranking((a, b, c, d), (1, 2, 3, 0)), Ranking((a, b), (1, 1))]
  assert said(convert.rankings_to_marks(rankings)) == [("a", 1.0), ("c", 0.0)]


def test_a_pair_is_a_ranking_of_two():
  pairs = [Pair(a, b, 0.7, 2.0, "ann"), Pair(a, c, 0.5)]
  rankings = convert.pairs_to_rankings(pairs)
  assert said(rankings) == [("a", "b", (1, 2)), ("a", "c", (1, 1))]
  assert rankings[0].annotator == "ann"
  assert said(convert.rankings_to_pairs(rankings)) == [("a", "b", 1.0, 0.0)]


def test_a_pair_is_two_marks_and_a_tie_is_none():
  pairs = [Pair(a, b), Pair(a, c, 0.6), Pair(b, c, 0.5)]
  marks = [("a", 1.0), ("b", 0.0), ("a", 1.0), ("c", 0.0)]
  assert said(convert.pairs_to_marks(pairs)) == marks


RATED = [  # of a: 2 by two people; of b: 1, the mean of its two scales; c as a; o alone at its prompt
  Labelled(a, (1.0, nan)),
  Labelled(b, (2.0, 0.0)),
  Labelled(other, (5.0, 5.0)),
  Labelled(a, (nan, 3.0)),
  Labelled(c, (2.0, 2.0)),
]


def test_different_ratings_at_one_prompt_are_pairs_with_their_difference():
  assert said(convert.ratings_to_pairs(RATED)) == [("a", "b", 1.0, 1.0), ("c", "b", 1.0, 1.0)]


def test_ratings_at_one_prompt_are_a_ranking():
  assert said(convert.ratings_to_rankings(RATED)) == [("a", "b", "c", (1, 3, 1))]


def test_ratings_above_the_threshold_are_right():
  marks = convert.ratings_to_marks(RATED, threshold=1.0)  # a's first and b are at it
  assert said(marks) == [("o", 1.0), ("a", 1.0), ("c", 1.0)]
  assert said(convert.ratings_to_marks([Labelled(a, (-0.5,))])) == [("a", 0.0)]


def test_an_answer_among_many_meets_so_many_that_follow():
  many = [Labelled(text(str(i)), (float(i),)) for i in range(40)]
  pairs = convert.ratings_to_pairs(many)
  assert len(pairs) == 24 * 16 + 16 * 15 // 2
  marks = [Labelled(text(str(i)), (float(i < 30),)) for i in range(60)]
  met = convert.marks_to_pairs(marks)
  assert len(met) == 30 * 16 and len({pair.rejected.id for pair in met}) == 30


def test_the_upper_classes_are_right_and_a_middle_one_says_nothing():
  of = lambda *places: [Labelled(text(str(i)), (float(p),)) for i, p in enumerate(places)]
  assert said(convert.classes_to_marks(of(0, 1, 2, 1))) == [("0", 0.0), ("2", 1.0)]
  assert said(convert.classes_to_marks(of(0, 3, 2, 1))) == [
    ("0", 0.0),
    ("1", 1.0),
    ("2", 1.0),
    ("3", 0.0),
  ]
  assert said(convert.classes_to_marks(of(0, 1), threshold=0.0)) == [("1", 1.0)]
  assert convert.classes_to_marks([]) == []


def test_classes_are_ratings_by_their_place_and_marks_are_two_classes():
  labelled = [Labelled(a, (2.0,), "ann")]
  assert convert.classes_to_ratings(labelled) == labelled
  assert convert.marks_to_classes(labelled) == labelled


def test_right_answers_meet_the_wrong_ones_of_their_prompt():
  mark = lambda answer, label: Labelled(answer, (float(label),))
  marks = [mark(a, 1), mark(b, 0), mark(c, 0), mark(d, 1), mark(other, 0)]
  pairs = [(w, l, 1.0, 0.0) for w, l in ("ab", "ac", "dc", "db")]
  assert said(convert.marks_to_pairs(marks)) == pairs
  divided = [mark(a, 1), mark(a, 0), mark(b, 0)]  # nobody knows about a
  assert convert.marks_to_pairs(divided) == []
  assert said(convert.marks_to_pairs([*divided, mark(a, 1)])) == [("a", "b", 1.0, 0.0)]


def test_a_correction_is_a_pair_and_a_demonstration():
  corrections = [Correction(original=a, corrected=b, annotator="ann")]
  (pair,) = convert.corrections_to_pairs(corrections)
  assert (pair.chosen, pair.rejected, pair.annotator) == (b, a, "ann")
  assert convert.corrections_to_texts(corrections) == [b]


def test_an_answer_is_right_if_all_its_parts_are():
  spans = [Spanned(a, ()), Spanned(b, (Span(0, 1, 0.75),))]
  steps = [Stepped(c, (Span(0, 1, 1.0), Span(1, 2, nan))), Stepped(d, (Span(0, 1, 0.0),))]
  tokens = [TokenLabelled(Example("t", [1, 2], [0, 1]), [nan, 1.0])]
  marks = convert.tokens_to_marks([*spans, *steps, *tokens])
  assert said(marks) == [("a", 1.0), ("b", 0.0), ("c", 1.0), ("d", 0.0), ("t", 1.0)]


def test_records_of_tokens_convert_as_those_of_texts_do():
  prompt = Example.prompt("p", [7, 8])
  marks = [
    Labelled(prompt.continued("x", [1]), (1.0,)),
    Labelled(prompt.continued("y", [2, 3]), (0.0,)),
    Labelled(Example.prompt("q", [7]).continued("z", [8, 2]), (0.0,)),  # another prompt
  ]
  assert said(convert.marks_to_pairs(marks)) == [("x", "y", 1.0, 0.0)]


FOUND = {  # one record of each form, or as many as a conversion needs
  "pairs": [Pair(a, b)],
  "rankings": [Ranking((a, b, c), (1, 2, 3))],
  "ratings": [Labelled(a, (1.0,)), Labelled(b, (-1.0,))],
  "classes": [Labelled(a, (0.0,)), Labelled(b, (1.0,)), Labelled(c, (2.0,))],
  "marks": [Labelled(a, (1.0,)), Labelled(b, (0.0,))],
  "corrections": [Correction(a, b)],
  "tokens": [Spanned(a, ()), Spanned(b, (Span(0, 1, 0.0),))],
}
REACHED = {  # how many records of each form each of them makes, beside its own
  "pairs": dict(pairs=1, rankings=1, marks=2),
  "rankings": dict(rankings=1, pairs=3, marks=2),
  "ratings": dict(ratings=2, pairs=1, rankings=1, marks=2),
  "classes": dict(classes=3, ratings=3, pairs=3, rankings=1, marks=2),
  "marks": dict(marks=2, classes=2, pairs=1),
  "corrections": dict(pairs=1, rankings=1, marks=2, texts=1),
  "tokens": dict(tokens=2, marks=2, pairs=1, classes=2),
}
FORMS = ("texts", "pairs", "rankings", "ratings", "classes", "marks", "tokens")


@pytest.mark.parametrize("source", REACHED)
def test_each_form_reaches_these_and_says_what_is_lost(source):
  for form in FORMS:
    records, notes = convert.reach({source: FOUND[source]}, form)
    assert len(records) == REACHED[source].get(form, 0), form
    assert len(notes) == (form != source and form in REACHED[source]), form
    for note in notes:
      assert note.startswith(f"{len(records)} {form} of {len(FOUND[source])} {source}")


def test_a_mixture_gives_its_own_records_first_and_then_the_converted_ones():
  records, notes = convert.reach({"rankings": FOUND["rankings"], "pairs": [Pair(d, a)]}, "pairs")
  assert [pair[:2] for pair in said(records)] == [("d", "a"), ("a", "b"), ("a", "c"), ("b", "c")]
  assert notes == (
    "3 pairs of 1 rankings, which loses which answers were compared at once, ties, and answers that were not ranked",
  )


def test_ratings_and_classes_are_not_mixed_with_those_of_another_scale():
  both = {"ratings": FOUND["ratings"], "classes": FOUND["classes"]}
  assert convert.reach(both, "ratings") == (FOUND["ratings"], ())
  both = {"marks": FOUND["marks"], "tokens": FOUND["tokens"]}
  assert len(convert.reach(both, "classes").records) == 2


def test_every_conversion_says_what_it_loses_and_belongs_to_a_route():
  conversions = {
    function for name, function in inspect.getmembers(convert, inspect.isfunction) if "_to_" in name
  }
  assert conversions == {
    f for to in convert.ROUTES.values() for route in to.values() for f in route
  }
  assert all(function.loses and function.__doc__ for function in conversions)


def test_converting_again_gives_the_same():
  for source, records in FOUND.items():
    for form in FORMS:
      assert convert.reach({source: records}, form) == convert.reach({source: records}, form)
