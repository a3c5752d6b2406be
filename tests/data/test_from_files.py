"""Files as a task: which records of feedback each algorithm gets, on which scales, and what the notes say."""

import math

import numpy as np
import pytest
from chat_tokenizer import CHATML
from some_files import KINDS, write

from rlhf_jax.data import examples, tasks
from rlhf_jax.data.bytes import byte_tokenizer
from rlhf_jax.data.task import Settings
from rlhf_jax.types import LabelledBatch, PreferenceBatch, RankingBatch, Sequences


def load(tokenizer=None, **settings):
  settings = Settings(source="files", **{"max_tokens": 32, "prompt_tokens": 12, **settings})
  return tasks.load_task(settings, tokenizer or byte_tokenizer(), rollout_tokens=8, seed=0)


def rated(prompt, response, **ratings):
  return dict(prompt=prompt, response=response, ratings=ratings)


PAIR = dict(prompt="Q", chosen="ab", rejected="c")
RANKED = dict(prompt="Q", responses=["a", "b", "c"], ranks=[1, 2, 2])
SPANNED = dict(prompt="Q", response="abc", spans=[dict(start=1, end=2)])


def test_feedback_comes_in_its_own_form_and_in_what_it_converts_to(tmp_path):
  task = load(feedback=write(tmp_path, ".jsonl", [PAIR, RANKED]))
  lengths = {f: [len(r.answers) for r in task.feedback(f, 0)] for f in examples.FORMS}
  assert lengths == {
    "texts": [],
    "pairs": [2, 2, 2],
    "rankings": [3, 2],
    "ratings": [],
    "classes": [],
    "marks": [1] * 5,
    "tokens": [],
  }
  held, converted = task.notes
  assert held.endswith("rows.jsonl: 1 pairs, 1 rankings")
  assert "by conversion, where an algorithm asks for it: 2 pairs of 1 rankings" in converted
  assert task.feedback("pairs", 0) is task.feedback("pairs", 7)
  assert task.feedback("no form", 0) == task.held_out_feedback("pairs") == []


def test_held_out_feedback_is_counted_and_its_conversions_are_not_said_again(tmp_path):
  path = write(tmp_path, ".jsonl", [PAIR, RANKED])
  (held,) = load(held_out=path).notes[-1:]
  assert held.endswith("rows.jsonl: 1 pairs, 1 rankings")
  assert len(load(feedback=path, held_out=path).notes) == 3


def test_converted_records_have_the_tokens_of_the_answers_they_come_from(tmp_path):
  task = load(feedback=write(tmp_path, ".jsonl", [RANKED]))
  (ranking,) = task.feedback("rankings", 0)
  first, second = task.feedback("pairs", 0)
  assert (first.chosen, first.rejected, second.rejected) == ranking.answers
  assert first.id == "rows.jsonl:1#1 > rows.jsonl:1#2"


BATCHES = {
  "texts": (dict(prompt="Q", response="yes"), Sequences),
  "pairs": (PAIR, PreferenceBatch),
  "rankings": (RANKED, RankingBatch),
  "ratings": (rated("Q", "a", help=1), LabelledBatch),
  "classes": ({"prompt": "Q", "response": "a", "class": 0}, LabelledBatch),
  "marks": (dict(prompt="Q", completion="a", label=True), LabelledBatch),
  "tokens": (SPANNED, LabelledBatch),
}


@pytest.mark.parametrize("form", BATCHES)
def test_records_of_every_form_become_its_batch(form, tmp_path):
  row, batch = BATCHES[form]
  records = load(feedback=write(tmp_path, ".jsonl", [row])).feedback(form, 0)
  assert isinstance(examples.collate_records(records, 8), batch)


def test_ratings_are_standardised_by_the_training_file_for_both(tmp_path):
  rows = [rated("Q", "a", help=1, kind=5), rated("Q", "b", help=3), rated("Q", "c", help=5, kind=7)]
  training = write(tmp_path, ".jsonl", rows)
  (tmp_path / "test").mkdir()
  held_out = write(tmp_path / "test", ".jsonl", [rated("Q", "d", kind=8, help=3, style=1)])
  task = load(feedback=training, held_out=held_out)
  assert task.attributes == ("help", "kind")
  std = math.sqrt(8 / 3)  # of 1, 3, 5
  expected = [[-2 / std, -1], [0, math.nan], [2 / std, 1]]
  np.testing.assert_allclose([r.labels for r in task.feedback("ratings", 0)], expected)
  (other,) = task.held_out_feedback("ratings")
  np.testing.assert_allclose(other.labels, [0, 2])
  assert "ratings standardised by help mean 3, std 1.633, kind mean 6, std 1" in task.notes[0]


def test_a_held_out_rating_on_no_scale_of_the_training_file_is_left_out_and_counted(tmp_path):
  training = write(tmp_path, ".jsonl", [rated("Q", "a", help=1)])
  (tmp_path / "test").mkdir()
  rows = [rated("Q", "a", style=1), rated("Q", "b", help=1)]
  task = load(feedback=training, held_out=write(tmp_path / "test", ".jsonl", rows))
  assert len(task.held_out_feedback("ratings")) == 1
  assert "1 ratings are on no scale of data.feedback, and left out" in task.notes[-1]


def test_held_out_ratings_alone_are_on_their_own_scale(tmp_path):
  rows = [rated("Q", "a", help=1), rated("Q", "b", help=3)]
  task = load(held_out=write(tmp_path, ".jsonl", rows))
  assert [r.labels for r in task.held_out_feedback("ratings")] == [(-1.0,), (1.0,)]
  assert task.attributes == ("help",)


def test_equal_ratings_are_zero(tmp_path):
  rows = [rated("Q", "a", help=4), rated("Q", "b", help=4)]
  task = load(feedback=write(tmp_path, ".jsonl", rows))
  assert [r.labels for r in task.feedback("ratings", 0)] == [(0.0,), (0.0,)]
  assert task.feedback("pairs", 0) == task.feedback("marks", 0) == []


def test_classes_stand_in_the_order_that_is_set_or_in_that_of_numbers(tmp_path):
  of = lambda *values: [
    {"prompt": "Q", "response": chr(97 + i), "class": v} for i, v in enumerate(values)
  ]
  named = write(tmp_path, ".jsonl", of("good", "poor", "fair"))
  task = load(feedback=named, classes=("poor", "fair", "good"))
  assert [r.labels for r in task.feedback("classes", 0)] == [(2.0,), (0.0,), (1.0,)]
  assert "classes from the worst: poor, fair, good" in task.notes[0]
  assert [r.labels for r in task.feedback("ratings", 0)] == [(2.0,), (0.0,), (1.0,)]
  assert task.attributes == ("class",)
  (tmp_path / "test").mkdir()
  numbers = write(tmp_path, ".csv", of(5, 1, 3))
  held_out = write(tmp_path / "test", ".csv", of(3, 4))
  task = load(feedback=numbers, held_out=held_out)
  assert [r.labels for r in task.feedback("classes", 0)] == [(2.0,), (0.0,), (1.0,)]
  assert [r.labels for r in task.held_out_feedback("classes")] == [(1.0,)]
  assert "skipped 1 of 2 rows; line 3: class 4 is not one of 1, 3, 5" in task.notes[2]


@pytest.mark.parametrize("kind", KINDS)
def test_demonstrations_are_texts_and_corrections(kind, tmp_path):
  rows = [
    dict(prompt="Q", response="ab", correction=None),
    dict(prompt="Q", response="bad", correction="fine"),
  ]
  tokenizer = byte_tokenizer()
  texts = [tokenizer.decode(e.tokens) for e in load(sft=write(tmp_path, kind, rows)).sft]
  assert texts == ["Qab<|end|>", "Qfine<|end|>"]


def test_prompts_may_be_conversations(tmp_path, tokenizer):
  tokenizer.chat_template = CHATML
  user = [{"role": "user", "content": "Hi"}]
  path = write(tmp_path, ".jsonl", [dict(prompt=user), dict(messages=user), dict(prompt="Hi")])
  task = load(tokenizer, prompts=path, test=path, prompt_tokens=30, test_prompts=2)
  chat, same, plain = (tokenizer.decode(prompt.tokens) for prompt in task.prompts)
  assert chat == same == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  assert plain == "Hi" and len(task.test_prompts) == 2
  assert not any(map(any, (prompt.response_mask for prompt in task.prompts)))


def test_a_row_with_one_answer_too_long_is_skipped_whole(tmp_path):
  long = RANKED | dict(responses=["a", "b" * 40, "c"])
  task = load(feedback=write(tmp_path, ".jsonl", [RANKED, long]))
  assert len(task.feedback("rankings", 0)) == 1
  assert "line 2: 42 tokens exceed data.max_tokens=32; raise it or shorten" in task.notes[0]


def test_another_separator_of_steps_is_in_the_text(tmp_path):
  row = dict(prompt="Q", steps=["a", "b"], labels=[True, False])
  task = load(feedback=write(tmp_path, ".jsonl", [row]), step_separator=" / ")
  (record,) = task.feedback("tokens", 0)
  assert byte_tokenizer().decode(record.answer.tokens) == "Qa / b<|end|>"


def test_the_same_files_give_the_same_task(tmp_path):
  rows = [PAIR, RANKED, SPANNED, rated("Q", "a", help=1), rated("Q", "b", help=2)]
  path = write(tmp_path, ".jsonl", rows)
  first, again = load(feedback=path), load(feedback=path)
  for form in examples.FORMS:
    assert str(first.feedback(form, 0)) == str(again.feedback(form, 0))  # NaN is not itself
  assert first.notes == again.notes
