"""Records of feedback become batches that hold what people said beside the tokens they said it of."""

import numpy as np
import pytest

from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, TokenLabelled

PROMPT = Example.prompt("p", [5, 6])
SHORT, LONG = PROMPT.continued("s", [7]), PROMPT.continued("l", [8, 9, 10])
OTHER = Example.prompt("q", [4]).continued("o", [3, 2])


def logps(example: Example) -> np.ndarray:
  return -np.asarray(example.tokens, np.float32)


def test_a_prompt_goes_on_with_an_answer_that_alone_is_the_policys():
  assert LONG.tokens == [5, 6, 8, 9, 10] and LONG.response_mask == [0, 0, 1, 1, 1]
  assert Example.text("t", [1, 2]).response_mask == [1, 1]


def test_a_pair_carries_how_far_it_is_preferred_and_the_references_log_probabilities():
  pairs = [Pair(LONG, SHORT), Pair(SHORT, LONG, preference=0.5, margin=2.0)]
  batch = examples.collate_records(pairs, 6, logps)
  np.testing.assert_array_equal(batch.chosen.tokens, [[5, 6, 8, 9, 10, 0], [5, 6, 7, 0, 0, 0]])
  np.testing.assert_array_equal(batch.preference, [1.0, 0.5])
  np.testing.assert_array_equal(batch.margin, [0.0, 2.0])
  np.testing.assert_array_equal(
    batch.ref_rejected_logps, [[-5, -6, -7, 0, 0, 0], [-5, -6, -8, -9, -10, 0]]
  )
  assert examples.collate_records(pairs, 6).ref_chosen_logps is None


def test_a_pair_may_stand_in_one_row_with_its_prompt_once():
  layout = examples.Layout(5, shared=7, asked_shared=5)
  batch = examples.collate_records([Pair(LONG, SHORT), Pair(SHORT, SHORT)], layout)
  rows = batch.together.rows
  np.testing.assert_array_equal(rows.tokens, [[5, 6, 8, 9, 10, 7, 0], [5, 6, 7, 0, 0, 0, 0]])
  np.testing.assert_array_equal(rows.branches, [[0, 0, 1, 1, 1, 2, 0], [0] * 7])
  np.testing.assert_array_equal(rows.positions[0], [0, 1, 2, 3, 4, 2, 0])
  np.testing.assert_array_equal(rows.segments, [[1] * 6 + [0], [1] * 3 + [0] * 4])
  np.testing.assert_array_equal(rows.asked, [[2, 3, 4, 5, -1], [2, -1, -1, -1, -1]])
  np.testing.assert_array_equal(batch.together.at[0], [[0, 1, 2, 3, 4], [0, 1, 5, -1, -1]])
  np.testing.assert_array_equal(batch.together.at[1], [[0, 1, 2, -1, -1]] * 2)
  assert batch.together.fork is None


def test_each_part_of_a_pairs_row_may_have_columns_of_its_own():
  layout = examples.Layout(5, shared=9, asked_shared=5, fork=3)
  together = examples.collate_records([Pair(LONG, SHORT)], layout).together
  np.testing.assert_array_equal(together.rows.tokens, [[5, 6, 0, 8, 9, 10, 7, 0, 0]])
  np.testing.assert_array_equal(together.rows.segments, [[1, 1, 0, 1, 1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(together.rows.branches, [[0, 0, 0, 1, 1, 1, 2, 0, 0]])
  np.testing.assert_array_equal(together.at, [[[0, 1, 3, 4, 5], [0, 1, 6, -1, -1]]])
  assert together.fork == (3, 2)


def test_a_width_has_one_layout_and_no_gathering_that_saves_little():
  prompt = Example.prompt("p", [1] * 20)
  short, long = (Pair(*(prompt.continued("a", [t] * n) for t in (2, 3))) for n in (4, 10))
  alone = Pair(*(Example.text("t", [t] * 7) for t in (2, 3)))
  batches = [(24, [short, short]), (32, [short]), (32, [long]), (8, [alone])]
  assert examples.layouts(batches, share_prompt=True) == {
    24: examples.Layout(24, asked=8, shared=32, asked_shared=8, dense=32),
    32: examples.Layout(32, asked=16, shared=40, asked_shared=24, dense=40),
    8: examples.Layout(8, dense=16),
  }
  even = Pair(*(prompt.continued("a", [t] * 8) for t in (2, 3)))
  forked = examples.layouts([(32, [even])], share_prompt=True)[32]
  assert (forked.shared, forked.fork) == (40, 24)
  assert examples.layouts(batches, share_prompt=False)[24] == examples.Layout(24, asked=8)


def test_pairs_are_packed_where_their_batch_then_has_less_to_compute():
  prompt = Example.prompt("p", [1] * 6)
  short, long = (Pair(*(prompt.continued("a", [t] * n) for t in (2, 3))) for n in (1, 9))
  pairs = [short, long, long, short]
  layout = examples.layouts([(16, pairs)], share_prompt=True)[16]
  assert layout == examples.Layout(16, shared=24, dense=24)
  three = examples.packed(layout, pairs, (2, 3), 1)
  assert (three.shared, three.packed, three.fork, three.asked_shared) == (24, 3, None, None)
  packing = examples.collate_records(pairs, three).together.rows.packing
  np.testing.assert_array_equal(packing.place, [48, 0, 24, 56])  # rows of 8, 24, 24 and 8 tokens
  assert packing.rows == 3
  assert examples.packed(layout, [long, short, short, short], (2, 3), 1).packed == 2
  assert examples.packed(layout, [long, short, short, short], (3,), 1).packed == 3
  assert (
    examples.packed(layout, [long, short, short, short], (2, 3), 4) == layout
  )  # on four devices
  assert examples.packed(layout, [long] * 4, (2, 3), 1) == layout
  apart = examples.layouts([(16, pairs)], share_prompt=False)[16]
  assert examples.heights(apart, [pairs], 1, 16) == ()


@pytest.mark.parametrize(
  ("batches", "heights"),
  [
    ({2: 10, 3: 10}, (3,)),  # two programs would take longer to compile than they save
    ({2: 1000, 3: 1000}, (2, 3)),
    ({2: 2000, 4: 1}, (2,)),  # what is not worth packing has a program of its own,
    ({3: 5, 4: 5}, ()),  # and the few others take that one
    ({4: 3}, ()),
  ],
)
def test_a_long_run_packs_pairs_into_more_numbers_of_rows(batches, heights):
  prompt = Example.prompt("p", [1] * 6)
  short, long = (Pair(*(prompt.continued("a", [t] * n) for t in (2, 3))) for n in (1, 9))
  needing = {2: [short, short, short, long], 3: [short, long, long, short], 4: [long] * 4}
  layout = examples.layouts([(16, needing[3])], share_prompt=True)[16]
  given = [needing[rows] for rows, count in batches.items() for _ in range(count)]
  np.random.default_rng(0).shuffle(given)
  assert examples.heights(layout, given, 1, compiling=16) == heights
  if heights:
    assert examples.heights(layout, given, 4, compiling=16) == ()  # on four devices


@pytest.mark.parametrize("size", [16, 256])
def test_hardly_a_batch_of_a_long_run_is_fuller_than_those_that_were_looked_at(size):
  random = np.random.default_rng(1)
  widths = np.clip(np.exp(random.normal(4.0, 0.5, 4096)).astype(int), 8, 256)
  pairs = [Pair(*(Example.text("t", [t] * int(n // 2)) for t in (2, 3))) for n in widths]
  batches = [[pairs[i] for i in random.choice(len(pairs), size)] for _ in range(300)]
  layout = examples.layouts([(128, pairs)], share_prompt=True)[128]
  heights = examples.heights(layout, batches, 1, compiling=16)
  rows = [examples.packed(layout, batch, heights, 1).packed for batch in batches]
  assert rows.count(None) <= 0.02 * len(batches)
  needed = [examples.packed(layout, batch, range(size), 1).packed for batch in batches]
  assert np.mean([r for r in rows if r]) < 1.15 * np.mean(needed)


def test_short_rankings_are_filled_with_copies_of_their_first_answer_that_have_no_place():
  rankings = [Ranking((LONG, SHORT, OTHER), (2, 1, 2)), Ranking((OTHER, LONG), (1, 2))]
  batch = examples.collate_records(rankings, 5, logps)
  assert batch.answers.tokens.shape == batch.ref_logps.shape == (2, 3, 5)
  np.testing.assert_array_equal(batch.ranks, [[2, 1, 2], [1, 2, -1]])
  np.testing.assert_array_equal(batch.answers.tokens[1, 2], batch.answers.tokens[1, 0])
  np.testing.assert_array_equal(batch.answers.response_mask[0, 1], [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(batch.ref_logps[0, 2], [-4, -3, -2, 0, 0])


def test_labels_stand_beside_answers_and_missing_ones_are_nan():
  batch = examples.collate_records([Labelled(SHORT, (1.0, np.nan)), Labelled(LONG, (0.0, 2.0))], 5)
  np.testing.assert_array_equal(batch.labels, [[1, np.nan], [0, 2]])
  assert batch.mismatched is None


def test_labels_of_tokens_stand_at_their_tokens_and_padding_has_none():
  record = TokenLabelled(SHORT, [np.nan, np.nan, 0.25])
  batch = examples.collate_records([record], 5)
  np.testing.assert_array_equal(batch.labels, [[np.nan, np.nan, 0.25, np.nan, np.nan]])


def test_every_prompt_gets_another_prompts_answer_and_every_answer_one_prompt():
  rows = [
    Labelled(Example.prompt(f"p{i}", [i]).continued(f"a{i}", [100 + i]), (1.0,)) for i in range(7)
  ]
  joined = examples.with_mismatched(rows, seed=3)
  prompts = [record.mismatched.tokens[0] for record in joined]
  answers = [record.mismatched.tokens[1] for record in joined]
  assert prompts == list(range(7)) and sorted(answers) == [100 + i for i in range(7)]
  assert all(answer != 100 + prompt for prompt, answer in zip(prompts, answers, strict=True))
  assert [r.mismatched.tokens for r in examples.with_mismatched(rows, 3)] == [
    r.mismatched.tokens for r in joined
  ]
  assert joined[0].answers == (joined[0].answer, joined[0].mismatched)


def test_a_mismatched_answer_is_no_longer_than_either_row():
  rows = [
    Labelled(Example.prompt("p", [1] * 6).continued("a", [2]), (1.0,)),
    Labelled(Example.prompt("q", [3]).continued("b", [4] * 5), (0.0,)),
  ]
  for record in examples.with_mismatched(rows, 0):
    assert len(record.mismatched.tokens) <= 7


@pytest.mark.parametrize("form", ["pairs", "rankings", "labelled"])
def test_batches_are_as_wide_as_their_widest_answer_and_hold_each_record_once(form):
  prompt = Example.prompt("p", [1])
  answer = lambda size: prompt.continued(f"{size}", [2] * size)
  make = {
    "pairs": lambda n: Pair(answer(n), answer(1)),
    "rankings": lambda n: Ranking((answer(1), answer(n), answer(2)), (1, 2, 3)),
    "labelled": lambda n: Labelled(answer(n), (1.0,)),
  }[form]
  records = [make(n) for n in range(1, 33)]
  batches = examples.batches_by_width(records, 4, buckets=2, seed=1)
  ids = [record.id for _, batch in batches for record in batch]
  assert sorted(ids) == sorted(record.id for record in records)
  for width, batch in batches:
    assert max(len(a.tokens) for record in batch for a in record.answers) <= width
  assert len({width for width, _ in batches}) == 2
