"""Annotators whose faults are known, for tests and for studies: noise, a liking for one side, for length, and little care.

An annotator prefers answers by a utility u (a judge's score, say), and says so by

    P(left is better) = σ((u_left − u_right) / τ + position + length · log(|left| / |right|))

except that with the probability `noise` everything that can be said is equally likely. Rankings are drawn by Plackett-Luce from the
same utilities, ratings, classes and marks by where u falls among them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.feedback.project import Item, Question, text_of
from rlhf_jax.feedback.store import Store


class Simulated(NamedTuple):
  """One annotator."""

  noise: float = 0.0  # the share of answers that are drawn blindly
  temperature: float = 1.0  # τ, in units of the utility; 0 always says what is better
  position: float = 0.0  # log-odds for what is shown first
  length: float = (
    0.0  # log-odds for the longer answer, per unit of the logarithm of the lengths' ratio
  )
  tie: float = 0.0  # how near two utilities are said to be equal


def say(
  annotator: Simulated, question: Question, item: Item, shown: Sequence[int], utility, rng
) -> dict:
  """A value of `question` on `item`; `utility` float[K] of its answers. Raises ValueError for forms of marked text."""
  if question.form not in SAID:
    raise ValueError(f"simulated annotators do not answer questions of {question.form}")
  utility = np.asarray(utility, float)
  blind = rng.random() < annotator.noise
  return SAID[question.form](annotator, question, item, shown, utility, blind, rng)


def label_all(
  store: Store,
  annotators: Mapping[str, Simulated],
  utility: Callable[[Item], Sequence[float]],
  *,
  seed: int = 0,
  limit: int | None = None,
) -> int:
  """Lets the annotators judge in turn until nothing is left for them, or `limit` judgements are made; how many were.

  What one says of an item depends on the seed, the annotator's place and the item's id, not on what came before.
  """
  places = {name: place for place, name in enumerate(annotators)}
  known = {annotator.name for annotator in store.annotators()}
  for name in annotators:
    if name not in known:
      store.invite(name)
  made, waiting = 0, list(annotators)
  while waiting and (limit is None or made < limit):
    name = waiting.pop(0)
    handed = store.next_item(name)
    if handed is None:
      continue
    rng = np.random.default_rng((seed, places[name], zlib.crc32(handed.item.id.encode())))
    said = {
      q.name: say(annotators[name], q, handed.item, handed.shown, utility(handed.item), rng)
      for q in store.project.questions
    }
    store.judge(name, handed.item.id, said, key=f"simulated-{name}-{handed.item.id}"[-64:])
    made += 1
    waiting.append(name)
  return made


def _pairs(annotator, question, item, shown, utility, blind, rng) -> dict:
  if blind:
    return {"choice": ("first", "second")[rng.integers(2)]}
  left, right = shown
  apart = utility[left] - utility[right]
  if abs(apart) < annotator.tie:
    return {"choice": "tie"}
  sizes = [max(len(text_of(item.answers[place]["content"])), 1) for place in shown]
  bias = annotator.position + annotator.length * math.log(sizes[0] / sizes[1])
  chosen = left if _decides(apart, bias, annotator.temperature, rng) else right
  return {"choice": ("first", "second")[chosen]}


def _rankings(annotator, question, item, shown, utility, blind, rng) -> dict:
  K = len(utility)
  if blind:
    order = rng.permutation(K)
  else:  # the order of perturbed utilities is a draw from Plackett-Luce (Yellott 1977)
    order = np.argsort(-(utility + annotator.temperature * rng.gumbel(size=K)))
  ranks = np.empty(K, int)
  ranks[order] = np.arange(1, K + 1)
  return {"ranks": ranks.tolist()}


def _ratings(annotator, question, item, shown, utility, blind, rng) -> dict:
  said = {}
  for scale in question.scales:
    low, high = scale["low"], scale["high"]
    share = rng.random() if blind else _sigmoid(_perturbed(annotator, utility[0], rng))
    said[scale["name"]] = int(np.clip(round(low + share * (high - low)), low, high))
  return said


def _classes(annotator, question, item, shown, utility, blind, rng) -> dict:
  K = len(question.classes)
  share = rng.random() if blind else _sigmoid(_perturbed(annotator, utility[0], rng))
  return {"class": question.classes[min(int(share * K), K - 1)]}


def _marks(annotator, question, item, shown, utility, blind, rng) -> dict:
  label = rng.random() < 0.5 if blind else _perturbed(annotator, utility[0], rng) > 0
  return {"label": bool(label)}


SAID = {
  "pairs": _pairs,
  "rankings": _rankings,
  "ratings": _ratings,
  "classes": _classes,
  "marks": _marks,
}


def _decides(apart: float, bias: float, temperature: float, rng) -> bool:
  """Whether the left one is said to be better."""
  if temperature == 0:
    return bool(apart > 0 if apart else rng.random() < 0.5)
  return bool(rng.random() < _sigmoid(apart / temperature + bias))


def _perturbed(annotator: Simulated, utility: float, rng) -> float:
  """The utility with logistic noise, so that its sign is that of a Bradley-Terry comparison with 0."""
  return utility + annotator.temperature * rng.logistic()


def _sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x)) if x > -500 else 0.0
