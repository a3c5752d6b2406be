"""Blind comparisons between policies: what they wrote on the same held-out prompts, two answers at a time.

An arena is a project of pairs (`feedback/project.py`), so annotators, invitations and exports are those of `rlhf-jax label`; which
policy wrote an answer is stored with it and shown to nobody who judges. Policies rank by Bradley and Terry's model, or Davidson's
where answers tie (`evaluation/ranking.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.config import suggest
from rlhf_jax.evaluation import ranking
from rlhf_jax.feedback import export
from rlhf_jax.feedback.project import Item
from rlhf_jax.feedback.store import Store
from rlhf_jax.training import written

OUTCOMES = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}


class Player(NamedTuple):
  name: str
  run: str  # its workdir
  responses: dict[str, str]  # prompt -> what it wrote


def players(runs: Sequence[Path], chosen: Sequence[str] = ()) -> list[Player]:
  """The policies of evaluated runs, `chosen` ones alone if any are. Raises ValueError for a name that none has."""
  known = dict(written.files(list(runs)))
  for name in chosen:
    if name not in known:
      raise ValueError(f"{name!r} is not a policy of these runs{suggest(name, known)}")
  found = []
  for name in chosen or known:
    rows = written.answers(known[name], ("prompt", "response"))
    responses = {row["prompt"]: row["response"] for row in reversed(rows)}  # the first of a prompt
    found.append(Player(name, str(known[name].parent.parent), responses))
  return found


def matches(found: Sequence[Player], count: int, seed: int = 0) -> list[Item]:
  """`count` items, or as many as there are, in a balanced random order: every pair of players and every prompt about as often.

  Pairs take turns, each going through the prompts from a place of its own; answers that are the same are not compared. A
  larger count begins with the same items.
  """
  if len(found) < 2:
    raise ValueError(f"{len(found)} policies; an arena needs two.")
  first, *rest = found
  prompts = [p for p in first.responses if all(p in other.responses for other in rest)]
  if not prompts:
    raise ValueError(
      f"no held-out prompt was answered by all of {', '.join(p.name for p in found)}; compare policies that were "
      "evaluated on the same ones."
    )
  rng = np.random.default_rng(seed)
  prompts = [prompts[i] for i in rng.permutation(len(prompts))]
  pairs = list(itertools.combinations(found, 2))
  waiting = []
  for place, (a, b) in enumerate(pairs):
    start = place * len(prompts) // len(pairs)
    turned = prompts[start:] + prompts[:start]
    waiting.append([p for p in turned if a.responses[p] != b.responses[p]])
    if not waiting[-1]:
      raise ValueError(f"{a.name} and {b.name} wrote the same answers; leave one of them out.")
  items = []
  for turn in range(len(prompts)):
    for place in rng.permutation(len(pairs)):
      two = [pairs[place][k] for k in rng.permutation(2)]
      if turn < len(waiting[place]):
        prompt = waiting[place][turn]
        answers = tuple(
          {"content": p.responses[prompt], "model": p.name, "checkpoint": p.run} for p in two
        )
        items.append(Item(f"{len(items) + 1:05d}", prompt, answers))
  return items[:count]


class Standings(NamedTuple):
  """What an arena's judgements come to."""

  rows: list[ranking.Standing]
  nu: float  # Davidson's ν; 0 where nothing tied
  judgements: int
  prompts: int


def standings(store: Store, *, prior: float = 0.0, baseline: str | None = None) -> Standings:
  """Abilities of all players by the judgements so far, "both bad" a tie, with 95 % intervals.

  The intervals allow for judgements on one prompt being related. Raises ValueError, with the remedy, where they have no maximum.
  """
  said = _outcomes(store)
  if not said:
    raise ValueError("nothing is judged yet.")
  names = list(dict.fromkeys(a["model"] for item in store.items() for a in item.answers))
  place = {name: i for i, name in enumerate(names)}
  prompts = list(dict.fromkeys(prompt for prompt, *_ in said))
  number = {prompt: g for g, prompt in enumerate(prompts)}
  wins, ties = np.zeros((2, len(prompts), len(names), len(names)))
  for prompt, a, b, outcome in said:
    g, i, j = number[prompt], place[a], place[b]
    wins[g, i, j] += outcome == 1.0
    wins[g, j, i] += outcome == 0.0
    ties[g, [i, j], [j, i]] += outcome == 0.5
  if len(prompts) == 1:
    wins, ties = wins[0], ties[0]
  found = ranking.bradley_terry(wins, ties, names=names, prior=prior)
  rows = ranking.standings(found, wins, ties, baseline)
  return Standings(rows, found.nu, len(said), len(prompts))


def _outcomes(store: Store) -> list[tuple[str, str, str, float]]:
  """(prompt, first's name, second's, 1 where the first was better) of every judgement; of a decided item the decision alone."""
  (question,) = store.project.questions
  decided, said = export.adjudicated(store), {}
  for judgement in export.judgements(store):
    if judgement.item.id not in decided:
      said[judgement.item.id, judgement.annotator] = judgement.said
  said |= {(id, name): values for id, (name, values) in decided.items()}
  items: Mapping[str, Item] = {item.id: item for item in store.items()}
  found = []
  for (id, _), values in said.items():
    item = items[id]
    first, second = (answer["model"] for answer in item.answers)
    found.append((item.prompt, first, second, OUTCOMES[values[question.name]["choice"]]))
  return found
