"""Feedback of one form as feedback of another: pure functions on records, of texts or of tokens, and what each loses.

`reach` goes from what a file holds to a form, by the functions of ROUTES. Answers belong to one prompt where their
prompts are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.examples import Labelled, Pair, Ranking

TIE = 0.5
MEETINGS = (
  16  # answers that one answer is paired with at most, or a prompt of n answers has n² / 2 pairs
)


def loses(what: str) -> Callable:
  """Notes on a function what its result no longer says."""

  def note(function: Callable) -> Callable:
    function.loses = what
    return function

  return note


@loses("which answers were compared at once, ties, and answers that were not ranked")
def rankings_to_pairs(rankings: Sequence[Ranking], keep_ties: bool = False) -> list[Pair]:
  """Every two ranked answers, the better one chosen; equal ranks are left out, or ties of preference 0.5."""
  pairs = []
  for answers, ranks, annotator in rankings:
    ranked = [(a, r) for a, r in zip(answers, ranks, strict=True) if r > 0]
    for i, (a, rank_a) in enumerate(ranked):
      for b, rank_b in ranked[i + 1 :]:
        if rank_a == rank_b:
          pairs += [Pair(a, b, TIE, annotator=annotator)] if keep_ties else []
        else:
          chosen, rejected = (a, b) if rank_a < rank_b else (b, a)
          pairs.append(Pair(chosen, rejected, annotator=annotator))
  return pairs


@loses(
  "how far answers are apart, answers between the best and the worst, and rankings that are one tie"
)
def rankings_to_marks(rankings: Sequence[Ranking]) -> list[Labelled]:
  """The answers of the first rank right, those of the last wrong."""
  marks = []
  for answers, ranks, annotator in rankings:
    ranked = [rank for rank in ranks if rank > 0]
    best, worst = min(ranked), max(ranked)
    for answer, rank in zip(answers, ranks, strict=True):
      if best < worst and rank in (best, worst):
        marks.append(Labelled(answer, (float(rank == best),), annotator))
  return marks


@loses("how sure a preference is, and its margin")
def pairs_to_rankings(pairs: Sequence[Pair]) -> list[Ranking]:
  """Rankings of two; both are first in a tie."""
  return [
    Ranking((p.chosen, p.rejected), (1, 1 if p.preference == TIE else 2), p.annotator)
    for p in pairs
  ]


@loses("which answers were compared, how sure a preference is, its margin, and ties")
def pairs_to_marks(pairs: Sequence[Pair]) -> list[Labelled]:
  """`chosen` right and `rejected` wrong, as often as they occur; ties are left out."""
  return [
    Labelled(answer, (label,), pair.annotator)
    for pair in pairs
    if pair.preference != TIE
    for answer, label in ((pair.chosen, 1.0), (pair.rejected, 0.0))
  ]


@loses("the scales, who gave which rating, prompts with one answer, and ties")
def ratings_to_pairs(ratings: Sequence[Labelled]) -> list[Pair]:
  """Every two answers to one prompt that were rated differently; the margin is the difference.

  An answer's rating is the mean over its scales and over whoever rated it. In prompts of many answers
  each meets the MEETINGS that follow it.
  """
  pairs = []
  for rated in _by_prompt(ratings):
    for i, (a, rating_a) in enumerate(rated):
      for b, rating_b in rated[i + 1 : i + 1 + MEETINGS]:
        if rating_a != rating_b:
          chosen, rejected = (a, b) if rating_a > rating_b else (b, a)
          pairs.append(Pair(chosen, rejected, margin=abs(rating_a - rating_b)))
  return pairs


@loses("the scales, how far answers are apart, who gave which rating, and prompts with one answer")
def ratings_to_rankings(ratings: Sequence[Labelled]) -> list[Ranking]:
  """All answers to a prompt by their ratings, as in `ratings_to_pairs`; equal ones share a rank."""
  rankings = []
  for rated in _by_prompt(ratings):
    if len(rated) > 1:
      numbers = [rating for _, rating in rated]
      ranks = tuple(1 + sum(other > number for other in numbers) for number in numbers)
      rankings.append(Ranking(tuple(answer for answer, _ in rated), ranks))
  return rankings


@loses("how good an answer is, and those just at the mean")
def ratings_to_marks(ratings: Sequence[Labelled], threshold: float = 0.0) -> list[Labelled]:
  """Right above `threshold`, wrong below; 0 is the mean of standardised ratings. Several scales count by their mean."""
  rated = [(record, overall(record.labels)) for record in ratings]
  return [
    Labelled(record.answer, (float(rating > threshold),), record.annotator)
    for record, rating in rated
    if rating != threshold
  ]


@loses("the order within the upper and within the lower classes, and a middle class")
def classes_to_marks(classes: Sequence[Labelled], threshold: float | None = None) -> list[Labelled]:
  """Right above class `threshold`, wrong below; the middle of the classes that occur unless said."""
  highest = max((record.labels[0] for record in classes), default=0.0)
  return ratings_to_marks(classes, highest / 2 if threshold is None else threshold)


@loses("that nobody said how far classes are apart")
def classes_to_ratings(classes: Sequence[Labelled]) -> list[Labelled]:
  """The number of the class on one scale, 0 the worst; not standardised."""
  return list(classes)


@loses("nothing")
def marks_to_classes(marks: Sequence[Labelled]) -> list[Labelled]:
  """Wrong is class 0, right is class 1."""
  return list(marks)


@loses("prompts whose answers are all right or all wrong")
def marks_to_pairs(marks: Sequence[Labelled]) -> list[Pair]:
  """Every right answer to a prompt against every wrong one, or MEETINGS of them in turn.

  Marked both ways, an answer counts as the most say.
  """
  pairs = []
  for marked in _by_prompt(marks):
    right = [answer for answer, share in marked if share > 0.5]
    wrong = [answer for answer, share in marked if share < 0.5]
    for i, w in enumerate(right):
      met = range(i, i + min(len(wrong), MEETINGS))
      pairs += [Pair(w, wrong[j % len(wrong)]) for j in met]
  return pairs


@loses("nothing")
def corrections_to_pairs(corrections: Sequence) -> list[Pair]:
  """The correction against the original."""
  return [Pair(c.corrected, c.original, annotator=c.annotator) for c in corrections]


@loses("the answers that were corrected")
def corrections_to_texts(corrections: Sequence) -> list:
  """The correction as a demonstration."""
  return [correction.corrected for correction in corrections]


@loses("where the errors are, and how severe")
def tokens_to_marks(records: Sequence) -> list[Labelled]:
  """Right where every label is 1: no marked error, no wrong step."""
  given = lambda record: [label for label in record.labels if not math.isnan(label)]
  return [
    Labelled(record.answer, (float(all(label >= 1 for label in given(record))),), record.annotator)
    for record in records
  ]


# To each form, from each form that reaches it, by which functions in turn.
ROUTES: Mapping[str, Mapping[str, tuple[Callable, ...]]] = {
  "texts": {"corrections": (corrections_to_texts,)},
  "pairs": {
    "corrections": (corrections_to_pairs,),
    "rankings": (rankings_to_pairs,),
    "ratings": (ratings_to_pairs,),
    "classes": (classes_to_ratings, ratings_to_pairs),
    "marks": (marks_to_pairs,),
    "tokens": (tokens_to_marks, marks_to_pairs),
  },
  "rankings": {
    "pairs": (pairs_to_rankings,),
    "corrections": (corrections_to_pairs, pairs_to_rankings),
    "ratings": (ratings_to_rankings,),
    "classes": (classes_to_ratings, ratings_to_rankings),
  },
  "ratings": {"classes": (classes_to_ratings,)},
  "classes": {"marks": (marks_to_classes,), "tokens": (tokens_to_marks, marks_to_classes)},
  "marks": {
    "pairs": (pairs_to_marks,),
    "corrections": (corrections_to_pairs, pairs_to_marks),
    "rankings": (rankings_to_marks,),
    "ratings": (ratings_to_marks,),
    "classes": (classes_to_marks,),
    "tokens": (tokens_to_marks,),
  },
}
ONE_SCALE = ("ratings", "classes")  # of other rows they mean something else: never mixed


class Reached(NamedTuple):
  """Records of one form, and where they come from."""

  records: list
  notes: tuple[str, ...]  # one a conversion: how many it gave, and what it lost


def reach(found: Mapping[str, Sequence], form: str) -> Reached:
  """The records of `form` in `found`, and after them all that conversion makes of the others.

  Ratings and classes are on a scale of their own, so where `found` has any no others are added.
  """
  records, notes = list(found.get(form, ())), []
  routes = {} if records and form in ONE_SCALE else ROUTES.get(form, {})
  for source, functions in routes.items():
    if not found.get(source):
      continue
    converted = found[source]
    for function in functions:
      converted = function(converted)
    if converted:
      records += converted
      lost = [function.loses for function in functions if function.loses != "nothing"]
      notes.append(
        f"{len(converted)} {form} of {len(found[source])} {source}"
        + (f", which loses {'; '.join(lost)}" if lost else "")
      )
      if form in ONE_SCALE:
        break
  return Reached(records, tuple(notes))


def overall(labels: Sequence[float]) -> float:
  """The mean over the scales on which there is a label."""
  return float(np.nanmean(labels))


def _by_prompt(labelled: Sequence[Labelled]) -> list[list[tuple]]:
  """Of each prompt the different answers with the mean of their labels, in the order of the records."""
  prompts: dict[Hashable, dict[Hashable, tuple]] = {}
  for record in labelled:
    prompt, response = record.answer.key
    _, labels = prompts.setdefault(prompt, {}).setdefault(response, (record.answer, []))
    labels.append(overall(record.labels))
  return [
    [(answer, float(np.mean(labels))) for answer, labels in answers.values()]
    for answers in prompts.values()
  ]
