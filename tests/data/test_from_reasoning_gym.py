"""Problems of reasoning-gym: cut into parts that share none, checked by their own rule, and learned from in a run."""

import calendar
import json
import re
import sys

import numpy as np
import pytest
from chat_tokenizer import make_tokenizer

from rlhf_jax.config import from_dict
from rlhf_jax.data import from_reasoning_gym, tasks
from rlhf_jax.data.bytes import END, byte_tokenizer
from rlhf_jax.training import experiment

pytest.importorskip("reasoning_gym")

SUMS = dict(
  source="reasoning_gym",
  task="chain_sum",
  task_options=dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
  question="{expression}=",
  prompt_tokens=12,
  max_tokens=24,
  solved=5,
  problems=7,
  test_prompts=11,
)

# Three of four answers are "No", so that a model that has learned nothing else is often right.
YEARS = dict(
  task="calendar_arithmetic", task_options=dict(tasks=["is_leap_year"]), question="{year}?"
)


def load(seed=0, tokenizer=None, **changes):
  settings = from_dict(tasks.Settings, {**SUMS, **changes}, where="data")
  return tasks.load_task(settings, tokenizer or byte_tokenizer(), rollout_tokens=4, seed=seed)


def parts(task, tokenizer=None) -> list[list[str]]:
  """The questions of each part."""
  decode = (tokenizer or byte_tokenizer()).decode
  solved = [decode(x.tokens[: x.response_mask.index(1)]) for x in task.sft]
  return [solved, *([decode(x.tokens) for x in part] for part in (task.prompts, task.test_prompts))]


def test_no_question_is_in_two_parts_or_twice_in_one():
  found = parts(load(solved=50, problems=70, test_prompts=60))
  assert [len(part) for part in found] == [50, 70, 60]
  assert len({question for part in found for question in part}) == 180


def test_problems_that_are_worded_alike_by_the_prompt_are_one():
  found = parts(load(**YEARS, solved=100, problems=50, test_prompts=50))
  assert len({question for part in found for question in part}) == 200


def test_parts_depend_on_the_seed_and_nothing_else():
  assert parts(load(seed=3)) == parts(load(seed=3))
  mine, next_ones = (parts(load(seed=seed, problems=70)) for seed in (3, 4))
  # The package draws problem i of seed s from s + i: with the seed as it is, all but one would be the same.
  assert len(set(mine[1]) & set(next_ones[1])) < 10


def test_every_generated_solution_is_right_by_its_own_rule():
  task, decode = load(), byte_tokenizer().decode
  answers = [
    decode(x.tokens[x.response_mask.index(1) :], skip_special_tokens=True) for x in task.sft
  ]
  assert task.verifier([x.id for x in task.sft], answers).tolist() == [1.0] * 5
  assert task.verifier([x.id for x in task.sft], [f"{a}1" for a in answers]).tolist() == [0.0] * 5


def test_a_text_is_the_question_the_answer_and_an_end_mark_which_are_learned_from_the_answer_on():
  example, tokenizer = load().sft[0], byte_tokenizer()
  question, answer = tokenizer.decode(example.tokens).split("=")
  assert str(eval(question)) + END == answer
  assert example.response_mask == [0] * (len(question) + 1) + [1] * (len(answer) - len(END) + 1)


@pytest.mark.parametrize(
  ("response", "after", "answer"),
  [
    (" 42\n", "", "42"),
    ("", "", ""),
    ("6 x 7, answer: 42", "answer:", "42"),
    ("answer: 41? answer: 42", "answer:", "42"),
    ("42", "answer:", None),
  ],
)
def test_the_answer_is_what_follows_the_last_marker(response, after, answer):
  assert from_reasoning_gym.answer_of(response, after) == answer


def test_without_its_marker_an_answer_is_wrong():
  task, decode = load(answer_after="so "), byte_tokenizer().decode
  first = task.sft[0]
  said = decode(first.tokens[first.response_mask.index(1) :], skip_special_tokens=True)
  assert said.startswith("so ")
  assert task.verifier([first.id] * 2, [said, said.removeprefix("so ")]).tolist() == [1.0, 0.0]


def test_part_of_an_answer_counts_only_where_it_is_asked_for():
  words = dict(task="spell_backward", task_options=dict(min_word_len=4, max_word_len=4))
  for partial, expected in ((True, [1.0, 0.75, 0.0]), (False, [1.0, 0.0, 0.0])):
    task = load(**words, question="{word} ", partial_credit=partial)
    prompt = task.test_prompts[0]
    right = byte_tokenizer().decode(prompt.tokens).strip()[::-1]
    scores = task.verifier([prompt.id] * 3, [right, right[:3] + "_", ""])
    np.testing.assert_allclose(scores, expected)


def test_an_answer_that_its_rule_cannot_read_scores_zero():
  class Strict:
    def score_answer(self, answer, entry):
      return 1.0 / int(answer)

  assert [from_reasoning_gym.score(Strict(), {}, x) for x in ("2", "0", "two", None)] == [
    0.5,
    0.0,
    0.0,
    0.0,
  ]


def test_what_is_too_long_is_left_out_and_counted_and_moves_nothing_else():
  whole, short = load(), load(prompt_tokens=7)
  kept = [x for x in whole.prompts if len(x.tokens) <= 7]
  assert short.prompts == kept and 0 < len(kept) < 7
  lost = 18 - len(kept) - len(short.test_prompts)
  assert f" {lost} left out" in short.notes[0]


def test_a_chat_template_makes_turns_of_question_and_answer():
  tokenizer = make_tokenizer()
  task = load(tokenizer=tokenizer, prompt_tokens=200, max_tokens=200)
  prompt = tokenizer.decode(task.prompts[0].tokens)
  assert prompt.startswith("<|im_start|>user\n")
  assert prompt.endswith("=<|im_end|>\n<|im_start|>assistant\n")
  first = task.sft[0]
  said = tokenizer.decode([t for t, m in zip(first.tokens, first.response_mask, strict=True) if m])
  assert task.verifier([first.id], [said.removesuffix("<|im_end|>")]).tolist() == [1.0]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(task="chain_sm"), "data.task='chain_sm' is not in reasoning-gym; did you mean chain_sum"),
    (dict(task_options=dict(max_term=3)), "max_term is not an option of chain_sum; did you mean"),
    (dict(task_options=dict(max_terms=1)), "chain_sum says max_terms must be >= min_terms"),
    (dict(task_options=dict(seed=1)), "task_options.seed follows from the run's seed"),
    (dict(task_options=3), "data.task_options=3 should be a Mapping"),
    (dict(question="{expresion}="), "names 'expresion', which chain_sum does not have; did you"),
    (
      dict(task_options=dict(min_terms=2, max_terms=2, max_digits=1), problems=250),
      "200 different problems",
    ),
    (dict(sft="sft.jsonl"), "data.sft is read with data.source='files' alone"),
    (dict(source="reviews"), "set data.source='reasoning_gym', or leave it out"),
  ],
)
def test_what_cannot_be_drawn_is_refused_with_the_remedy(changes, says):
  with pytest.raises(ValueError, match=re.escape(says)):
    load(**changes)


def test_without_the_package_its_name_is_given(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  with pytest.raises(ImportError, match="pip install"):
    load()


def test_problems_without_a_solution_are_answered_and_not_learned_from():
  task = load(
    task="propositional_logic", task_options=None, question="{question}", prompt_tokens=2000
  )
  assert task.sft == [] and len(task.prompts) == 7
  assert " 5 left out" in task.notes[0]


def test_grpo_learns_from_the_verifier_and_is_measured_by_it(tmp_path):
  model = dict(
    model_type="llama",
    vocab_size=257,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=24,
    rms_norm_eps=1e-5,
  )
  config = dict(
    seed=0,
    stages=("sft", "policy", "evaluation"),
    model=dict(source="random", random=model),
    lora=dict(rank=0),
    data={**SUMS, **YEARS, "solved": 64},
    rollout=dict(max_new_tokens=4),
    rewards=dict(terms=("verifier",)),
    sft=dict(batch_size=4, epochs=10.0, learning_rate=3e-2),
    algorithm=dict(name="grpo"),
    grpo=dict(steps=2, prompts=4, group=6, learning_rate=1e-3, logged_samples=24),
    evaluation=dict(greedy=True, batch_size=11),
  )
  results = experiment.train(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  rewards = [row["rewards/mean"] for row in rows if row["stage"] == "grpo"]
  samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
  leap = [calendar.isleap(int(s["prompt"].rstrip("?"))) for s in samples]
  right = [
    s["response"].strip() == ("Yes" if y else "No") for s, y in zip(samples, leap, strict=True)
  ]
  assert [s["reward"] for s in samples] == [float(r) for r in right]
  assert sum(rewards) / 2 == pytest.approx(np.mean(right)) and sum(right) > 0
  for name in ("sft/score", "grpo/score", "grpo/score_gain"):
    assert results[f"{name}_low"] <= results[name] <= results[f"{name}_high"]
