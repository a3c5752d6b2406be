"""Whom to believe: the reliability of annotators, and what is probably right of each item, from their agreement alone.

Dawid and Skene (Applied Statistics 28, 1979) give every annotator a table of errors; the noisy Bradley-Terry model (Chen et al.,
WSDM 2013, as crowd-kit has it) gives every annotator of comparisons a skill and a bias to one side. Both are crowd-kit's. Their
probabilities become the soft labels of pairs, `preference`, which every reward model here takes as such; of marks and classes the
most probable one counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from crowdkit.aggregation.classification.dawid_skene import DawidSkene
from crowdkit.aggregation.pairwise.noisy_bt import NoisyBradleyTerry

from rlhf_jax.feedback.export import Judgement
from rlhf_jax.feedback.project import Project, Question

ITERATIONS = 100
CODES = {  # of the forms that say one of several things: value -> code
  "pairs": lambda value: value["choice"],
  "marks": lambda value: value["label"],
  "classes": lambda value: value["class"],
}


class Reliability(NamedTuple):
  labels: dict[str, dict]  # item -> {code: probability that it is right}
  skill: dict[str, float]  # annotator -> the probability that they say what is right
  difficulty: dict[str, float]  # item -> the entropy of its labels in bits; 0 is certain


def dawid_skene(judgements: Sequence[Judgement], question: Question) -> Reliability:
  """Raises ValueError for a form of question that says more than one of several things."""
  rows = _rows(judgements, question)
  model = DawidSkene(n_iter=ITERATIONS)
  table = model.fit_predict_proba(rows.rename(columns={"item": "task", "annotator": "worker"}))
  labels = {item: {c: float(p) for c, p in row.items()} for item, row in table.iterrows()}
  priors = table.mean()
  skill = {}
  for name, errors in model.errors_.groupby(level=0):
    errors = errors.droplevel(0)  # rows what was said, columns what is right
    skill[name] = float(
      sum(priors[c] * errors.loc[c, c] for c in errors.columns if c in errors.index)
    )
  return Reliability(labels, skill, {item: _entropy(row.values()) for item, row in labels.items()})


def majority(judgements: Sequence[Judgement], question: Question) -> Reliability:
  """Votes as probabilities, and how often an annotator said what most said."""
  votes: dict[str, Counter] = {}
  rows = _rows(judgements, question)
  for row in rows.itertuples():
    votes.setdefault(row.item, Counter())[row.label] += 1
  labels = {item: {c: n / v.total() for c, n in v.items()} for item, v in votes.items()}
  right = {item: max(v.values()) for item, v in votes.items()}
  agreed: dict[str, list[float]] = {}
  for row in rows.itertuples():
    agreed.setdefault(row.annotator, []).append(votes[row.item][row.label] == right[row.item])
  skill = {name: float(np.mean(said)) for name, said in agreed.items()}
  return Reliability(labels, skill, {item: _entropy(row.values()) for item, row in labels.items()})


class Abilities(NamedTuple):
  scores: dict[str, float]  # answer -> its ability, higher is better
  skill: dict[str, float]  # annotator -> near 1 is reliable, near 0 says the opposite
  bias: dict[str, float]  # annotator -> towards what is shown first


def noisy_bradley_terry(
  judgements: Sequence[Judgement], question: Question, names: Sequence[str] = ("first", "second")
) -> Abilities:
  """Abilities of what an item's two answers come from (`model` of their origin, else their place), over all comparisons.

  Ties and "both bad" say nothing of who is better and are left out. Raises ValueError where nothing is left.
  """
  rows = []
  for j in judgements:
    choice = j.said.get(question.name, {}).get("choice")
    if choice in ("first", "second"):
      players = [a.get("model", name) for a, name in zip(j.item.answers, names, strict=True)]
      left, right = (players[place] for place in j.shown)
      won = players[("first", "second").index(choice)]
      if left != right:
        rows.append({"worker": j.annotator, "left": left, "right": right, "label": won})
  if not rows:
    raise ValueError(f"no comparison of question {question.name!r} was decided.")
  model = NoisyBradleyTerry(n_iter=ITERATIONS)
  model.fit(pd.DataFrame(rows))
  plain = lambda series: {str(name): float(x) for name, x in series.items()}
  return Abilities(plain(model.scores_), plain(model.skills_), plain(model.biases_))


METHODS = {"dawid_skene": dawid_skene, "majority": majority}


def soft_rows(judgements: Sequence[Judgement], project: Project, method: str) -> list[dict]:
  """One row an item and question in the columns of `data/feedback.py`, its label as sure as annotators make it.

  Raises ValueError for a question of a form that cannot be put together so.
  """
  rows = []
  for question in project.questions:
    found = METHODS[method](judgements, question)
    items = {j.item.id: j.item for j in judgements if question.name in j.said}
    for id, item in items.items():
      row = SOFT[question.form](item, found.labels[id], question)
      if row is not None:
        rows.append({"prompt": item.prompt, **row, "item": id, "question": question.name})
  return rows


def _soft_pair(item, labels: dict, question: Question) -> dict | None:
  """The probability that the first is better, a tie counting half; no row where both are most probably bad."""
  bad = labels.get("both_bad", 0.0)
  if bad > 0.5:
    return None
  first = labels.get("first", 0.0) + 0.5 * labels.get("tie", 0.0)
  second = labels.get("second", 0.0) + 0.5 * labels.get("tie", 0.0)
  contents = [answer["content"] for answer in item.answers]
  return {"chosen": contents[0], "rejected": contents[1], "preference": first / (first + second)}


def _most_probable(field: str):
  """Marks and classes are learned as one of several things."""
  return lambda item, labels, question: {
    "response": item.answers[0]["content"],
    field: max(labels, key=labels.get),
  }


SOFT = {"pairs": _soft_pair, "marks": _most_probable("label"), "classes": _most_probable("class")}


def _rows(judgements: Sequence[Judgement], question: Question) -> pd.DataFrame:
  if question.form not in CODES:
    raise ValueError(
      f"question {question.name!r} of {question.form} has no single label to agree on; "
      f"{', '.join(CODES)} have."
    )
  code = CODES[question.form]
  rows = [
    {"item": j.item.id, "annotator": j.annotator, "label": code(j.said[question.name])}
    for j in judgements
    if question.name in j.said
  ]
  if not rows:
    raise ValueError(f"nobody has answered question {question.name!r} yet.")
  return pd.DataFrame(rows)


def _entropy(probabilities) -> float:
  p = np.asarray([x for x in probabilities if x > 0])
  return float(-np.sum(p * np.log2(p)) + 0.0)
