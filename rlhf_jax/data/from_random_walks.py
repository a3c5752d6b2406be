"""Random walks on a graph as a task: learn the shortest path to a goal from walks that mostly miss it.

The task of arXiv:2106.01345, figure 2, as one of language. A directed graph is drawn once, an edge between any two nodes with
one probability; node `a` is the goal, and no edge leaves it. Walks start anywhere else and follow edges at random until they
are at the goal or have taken `longest_walk` steps. Nodes are letters and a walk is a word: `fcka` goes from f over c and k to the
goal. A prompt is the first letter, an answer the rest. What a walk is worth is its optimality,

  (steps of the shortest path from its start) / (its own steps)     where it is a walk along edges that ends at the goal
                                                                    after at most `longest_walk` steps,
  0                                                                 otherwise,

so that 1 is a shortest path. Graph and walks depend on `data.graph_seed` alone, and not on the run's seed: several runs
learn from the same walks.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data import chat
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, Record
from rlhf_jax.data.task import FILES, Settings, Task

GOAL = 0
LETTERS = string.ascii_letters
RANKED = 4  # walks in a ranking
TRIES = 10_000  # graphs drawn until the goal is near enough from everywhere


class Graph(NamedTuple):
  """Node `GOAL` has no edge of its own."""

  edges: np.ndarray  # bool[N, N], [i, j] is True where an edge leads from i to j
  distances: np.ndarray  # int[N], steps of the shortest path to the goal; −1 where there is none


class Walk(NamedTuple):
  nodes: str  # a letter each, the start first
  optimality: float


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """Optimality as ratings of the walks, and as pairs, rankings and marks of walks from one start.

  A pair is a walk and another one from its start, the better first; equal ones make no pair. A walk is marked
  right where it is better than the mean of those from its start. Held-out feedback is of further walks on the same graph.
  """
  for name in FILES:
    if getattr(settings, name):
      raise ValueError(
        f"data.{name} is read with data.source='files' alone, and that is 'random_walks'; set one of them."
      )
  longest = settings.longest_walk
  size = longest + 2  # the start, a letter a step, and an end mark
  if size > settings.max_tokens:
    raise ValueError(
      f"data.longest_walk={longest} makes texts of {size} tokens, and data.max_tokens={settings.max_tokens}; raise it or "
      "lower data.longest_walk."
    )
  rng = np.random.default_rng(settings.graph_seed)
  graph = draw_graph(settings.nodes, settings.edge_probability, longest, rng)
  train, held_out = (draw_walks(graph, settings.walks, longest, rng) for _ in range(2))
  starts = LETTERS[1 : settings.nodes]

  def example(place: int, walk: Walk) -> Example:
    text = chat.plain(tokenizer, walk.nodes[0], walk.nodes[1:])
    return Example(f"{walk.nodes[0]} {place}", *text)

  def prompt(place: int, start: str) -> Example:
    return Example.prompt(f"{start} {place}", chat.plain_prompt(tokenizer, start))

  def verifier(ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Optimality float[N] of answers to prompts, whose ids begin with the start."""
    walks = (id[0] + text for id, text in zip(ids, texts, strict=True))
    return np.asarray([optimality(graph, nodes, longest) for nodes in walks])

  def feedback(walks: list[Walk], form: str, epoch: int) -> list[Record]:
    examples = [example(i, walk) for i, walk in enumerate(walks)]
    of = _FORMS.get(form, lambda *_: [])
    return of(walks, examples, np.random.default_rng((seed, epoch)))

  texts = [example(i, walk) for i, walk in enumerate(train)]
  return Task(
    sft=texts,
    feedback=functools.partial(feedback, train),
    held_out_feedback=lambda form: feedback(held_out, form, 0),
    attributes=("optimality",),
    prompts=[prompt(i, walk.nodes[0]) for i, walk in enumerate(train)],
    test_prompts=[prompt(i, starts[i % len(starts)]) for i in range(settings.test_prompts)],
    held_out=None,
    train=None,
    judge=None,
    notes=(_describe(settings, graph, train),),
    verifier=verifier,
  )


def draw_graph(
  nodes: int, edge_probability: float, longest: int, rng: np.random.Generator
) -> Graph:
  """The first of the graphs drawn from which every node has a path to the goal of at most `longest` steps."""
  for _ in range(TRIES):
    edges = rng.random((nodes, nodes)) < edge_probability
    np.fill_diagonal(edges, False)
    edges[GOAL] = False
    found = distances(edges)
    if np.all(found >= 0) and np.all(found <= longest):
      return Graph(edges, found)
  raise ValueError(
    f"in none of {TRIES} graphs with data.nodes={nodes} and data.edge_probability={edge_probability} is the goal within "
    f"data.longest_walk={longest} steps of every node; raise one of the last two."
  )


def distances(edges: np.ndarray) -> np.ndarray:
  """int[N], the steps of the shortest path from each node to the goal, −1 where there is none: breadth first, backwards."""
  found = np.full(len(edges), -1)
  found[GOAL] = 0
  last = found == 0
  for steps in range(1, len(edges)):
    last = edges[:, last].any(axis=1) & (found < 0)
    found[last] = steps
  return found


def draw_walks(graph: Graph, count: int, longest: int, rng: np.random.Generator) -> list[Walk]:
  """Walks from random starts, each step along an edge at random, to the goal or for `longest` steps."""
  walks = []
  for _ in range(count):
    nodes = [rng.integers(1, len(graph.edges))]
    while nodes[-1] != GOAL and len(nodes) <= longest:
      nodes.append(rng.choice(np.flatnonzero(graph.edges[nodes[-1]])))
    word = "".join(LETTERS[node] for node in nodes)
    walks.append(Walk(word, optimality(graph, word, longest)))
  return walks


def optimality(graph: Graph, walk: str, longest: int) -> float:
  """Steps of the shortest path over those of `walk`; 0 for what is no walk, misses the goal or takes more than `longest` steps."""
  nodes = [LETTERS.find(letter) for letter in walk]
  steps = len(nodes) - 1
  if not 1 <= steps <= longest or nodes[-1] != GOAL:
    return 0.0
  if not all(0 <= node < len(graph.edges) for node in nodes):
    return 0.0
  if not all(graph.edges[here, there] for here, there in itertools.pairwise(nodes)):
    return 0.0
  return float(graph.distances[nodes[0]] / steps)


def _ratings(walks: list[Walk], examples: list[Example], rng) -> list[Labelled]:
  return [Labelled(e, (walk.optimality,)) for walk, e in zip(walks, examples, strict=True)]


def _marks(walks: list[Walk], examples: list[Example], rng) -> list[Labelled]:
  marks = []
  for places in _by_start(walks):
    mean = np.mean([walks[i].optimality for i in places])
    marks += [Labelled(examples[i], (float(walks[i].optimality > mean),)) for i in places]
  return marks


def _pairs(walks: list[Walk], examples: list[Example], rng) -> list[Pair]:
  """Each walk with the next one from its start, in a random circle."""
  pairs = []
  for places in _by_start(walks):
    order = rng.permutation(places)
    for i, j in zip(order, np.roll(order, 1), strict=True):
      if walks[i].optimality != walks[j].optimality:
        w, l = sorted((i, j), key=lambda place: -walks[place].optimality)
        pairs.append(Pair(examples[w], examples[l]))
  return pairs


def _rankings(walks: list[Walk], examples: list[Example], rng) -> list[Ranking]:
  """Walks from one start, `RANKED` at a time, equal ones tied."""
  rankings = []
  for places in _by_start(walks):
    order = rng.permutation(places)
    for first in range(0, len(order) - RANKED + 1, RANKED):
      few = order[first : first + RANKED]
      worth = np.asarray([walks[i].optimality for i in few])
      ranks = 1 + (worth[None] > worth[:, None]).sum(axis=1)
      rankings.append(Ranking(tuple(examples[i] for i in few), tuple(ranks.tolist())))
  return rankings


_FORMS = {"ratings": _ratings, "marks": _marks, "pairs": _pairs, "rankings": _rankings}


def _by_start(walks: list[Walk]) -> list[list[int]]:
  """Of each start, the places of its walks."""
  starts = sorted({walk.nodes[0] for walk in walks})
  return [[i for i, walk in enumerate(walks) if walk.nodes[0] == start] for start in starts]


def _describe(settings: Settings, graph: Graph, walks: list[Walk]) -> str:
  arrived = np.mean([walk.optimality > 0 for walk in walks])
  shortest = np.mean([walk.optimality == 1 for walk in walks])
  mean = np.mean([walk.optimality for walk in walks])
  return (
    f"random walks: {settings.nodes} nodes, {graph.edges.sum()} edges, shortest paths of up to {graph.distances.max()} steps; "
    f"of {len(walks)} walks {arrived:.1%} arrive, {shortest:.1%} by a shortest path, mean optimality {mean:.3f}; an answer takes "
    f"up to {settings.longest_walk + 1} tokens"
  )
