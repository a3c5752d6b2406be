"""What the administrator watches: how much is done and how fast, how far people agree, and where they do not."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_jax.feedback import quality
from rlhf_jax.feedback.export import Judgement, adjudicated, judgements
from rlhf_jax.feedback.project import text_of
from rlhf_jax.feedback.store import Store

LISTED = 50  # items in a list
HOUR = 3600.0
SIDES = ("first", "second")


def overview(store: Store) -> dict:
  """Everything on the administrator's page, as JSON."""
  project, items = store.project, store.items()
  every = judgements(store, checks=True)
  real = [j for j in every if j.item.known is None]
  open_items = [item for item in items if item.known is None]
  times = Counter(j.item.id for j in real)
  wanted = len(open_items) * project.overlap
  decided = adjudicated(store)
  now = store.clock()
  lately = sum(j.at > now - HOUR for j in every)
  units = {q.name: quality.units(real, q, project) for q in project.questions}
  questions = {}
  for name, found in units.items():
    questions[name] = {what: _number(x) for what, x in quality.agreement(found).items()}
    questions[name]["between"] = [
      {"annotators": list(pair), "kappa": _number(kappa)}
      for pair, kappa in quality.between(found).items()
    ]
  return {
    "items": len(open_items),
    "finished": sum(times[item.id] >= project.overlap for item in open_items),
    "judgements": len(real),
    "wanted": wanted,
    "last_hour": lately,
    "hours_left": (wanted - len(real)) / lately if lately else None,
    "questions": questions,
    "annotators": [
      _annotator(who.name, every, units) for who in store.annotators() if who.role == "annotator"
    ],
    "positions": positions(real, project),
    "lengths": lengths(real, project),
    "disagreements": _disagreements(real, decided, project),
    "flagged": [
      {"item": e.item, "annotator": e.annotator, "reason": e.payload["reason"]}
      for e in store.events()
      if e.kind == "flagged"
    ][-LISTED:],
  }


def of_item(store: Store, id: str) -> dict:
  """What was said of one item, and the decision on it."""
  said = [
    {"annotator": j.annotator, "said": j.said, "comment": j.comment, "shown": j.shown}
    for j in judgements(store, checks=True)
    if j.item.id == id
  ]
  decision = adjudicated(store).get(id)
  return {"judgements": said, "decision": decision and {"by": decision[0], "said": decision[1]}}


def positions(found: Sequence[Judgement], project) -> dict[str, dict]:
  """Of each comparison: how often the answer shown on the left won, on the right, and neither."""

  def side(j: Judgement, choice: str) -> str:
    if choice not in SIDES:
      return choice
    return "left" if j.shown[0] == SIDES.index(choice) else "right"

  return _counted(found, project, side)


def lengths(found: Sequence[Judgement], project) -> dict[str, dict]:
  """Of each comparison: how often the longer answer won, and the shorter; equal lengths are left out."""

  def size(j: Judgement, choice: str) -> str | None:
    sizes = [len(text_of(answer["content"])) for answer in j.item.answers]
    if choice not in SIDES or sizes[0] == sizes[1]:
      return None
    return "longer" if sizes[SIDES.index(choice)] == max(sizes) else "shorter"

  return _counted(found, project, size)


def _counted(found: Sequence[Judgement], project, kind: Callable) -> dict[str, dict]:
  """Of each question of pairs, how often `kind(judgement, choice)` is what; None is not counted."""
  result = {}
  for question in project.questions:
    if question.form == "pairs":
      said = [(j, j.said[question.name]["choice"]) for j in found if question.name in j.said]
      kinds = [kind(j, choice) for j, choice in said]
      result[question.name] = dict(Counter(k for k in kinds if k is not None))
  return result


def _annotator(name: str, every: Sequence[Judgement], units: Mapping[str, quality.Units]) -> dict:
  mine = [j for j in every if j.annotator == name]
  own = [j for j in mine if j.item.known is None]
  checks = [j for j in mine if j.item.known is not None]
  seconds = [j.client_ms / 1000 for j in mine if j.client_ms > 0]
  right = sum(j.said == {**j.said, **j.item.known} for j in checks)
  with_others = {}
  for question, found in units.items():
    if name in found.annotators:
      row = found.annotators.index(name)
      others = np.delete(found.codes, row, axis=0)
      shared = ~np.isnan(others) & ~np.isnan(found.codes[row])
      alike = np.sum(shared & (others == found.codes[row]))
      with_others[question] = float(alike / np.sum(shared)) if shared.any() else None
  return {
    "name": name,
    "judged": len(own),
    "median_seconds": statistics.median(seconds) if seconds else None,
    "checks": len(checks),
    "checks_right": right,
    "agrees_with_others": with_others,
    "last": max((j.at for j in mine), default=None),
  }


def _disagreements(found: Sequence[Judgement], decided: dict, project) -> list[dict]:
  """Items on which people said different things, those that nobody has decided first."""
  by_item: dict[str, list[Judgement]] = {}
  for j in found:
    by_item.setdefault(j.item.id, []).append(j)
  apart = []
  for id, group in by_item.items():
    shares = [quality.alike(quality.units(group, q, project).codes) for q in project.questions]
    shares = [share for share in shares if not math.isnan(share)]
    if shares and min(shares) < 1.0:
      apart.append(
        {"item": id, "alike": min(shares), "decided": id in decided, "count": len(group)}
      )
  return sorted(apart, key=lambda row: (row["decided"], row["alike"], row["item"]))[:LISTED]


def _number(x):
  """An estimate or a count as JSON, null for what is not defined."""
  if isinstance(x, quality.Estimate):
    return {name: None if math.isnan(v) else v for name, v in x._asdict().items()}
  return x
