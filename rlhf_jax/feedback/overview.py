"""What the administrator watches: how much is done and how fast, how far people agree, and where they do not."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from rlhf_jax.feedback import quality
from rlhf_jax.feedback.export import Judgement, adjudicated, judgements
from rlhf_jax.feedback.project import text_of
from rlhf_jax.feedback.store import Store

LISTED = 50  # items in a list
HOUR = 3600.0


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
  questions = {}
  for question in project.questions:
    found = quality.units(real, question, project)
    measured = quality.agreement(found)
    questions[question.name] = {name: _number(x) for name, x in measured.items()}
    questions[question.name]["between"] = [
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
      _annotator(store, who.name, every) for who in store.annotators() if who.role == "annotator"
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
  result = {}
  for question in project.questions:
    if question.form == "pairs":
      counts = Counter()
      for j in found:
        choice = j.said.get(question.name, {}).get("choice")
        if choice in ("first", "second"):
          counts["left" if j.shown[0] == ("first", "second").index(choice) else "right"] += 1
        elif choice:
          counts[choice] += 1
      result[question.name] = dict(counts)
  return result


def lengths(found: Sequence[Judgement], project) -> dict[str, dict]:
  """Of each comparison: how often the longer answer won, and the shorter; equal lengths are left out."""
  result = {}
  for question in project.questions:
    if question.form == "pairs":
      counts = Counter()
      for j in found:
        choice = j.said.get(question.name, {}).get("choice")
        sizes = [len(text_of(answer["content"])) for answer in j.item.answers]
        if choice in ("first", "second") and sizes[0] != sizes[1]:
          won = ("first", "second").index(choice)
          counts["longer" if sizes[won] == max(sizes) else "shorter"] += 1
      result[question.name] = dict(counts)
  return result


def _annotator(store: Store, name: str, every: Sequence[Judgement]) -> dict:
  mine = [j for j in every if j.annotator == name]
  seconds = [j.client_ms / 1000 for j in mine if j.client_ms > 0]
  checks = [j for j in mine if j.item.known is not None]
  right = sum(j.said == {**j.said, **j.item.known} for j in checks)
  others = [j for j in every if j.annotator != name and j.item.known is None]
  own = [j for j in mine if j.item.known is None]
  with_others = {}
  for question in store.project.questions:
    found = quality.units([*own, *others], question, store.project)
    if name in found.annotators:
      row = found.annotators.index(name)
      alike = [
        found.codes[row, u] == found.codes[other, u]
        for u in range(found.codes.shape[1])
        for other in range(len(found.annotators))
        if other != row
        and not math.isnan(found.codes[row, u])
        and not math.isnan(found.codes[other, u])
      ]
      with_others[question.name] = sum(alike) / len(alike) if alike else None
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
