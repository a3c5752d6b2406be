"""How far annotators agree: Cohen's and Fleiss' kappa and Krippendorff's alpha of every question, with 95 % intervals.

A question is cut into units that each got one answer from an annotator: an item's choice, one scale of its rating, the place of one
answer in a ranking, one step, one word that was marked or not. Intervals are percentile bootstraps over items, so that units of one
item stay together.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import krippendorff
import numpy as np

from rlhf_jax.feedback.export import Judgement
from rlhf_jax.feedback.project import Project, Question, text_of

RESAMPLES = 500


class Estimate(NamedTuple):
  """A number and its 95 % interval; NaN where it is not defined."""

  value: float
  low: float
  high: float


class Units(NamedTuple):
  """What annotators said of the units of one question, NaN where they did not."""

  codes: np.ndarray  # float[annotators, units]
  items: np.ndarray  # int[units], the item of each
  annotators: tuple[str, ...]
  level: str  # of measurement: nominal, ordinal, interval


def units(judgements: Sequence[Judgement], question: Question, project: Project) -> Units:
  """Of the question's every unit, what each annotator said."""
  level, cut = UNITS[question.form]
  annotators = tuple(sorted({j.annotator for j in judgements}))
  found: dict[tuple, dict[str, float]] = {}
  for j in judgements:
    if question.name in j.said:
      for unit, code in cut(question, j, j.said[question.name], project):
        found.setdefault((j.item.id, unit), {})[j.annotator] = code
  ids = {item: i for i, item in enumerate(dict.fromkeys(item for item, _ in found))}
  codes = np.full((len(annotators), len(found)), np.nan)
  for column, said in enumerate(found.values()):
    for name, code in said.items():
      codes[annotators.index(name), column] = code
  return Units(codes, np.asarray([ids[item] for item, _ in found], int), annotators, level)


def agreement(found: Units, seed: int = 0) -> dict[str, Estimate | int]:
  """`alpha`, `kappa` (Fleiss', where the units are nominal), `alike` (the share of pairs of answers that are equal), and counts."""
  shared = np.sum(~np.isnan(found.codes), axis=0) >= 2
  codes, items = found.codes[:, shared], found.items[shared]
  result: dict[str, Estimate | int] = {
    "units": int(shared.sum()),
    "items": len(set(items.tolist())),
    "annotators": int(np.sum(np.any(~np.isnan(codes), axis=1))) if codes.size else 0,
    "alpha": _bootstrapped(lambda c: alpha(c, found.level), codes, items, seed),
    "alike": _bootstrapped(alike, codes, items, seed),
  }
  if found.level == "nominal":
    result["kappa"] = _bootstrapped(fleiss_kappa, codes, items, seed)
  return result


def between(found: Units, seed: int = 0) -> dict[tuple[str, str], Estimate]:
  """Cohen's kappa of every two annotators who share a unit; with linear weights where the units are ordered."""
  result = {}
  for (i, first), (j, second) in itertools.combinations(enumerate(found.annotators), 2):
    both = ~np.isnan(found.codes[i]) & ~np.isnan(found.codes[j])
    if both.any():
      kappa = lambda c: cohen_kappa(c[0], c[1], ordered=found.level != "nominal")
      pair = _bootstrapped(kappa, found.codes[[i, j]][:, both], found.items[both], seed)
      result[first, second] = pair
  return result


def alpha(codes: np.ndarray, level: str) -> float:
  """Krippendorff's alpha of float[annotators, units]; NaN where nothing varies or nobody shares a unit."""
  shared = codes[:, np.sum(~np.isnan(codes), axis=0) >= 2]
  if shared.size == 0 or len(np.unique(shared[~np.isnan(shared)])) < 2:
    return np.nan
  return float(krippendorff.alpha(shared, level_of_measurement=level))


def fleiss_kappa(codes: np.ndarray) -> float:
  """Fleiss' kappa, with as many answers a unit as there are (Fleiss, Levin & Paik 2003, eq. 18.28 of unequal numbers).

  NaN where all answers are alike.
  """
  counts = _counts(codes)
  if counts.size == 0 or len(counts) < 2:
    return np.nan
  n = counts.sum(axis=0)
  observed = np.mean(np.sum(counts * (counts - 1), axis=0) / (n * (n - 1)))
  share = counts.sum(axis=1) / counts.sum()
  expected = np.sum(np.square(share))
  return float((observed - expected) / (1 - expected)) if expected < 1 else np.nan


def cohen_kappa(first: np.ndarray, second: np.ndarray, *, ordered: bool = False) -> float:
  """Cohen's kappa of two annotators on the same units, with linear weights where the answers are ordered."""
  values = np.unique(np.concatenate([first, second]))
  if len(values) < 2:
    return np.nan
  a, b = np.searchsorted(values, first), np.searchsorted(values, second)
  joint = np.zeros((len(values), len(values)))
  np.add.at(joint, (a, b), 1 / len(a))
  apart = np.abs(values[:, None] - values[None]) if ordered else 1.0 - np.eye(len(values))
  expected = np.sum(apart * np.outer(joint.sum(axis=1), joint.sum(axis=0)))
  return float(1 - np.sum(apart * joint) / expected) if expected > 0 else np.nan


def alike(codes: np.ndarray) -> float:
  """In what share of pairs of answers to one unit both are equal."""
  counts = _counts(codes)
  n = counts.sum(axis=0)
  return float(np.sum(counts * (counts - 1)) / np.sum(n * (n - 1))) if counts.size else np.nan


def _counts(codes: np.ndarray) -> np.ndarray:
  """How often each value was said of each unit that several annotators share, int[values, units]."""
  values = np.unique(codes[~np.isnan(codes)])
  counts = np.sum(codes[None] == values[:, None, None], axis=1)
  return counts[:, counts.sum(axis=0) >= 2]


def _bootstrapped(measure: Callable, codes: np.ndarray, items: np.ndarray, seed: int) -> Estimate:
  value = measure(codes) if codes.size else np.nan
  if np.isnan(value):
    return Estimate(np.nan, np.nan, np.nan)
  columns = [np.flatnonzero(items == item) for item in np.unique(items)]
  rng, drawn = np.random.default_rng(seed), []
  for _ in range(RESAMPLES):
    chosen = rng.integers(0, len(columns), len(columns))
    drawn.append(measure(codes[:, np.concatenate([columns[i] for i in chosen])]))
  if np.all(np.isnan(drawn)):
    return Estimate(value, np.nan, np.nan)
  low, high = np.nanquantile(drawn, [0.025, 0.975])
  return Estimate(float(value), float(low), float(high))


# One function a form: (question, judgement, value, project) -> (unit, code) of each unit.

CHOICES = {"first": 0.0, "tie": 1.0, "second": 2.0, "both_bad": 3.0}


def _ranks(question: Question, judgement: Judgement, value: dict, project: Project):
  return ((i, float(rank)) for i, rank in enumerate(value["ranks"]) if rank is not None)


def _words(question: Question, judgement: Judgement, value: dict, project: Project):
  """Of each word the place of its category, 0 where it is not marked."""
  for i, word in enumerate(re.finditer(r"\S+", text_of(judgement.item.answers[0]["content"]))):
    over = [s for s in value["spans"] if s["start"] < word.end() and s["end"] > word.start()]
    yield i, 1.0 + question.categories.index(over[0]["label"]) if over else 0.0


def _steps(question: Question, judgement: Judgement, value: dict, project: Project):
  return ((i, float(label)) for i, label in enumerate(value["labels"]) if label is not None)


def _nothing(question, judgement, value, project) -> Iterator:
  """Texts of corrections are not compared."""
  return iter(())


UNITS: dict[str, tuple[str, Callable]] = {
  "pairs": ("nominal", lambda q, j, v, p: [(0, CHOICES[v["choice"]])]),
  "rankings": ("ordinal", _ranks),
  "ratings": ("interval", lambda q, j, v, p: [(name, float(x)) for name, x in v.items()]),
  "classes": ("ordinal", lambda q, j, v, p: [(0, float(q.classes.index(v["class"])))]),
  "marks": ("nominal", lambda q, j, v, p: [(0, float(v["label"]))]),
  "spans": ("nominal", _words),
  "corrections": ("nominal", _nothing),
  "steps": ("nominal", _steps),
}
