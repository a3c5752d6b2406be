"""A cost model of another run: in rollouts, in the evaluation, and as what the multiplier follows."""

import json

import numpy as np
import pytest

from rlhf_jax.cli.train import results_table
from rlhf_jax.training import experiment, restore

MODEL = dict(
  model_type="llama",
  vocab_size=257,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=32,
  rms_norm_eps=1e-5,
  initializer_range=0.3,
)
LIMIT, RATE = 0.4, 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The workdir of PPO-Lagrangian whose reward is the logit, and whose cost is the probability, of one model of marks."""
  folder = tmp_path_factory.mktemp("costs")
  rows = {
    "feedback": [
      dict(prompt="ask", completion=f"{x}{i}", label=x == "bad")
      for x in ("bad", "good")
      for i in range(8)
    ],
    "prompts": [dict(prompt=f"ask {i}") for i in range(8)],
    "test": [dict(prompt=f"say {i}") for i in range(5)],
  }
  for name, lines in rows.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  shared = dict(
    seed=3,
    model=dict(source="random", random=MODEL),
    lora=dict(rank=0),
    data=dict(source="files", max_tokens=16, prompt_tokens=8)
    | {name: str(folder / f"{name}.jsonl") for name in rows},
    rollout=dict(max_new_tokens=6),
    algorithm=dict(name="ppo_lagrangian", reward_model="reward_from_marks"),
    reward_from_marks=dict(batch_size=4, learning_rate=1e-2, epochs=2.0),
    ppo_lagrangian=dict(
      steps=3, prompts=8, epochs=1, cost_limit=LIMIT, multiplier=0.5, multiplier_rate=RATE
    ),
    evaluation=dict(best_of=1),
  )
  experiment.train({**shared, "stages": ("reward_model",)}, folder / "cost_3")
  start = {name: str(folder / "cost_{seed}") for name in ("reward_model", "cost_model")}
  config = {**shared, "stages": ("policy", "evaluation"), "start": start}
  experiment.train(config, folder / "policy")
  return folder / "policy"


def test_the_multiplier_of_every_step_follows_the_costs_of_the_step_before(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  costs, multipliers = ([line[f"costs/{n}"] for line in lines] for n in ("mean", "multiplier"))
  assert len(lines) == 3 and multipliers[0] == 0.5
  for cost, before, after in zip(costs, multipliers, multipliers[1:], strict=False):
    np.testing.assert_allclose(after, max(before + RATE * (cost - LIMIT), 0.0), rtol=1e-5)


def test_a_model_of_marks_costs_a_probability_and_is_rewarded_as_it_is(run):
  results = json.loads((run / "results.json").read_text())
  for policy in ("sft", "ppo_lagrangian"):
    low, cost, high = (results[f"{policy}/cost{end}"] for end in ("_low", "", "_high"))
    assert 0 <= low < cost < high <= 1
    rows = [
      json.loads(line) for line in (run / f"evaluation/{policy}.jsonl").read_text().splitlines()
    ]
    rewards, costs = (np.asarray([row[name] for row in rows]) for name in ("reward", "cost"))
    # One head, read twice: log-odds of the cost are the reward but for its gain and bias.
    odds = np.log(costs / (1 - costs))
    np.testing.assert_allclose(np.corrcoef(rewards, odds), 1.0, atol=1e-4)
  assert "cost" in results_table(results).splitlines()[0]
  assert f"{results['sft/cost']:.2f}" in results_table(results)


def test_a_finished_policy_is_read_back_with_its_cost_model(run):
  found = restore.policy(run, "ppo_lagrangian")
  assert found.frozen["cost_model"].keys() >= {"model", "reward_head", "normalization"}
  assert found.setup.cost_scorer is not None
