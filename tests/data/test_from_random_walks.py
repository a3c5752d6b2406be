"""Random walks as a task: what a walk is worth, by hand; that walks are walks; and what is said of them."""

import itertools

import numpy as np
import pytest

from rlhf_jax.data import tasks
from rlhf_jax.data.bytes import byte_tokenizer
from rlhf_jax.data.from_random_walks import (
  LETTERS,
  Graph,
  distances,
  draw_graph,
  draw_walks,
  optimality,
)

LONGEST = 7


def drawn(edges: str) -> Graph:
  """`ba cb` has edges from b to a and from c to b."""
  size = 1 + max(LETTERS.index(letter) for edge in edges.split() for letter in edge)
  matrix = np.zeros((size, size), bool)
  for here, there in edges.split():
    matrix[LETTERS.index(here), LETTERS.index(there)] = True
  return Graph(matrix, distances(matrix))


#   e → d → c → b → a      d → b and b → e are the ways round; f leads to itself and nowhere else
SMALL = drawn("ba cb dc db ed be ff")


def test_shortest_paths_are_counted_in_steps():
  assert SMALL.distances.tolist() == [0, 1, 2, 2, 3, -1]


@pytest.mark.parametrize("seed", range(5))
def test_shortest_paths_agree_with_counting_every_path(seed):
  edges = np.random.default_rng(seed).random((9, 9)) < 0.15
  edges[0] = False
  paths = [np.linalg.matrix_power(edges.astype(int), steps)[:, 0] for steps in range(9)]
  first = [next((s for s in range(9) if paths[s][node]), -1) for node in range(9)]
  assert distances(edges).tolist() == first


@pytest.mark.parametrize(
  "walk, worth",
  {
    "ba": 1,
    "cba": 1,
    "dba": 1,
    "edba": 1,
    "dcba": 2 / 3,
    "edcba": 3 / 4,
    "bedba": 1 / 4,  # once round: four steps where one would do
    "bedcba": 1 / 5,
    "bedbedba": 1 / 7,  # the longest that counts
    "bedbedcba": 0,  # one step more
    "b": 0,
    "": 0,
    "cb": 0,  # stops before the goal
    "ca": 0,  # no such edge
    "cbaa": 0,  # the goal has no way out
    "cba ": 0,
    "cbAa": 0,  # over the letter of a node that is not there
    "cbéba": 0,
    "a": 0,
  }.items(),
)
def test_a_walk_is_worth_the_shortest_path_over_its_own_steps(walk, worth):
  assert optimality(SMALL, walk, LONGEST) == pytest.approx(worth, abs=1e-12)


def test_every_walk_follows_edges_to_the_goal_or_for_as_long_as_it_may():
  rng = np.random.default_rng(3)
  graph = draw_graph(11, 0.15, LONGEST, rng)
  walks = draw_walks(graph, 300, LONGEST, rng)
  for nodes, worth in walks:
    places = [LETTERS.index(letter) for letter in nodes]
    steps = [graph.edges[i, j] for i, j in itertools.pairwise(places)]
    assert nodes[0] != "a" and all(steps) and "a" not in nodes[:-1]
    assert len(steps) == LONGEST or nodes[-1] == "a"
    assert (worth > 0) == (nodes[-1] == "a") and worth <= 1
  assert {nodes[0] for nodes, _ in walks} == set(LETTERS[1:11])
  assert 0 < sum(worth == 1 for _, worth in walks) < len(walks)


def test_the_goal_is_near_enough_from_everywhere():
  for seed in range(5):
    graph = draw_graph(8, 0.2, 3, np.random.default_rng(seed))
    assert graph.distances[0] == 0 and np.all(graph.distances[1:] >= 1)
    assert graph.distances.max() <= 3
    assert not graph.edges.diagonal().any() and not graph.edges[0].any()


def load(seed=0, **options):
  settings = tasks.Settings(
    **dict(source="random_walks", nodes=9, walks=200, edge_probability=0.2, test_prompts=20)
    | options
  )
  return tasks.load_task(settings, byte_tokenizer(), rollout_tokens=11, seed=seed)


def words(examples) -> list[str]:
  return byte_tokenizer().batch_decode([e.tokens for e in examples], skip_special_tokens=True)


def test_a_prompt_is_a_start_and_an_answer_the_rest_with_an_end_mark():
  task, tokenizer = load(), byte_tokenizer()
  for text, prompt, word in zip(task.sft, task.prompts, words(task.sft), strict=True):
    assert text.tokens[:1] == prompt.tokens and text.response_mask == [0, *[1] * len(word)]
    assert text.tokens[-1] == tokenizer.eos_token_id and len(text.tokens) == len(word) + 1
  assert words(task.test_prompts) == [*"bcdefghi", *"bcdefghi", *"bcde"]


def test_the_verifier_gives_the_optimality_that_the_walks_are_rated_with():
  task = load()
  rated = task.feedback("ratings", 0)
  answers = [word[1:] for word in words(task.sft)]
  worth = task.verifier([prompt.id for prompt in task.prompts], answers)
  assert worth.tolist() == [record.labels[0] for record in rated]
  assert task.attributes == ("optimality",) and len(rated) == 200
  assert task.verifier(["b 0", "c 1"], ["?", ""]).tolist() == [0, 0]


def test_walks_depend_on_the_seed_of_the_graph_alone():
  assert load(seed=0).sft == load(seed=1).sft
  assert load(graph_seed=1).sft != load(graph_seed=2).sft


def test_pairs_are_two_walks_from_one_start_the_better_first():
  task = load()
  worth = {record.id: record.labels[0] for record in task.feedback("ratings", 0)}
  pairs = task.feedback("pairs", 0)
  for pair in pairs:
    assert pair.chosen.tokens[0] == pair.rejected.tokens[0]
    assert worth[pair.chosen.id] > worth[pair.rejected.id]
  uses = [answer.id for pair in pairs for answer in pair.answers]
  assert max(uses.count(id) for id in uses) == 2 and len(pairs) > 50
  assert task.feedback("pairs", 0) == pairs != task.feedback("pairs", 1)


def test_marks_are_right_above_the_mean_of_the_walks_from_the_same_start():
  task = load()
  rated = {record.id: record.labels[0] for record in task.feedback("ratings", 0)}
  mean = lambda start: np.mean([worth for id, worth in rated.items() if id[0] == start])
  marks = task.feedback("marks", 0)
  assert {mark.id for mark in marks} == set(rated)
  assert all(mark.labels[0] == float(rated[mark.id] > mean(mark.id[0])) for mark in marks)


def test_rankings_order_walks_from_one_start():
  task = load()
  worth = {record.id: record.labels[0] for record in task.feedback("ratings", 0)}
  rankings = task.feedback("rankings", 0)
  for ranking in rankings:
    assert len({answer.id[0] for answer in ranking.answers}) == 1 and len(ranking.answers) == 4
    values = [worth[answer.id] for answer in ranking.answers]
    assert list(ranking.ranks) == [1 + sum(other > mine for other in values) for mine in values]
  assert len(rankings) > 30


def test_held_out_feedback_is_of_other_walks_on_the_same_graph():
  task = load()
  records = task.held_out_feedback("ratings")
  answers = [word[1:] for word in words([record.answer for record in records])]
  worth = task.verifier([record.id for record in records], answers)
  assert worth.tolist() == [record.labels[0] for record in records]
  assert words([record.answer for record in records]) != words(task.sft)
  assert task.feedback("classes", 0) == [] == task.held_out_feedback("tokens")


def test_what_was_drawn_is_described():
  (note,) = load().notes
  rated = [record.labels[0] for record in load().feedback("ratings", 0)]
  assert f"mean optimality {np.mean(rated):.3f}" in note and "of 200 walks" in note
