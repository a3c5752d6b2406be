"""A custom reward function: what it returns, and what each way of failing costs."""

import os
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.rewards.function import Failed, Function

SOURCE = """
import os, random, time

def length(prompts, responses):
  print("on standard output")
  return [len(p) + len(r) / 2 for p, r in zip(prompts, responses)]

def picky(prompts, responses):
  for response in responses:
    if response == "raise":
      raise KeyError("no such answer")
    if response == "hang":
      time.sleep(60)
    if response == "die":
      os._exit(3)
    if response == "exit":
      raise SystemExit(4)
  odd = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "x"}
  scores = [odd.get(response, 1.0) for response in responses]
  return scores + [1.0] if "many" in responses else scores

def chance(prompts, responses):
  return [random.random() + hash("text") % 1000 for _ in responses]

def process(prompts, responses):
  return [os.getpid()] * len(responses)

def one(texts):
  return texts

three = lambda prompts, responses, more: responses
number = 3
"""
FAILURES = {
  "raise": "KeyError: 'no such answer' (custom.py:11)",
  "hang": "it took longer than 0.5 s",
  "die": "its process ended with code 3",
  "exit": "SystemExit: 4 (custom.py:17)",
  "nan": "it returned nan, which is not a finite number",
  "inf": "it returned inf, which is not a finite number",
  "none": "TypeError: float() argument must be a string or a real number, not 'NoneType'",
  "text": "ValueError: could not convert string to float: 'x'",
  "many": "it returned 2 scores for 1 responses",
}


@pytest.fixture
def make(tmp_path):
  made = []
  (tmp_path / "custom.py").write_text(SOURCE)

  def make(name: str) -> Function:
    made.append(Function(f"{tmp_path}/custom.py:{name}", timeout=1.0, row_timeout=0.5))
    return made[-1]

  yield make
  for function in made:
    function.close()


def test_scores_come_in_the_order_of_the_rows(make):
  scores, errors = make("length")(["p", "pp", "ü"], ["", "\u2028\n", "rrr"])
  np.testing.assert_array_equal(scores, [1, 3, 2.5])
  assert errors == {}


@pytest.mark.parametrize("bad", FAILURES)
def test_a_bad_row_costs_its_own_score_alone(make, bad):
  scores, errors = make("picky")([""] * 3, ["good", bad, "good"])
  np.testing.assert_array_equal(scores, [1, np.nan, 1])
  assert errors == {1: FAILURES[bad]}


def test_the_same_batch_scores_the_same_in_another_process(make):
  first, second = make("chance"), make("chance")
  batch = ["p", "p"], ["a", "b"]
  scores, _ = first(*batch)
  second(["q"], ["other"])  # whatever came before
  np.testing.assert_array_equal(second(*batch)[0], scores)
  assert scores[0] != scores[1]


def test_a_process_lives_from_batch_to_batch_and_ends_on_close(make):
  function = make("process")
  (first,), (again,) = function(["p"], ["r"])[0], function(["p"], ["r"])[0]
  assert first == again != os.getpid()
  function.close()
  assert not Path(f"/proc/{int(first)}").exists()


@pytest.mark.parametrize(
  ("name", "says"),
  {
    "missing": "custom.py defines no 'missing'.",
    "number": "number is a int, not a function.",
    "one": r"one\(texts\) cannot be called with two arguments; it takes \(prompts, responses\)",
    "three": r"three\(prompts, responses, more\) cannot be called with two arguments",
  }.items(),
)
def test_what_cannot_be_called_is_refused_at_the_start(make, name, says):
  with pytest.raises(Failed, match=says):
    make(name).start()


def test_a_file_or_module_that_is_not_there_is_refused_at_the_start():
  for spec, says in {
    "nowhere.py:score": "'nowhere.py' is not a file; give the path of a Python file",
    "no.such.module:score": "ModuleNotFoundError: No module named 'no'",
  }.items():
    with pytest.raises(Failed, match=says):
      Function(spec, timeout=1.0, row_timeout=1.0).start()


def test_a_module_is_found_where_this_process_finds_it(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "rewards_of_mine.py").write_text("score = lambda prompts, responses: [7]")
  function = Function("rewards_of_mine:score", timeout=1.0, row_timeout=1.0)
  scores, errors = function(["p"], ["r"])
  function.close()
  assert scores == [7] and errors == {}
