"""Groups that teach nothing are replaced by groups of further draws, the same ones in every run."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import grpo, nash_md, online_dpo, ppo, raft, reinforce_pp
from rlhf_jax.cli import main
from rlhf_jax.training import dynamic_sampling, online
from rlhf_jax.training.online import Settings
from rlhf_jax.types import Mean, Rollout, Sequences

# Three groups of two answers a draw: their scores.
DRAWS = (
  [[1, 1], [0, 1], [0.1, 0.1]],
  [[2, 2], [3, 4], [5, 5]],
  [[6, 7], [8, 9], [9, 9]],
)


def drawn(number: int) -> tuple[Rollout, dict]:
  scores = jnp.asarray(DRAWS[number], jnp.float32).ravel()
  tokens = jnp.stack([100 * number + jnp.arange(6), jnp.zeros(6, int)], axis=1)
  ones = jnp.ones(tokens.shape)
  rows = Sequences.from_mask(tokens, ones, ones.at[:, 0].set(0.0))
  rollout = Rollout(rows, -ones, ones.at[:, 0].set(0.0) * scores[:, None], scores > 8)
  return rollout, {"rollout/length": Mean(jnp.float32(number), jnp.float32(1))}


def filled(further: int):
  rollout, metrics = dynamic_sampling.fill(drawn, group=2, further=further)
  values = {name: float(metric.value) for name, metric in metrics.items()}
  return rollout, rollout.rewards[:, 1].reshape(-1, 2).tolist(), values


def test_groups_of_equal_scores_are_replaced_in_order_until_all_differ():
  rollout, scores, metrics = filled(2)
  assert scores == [[3, 4], [0, 1], [6, 7]]
  # Everything of an answer goes with its score.
  assert rollout.sequences.tokens[:, 0].tolist() == [102, 103, 2, 3, 200, 201]
  assert metrics["rollout/draws"] == 3 and metrics["group/replaced"] == pytest.approx(2 / 3)
  assert metrics["rollout/length"] == 1.0  # the mean over all three draws
  assert metrics["rewards/drawn"] == pytest.approx(np.mean(DRAWS))


def test_what_the_draws_do_not_replace_stays():
  _, scores, metrics = filled(1)
  assert scores[:2] == [[3, 4], [0, 1]] and scores[2] == pytest.approx([0.1, 0.1])
  assert metrics["rollout/draws"] == 2 and metrics["group/replaced"] == pytest.approx(1 / 3)


def test_no_more_is_drawn_than_needed():
  calls = []

  def draw(number):
    calls.append(number)
    rollout, metrics = drawn(0)
    scores = jnp.asarray([0, 1, 2, 3, 4, 5], jnp.float32)
    return rollout.replace(rewards=rollout.rewards.at[:, 1].set(scores)), metrics

  rollout, metrics = dynamic_sampling.fill(draw, group=2, further=9)
  assert calls == [0] and float(metrics["group/replaced"].value) == 0.0
  np.testing.assert_array_equal(rollout.rewards[:, 1], np.arange(6))


def test_prompts_and_keys_of_a_draw_are_a_function_of_seed_step_and_draw():
  def setup(seed):
    prompts = [SimpleNamespace(tokens=[i + 1], id=str(i)) for i in range(50)]
    purposes = {"rollout": 1, "rollout, draw 1": 2, "rollout, draw 2": 3}
    orders = {"grpo": 4, "grpo, draw 1": 5, "grpo, draw 2": 6}
    return SimpleNamespace(
      task=SimpleNamespace(prompts=prompts),
      order=lambda purpose: (seed, orders[purpose]),
      key=lambda purpose: jax.random.fold_in(jax.random.key(seed), purposes[purpose]),
    )

  def of(seed, step, draw):
    rows = online.rows_at(setup(seed), "grpo", Settings(prompts=4), step, 2, draw)
    tokens, _, keys = online.questions(setup(seed), rows, step, draw)
    np.testing.assert_array_equal(rows.reshape(-1, 2)[:, 0], rows.reshape(-1, 2)[:, 1])
    return (*tokens[:, -1].tolist(), *np.asarray(jax.random.key_data(keys)).ravel().tolist())

  assert of(7, 3, 1) == of(7, 3, 1)
  others = [of(7, 3, 0), of(7, 3, 1), of(7, 3, 2), of(7, 4, 1), of(8, 3, 1)]
  assert len({one[:8] for one in others}) == len({one[8:] for one in others}) == 5


@pytest.mark.parametrize("module", [ppo, nash_md, reinforce_pp])
def test_an_algorithm_that_compares_no_answers_refuses_it(module):
  name = module.__name__.split(".")[-1]
  with pytest.raises(ValueError, match=f"{name}.dynamic_sampling=3 replaces groups.*leave it out"):
    online.assert_groups(name, module.Config(), Settings(dynamic_sampling=3))
  online.assert_groups(name, module.Config(), Settings())


@pytest.mark.parametrize("module", [grpo, raft, online_dpo])
def test_an_algorithm_with_groups_takes_it(module):
  online.assert_groups("any", module.Config(), Settings(dynamic_sampling=3))


def test_a_run_learns_from_groups_that_differ(tiny_run, tmp_path):
  arguments, workdir = tiny_run
  shutil.copytree(workdir, tmp_path / "run")
  arguments = [a for a in arguments if not a.startswith("--workdir")]
  options = dict(steps=2, prompts=4, group=2, keep=1, dynamic_sampling=3, logged_samples=4)
  run = [
    *arguments,
    f"--workdir={tmp_path / 'run'}",
    "--config.algorithm.name=raft",
    *(f"--config.raft.{name}={value}" for name, value in options.items()),
    "--config.stages=('sft', 'policy')",
    "--config.rewards.terms=('format',)",
    "--config.rewards.format_pattern=^.[a-z ]",
  ]
  assert main(run) == 0
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if row["stage"] == "raft"]
  assert len(rows) == 2
  for row in rows:
    assert 1 < row["rollout/draws"] <= 4
    assert row["group/replaced"] > 0
    assert row["group/zero_variance"] + row["group/replaced"] <= 1
