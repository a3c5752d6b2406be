"""Rewards compose: what each answer is worth, what is measured of it, and what a failing function costs."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import algorithms
from rlhf_jax.data.bytes import byte_tokenizer
from rlhf_jax.rollout.generate import left_pad
from rlhf_jax.training import loop, online, rewarding
from rlhf_jax.training.log import REWARD_ERRORS, Log
from rlhf_jax.types import Rollout, Sequences

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
SOURCE = """
def by_prompt(prompts, responses):
  if "bad" in responses:
    raise ValueError("a bad answer")
  return [len(p) + 10 * len(r) for p, r in zip(prompts, responses)]

def never(prompts, responses):
  raise RuntimeError("out of order")
"""


def setup_with(tmp_path, verifier=None, **rewards):
  """As much of a run's setup as rewards look at."""
  (tmp_path / "custom.py").write_text(SOURCE)
  config = {"rewards": rewards} if rewards else {}
  data, task = SimpleNamespace(source="files"), SimpleNamespace(verifier=verifier)
  return SimpleNamespace(config=config, workdir=tmp_path, tokenizer=TOKENIZER, task=task, data=data)


def sequences(prompts, responses) -> Sequences:
  """Rows with the prompts on the left and the responses, each with its end mark, on the right."""
  left, left_mask = left_pad([TOKENIZER.encode(p) for p in prompts], 4)
  answers = [[*TOKENIZER.encode(r), EOS] for r in responses]
  right = np.asarray([[*a, *[0] * (9 - len(a))] for a in answers])
  mask = np.asarray([[1.0] * len(a) + [0.0] * (9 - len(a)) for a in answers])
  both = lambda a, b: np.concatenate([np.asarray(a), b], axis=1)
  chosen = both(np.zeros_like(left_mask), mask)
  return Sequences.from_mask(both(left, right), both(left_mask, mask), chosen)


def rollout(prompts, responses, model_scores, greedy=None) -> Rollout:
  rows = sequences(prompts, responses)
  last = jnp.cumsum(rows.response_mask[:, ::-1], axis=1)[:, ::-1] == 1
  last = last & (rows.response_mask > 0)
  scores = jnp.asarray(model_scores, jnp.float32)
  answered = {} if greedy is None else {"greedy": greedy, "baseline": jnp.asarray([3.0, 4.0])}
  return Rollout(
    sequences=rows,
    logps=jnp.zeros(rows.tokens.shape),
    rewards=jnp.where(last, scores[:, None], 0.0),
    truncated=jnp.zeros(len(prompts), bool),
    **answered,
  )


def test_by_default_the_reward_is_the_reward_models_untouched(tmp_path):
  rewards = rewarding.Rewards(setup_with(tmp_path), "ppo")
  given = rollout(["p", "q"], ["a", "b"], [0.5, -2.0])
  scored, metrics = rewards.add(given, ["0", "1"], 1)
  assert scored is given and rewarding.asks_model({})
  assert metrics["rewards/reward_model"].value == -0.75


def test_the_reward_is_the_weighted_sum_on_the_last_token_and_each_term_a_metric(tmp_path):
  asked = []

  def verifier(ids, responses):
    asked.append((list(ids), list(responses)))
    return np.asarray([float(r == "two") for r in responses])

  terms = ("reward_model", "verifier", "format", "length", f"{tmp_path}/custom.py:by_prompt")
  setup = setup_with(
    tmp_path,
    verifier,
    terms=terms,
    weights=(2.0, 3.0, 0.0, 1.0, 0.1),
    format_pattern="^t",
    length_target=2,
  )
  with rewarding.Rewards(setup, "ppo") as rewards:
    scored, metrics = rewards.add(rollout(["p", "pp"], ["two", ""], [0.5, -2.0]), ["i", "j"], 1)
  # 2 · 0.5 + 3 · 1 + 0 · 1 + 1 · 0.5 + 0.1 · 31 and 2 · −2 + 0 + 0 + 0 + 0.1 · 2
  np.testing.assert_allclose(scored.rewards.sum(axis=-1), [7.6, -3.8], rtol=1e-6)
  np.testing.assert_array_equal(jnp.argmax(scored.rewards != 0, axis=-1), [4 + 3, 4])
  assert {name: float(mean.value) for name, mean in metrics.items()} == pytest.approx(
    {
      "rewards/reward_model": -0.75,
      "rewards/verifier": 0.5,
      "rewards/format": 0.5,
      "rewards/length": 0.25,
      "rewards/by_prompt": 16.5,
      "rewards/failed": 0.0,
    }
  )
  assert asked == [(["i", "j"], ["two", ""])]


def test_the_greedy_answers_baseline_is_scored_by_the_same_sum(tmp_path):
  setup = setup_with(
    tmp_path, lambda ids, responses: [len(r) for r in responses], terms=("reward_model", "verifier")
  )
  greedy = sequences(["p", "q"], ["ccc", ""])
  given = rollout(["p", "q"], ["a", "bb"], [0.5, -2.0], greedy)
  scored, _ = rewarding.Rewards(setup, "remax").add(given, ["0", "1"], 1)
  np.testing.assert_array_equal(scored.rewards.sum(axis=-1), [1.5, 0.0])
  np.testing.assert_array_equal(scored.baseline, [6.0, 4.0])


def test_without_the_term_no_reward_model_is_asked(tmp_path):
  setup = setup_with(tmp_path, lambda ids, responses: [1.0, 2.0], terms=("verifier",))
  rewards = rewarding.Rewards(setup, "ppo")
  assert not rewarding.asks_model(setup.config)
  assert rewards.frozen({"base": 1, "reward_model": 2}) == {"base": 1, "reward_model": None}
  written = jax.device_get(sequences(["p", "q"], ["a", "b"]))
  scores = rewards.score({"reward_model": None}, written, ["0", "1"], batch_size=1)
  np.testing.assert_array_equal(scores, [1.0, 2.0])


def test_a_row_that_fails_has_the_failed_score_is_counted_and_written_down(tmp_path):
  term = f"{tmp_path}/custom.py:by_prompt"
  setup = setup_with(tmp_path, terms=(term,), failed_score=-5.0)
  given = rollout(["p", "qq"], ["bad", "r"], [0.0, 0.0])
  with rewarding.Rewards(setup, "ppo") as rewards:
    for step in (3, 4):
      scored, metrics = rewards.add(given, ["i", "j"], step)
  np.testing.assert_array_equal(scored.rewards.sum(axis=-1), [-5.0, 12.0])
  assert metrics["rewards/failed"].sum == 1
  rows = [json.loads(line) for line in (tmp_path / REWARD_ERRORS).read_text().splitlines()]
  assert rows[0] == {
    "stage": "ppo",
    "step": 3,
    "term": term,
    "id": "i",
    "prompt": "p",
    "response": "bad",
    "error": "ValueError: a bad answer (custom.py:4)",
  }
  Log(tmp_path, "ppo", resume_step=3).close()  # as a run goes on after step 3
  assert (tmp_path / REWARD_ERRORS).read_text().splitlines() == [json.dumps(rows[0])]


def test_a_run_stops_where_every_row_of_a_step_fails(tmp_path):
  setup = setup_with(tmp_path, terms=(f"{tmp_path}/custom.py:never", "length"), length_target=1)
  with rewarding.Rewards(setup, "ppo") as rewards:
    with pytest.raises(rewarding.Unscored) as raised:
      rewards.add(rollout(["p", "q"], ["a", "b"], [0, 0]), ["i", "j"], 7)
  for words in ("all 2 answers at step 7 of stage ppo", "prompt i", "RuntimeError: out of order"):
    assert words in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_verifier_that_gives_no_finite_number_stops_the_run_and_names_the_prompt(tmp_path, value):
  setup = setup_with(tmp_path, lambda ids, responses: [1.0, value], terms=("verifier",))
  scored, _ = rewarding.Rewards(setup, "ppo").add(
    rollout(["p", "q"], ["a", ""], [0.0, 0.0]), ["i", "j"], 5
  )
  with pytest.raises(loop.NotFinite, match=f"1 of 2 .*step 5 of stage ppo.*{value}.*prompt j"):
    online.assert_finite_rewards(scored, ["i", "j"], "ppo", 5)


def test_fractions_arrive_as_they_are(tmp_path):
  fractions = [0.1, -0.30000001192092896]
  setup = setup_with(tmp_path, lambda ids, responses: fractions, terms=("verifier",))
  scored, _ = rewarding.Rewards(setup, "ppo").add(
    rollout(["p", "q"], ["a", ""], [0.0, 0.0]), ["i", "j"], 5
  )
  np.testing.assert_array_equal(scored.rewards.sum(axis=-1), np.float32(fractions))


def test_a_response_without_a_token_earns_nothing(tmp_path):
  setup = setup_with(tmp_path, lambda ids, responses: [1.0, 2.0], terms=("verifier",))
  given = rollout(["p", "q"], ["a", "b"], [0.0, 0.0])
  rows = given.sequences
  rows = rows.replace(response_mask=rows.response_mask.at[1].set(0.0))
  scored, _ = rewarding.Rewards(setup, "ppo").add(given.replace(sequences=rows), ["i", "j"], 5)
  np.testing.assert_array_equal(scored.rewards.sum(axis=-1), [1.0, 0.0])


def test_no_function_can_take_the_name_of_an_algorithms_metric():
  written = "".join(path.read_text() for path in Path(algorithms.__path__[0]).glob("*.py"))
  names = set(re.findall(r'"rewards/(\w+)"', written))
  assert len(names) > 10 and names <= set(rewarding.TAKEN)
