"""Measuring a policy while it trains: when, of what, the same after an interruption, and without a trace in what is learned."""

import copy
import json
import logging

import jax
import numpy as np
import pytest

from rlhf_jax.training import experiment, progress, sampling
from rlhf_jax.training.setup import make_setup

MODEL = dict(
  model_type="llama",
  vocab_size=257,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=16,
  rms_norm_eps=1e-5,
)
CONFIG = dict(
  seed=0,
  stages=("sft", "policy"),
  model=dict(source="random", random=MODEL),
  lora=dict(rank=0),
  data=dict(
    source="random_walks",
    nodes=6,
    edge_probability=0.4,
    walks=40,
    longest_walk=4,
    max_tokens=6,
    prompt_tokens=1,
    test_prompts=12,
  ),
  rollout=dict(max_new_tokens=5),
  rewards=dict(terms=("verifier",)),
  algorithm=dict(name="ppo"),
  sft=dict(batch_size=8, epochs=1.25, learning_rate=1e-2, checkpoint_every=2, evaluate_every=2),
  ppo=dict(
    steps=5,
    prompts=8,
    epochs=3,
    minibatches=2,
    learning_rate=1e-2,
    checkpoint_every=2,
    evaluate_every=2,
  ),
  evaluation=dict(batch_size=8),
)


def config(**changes) -> dict:
  """CONFIG with fields like ppo__steps changed."""
  changed = copy.deepcopy(CONFIG)
  for path, value in changes.items():
    section, field = path.split("__")
    changed[section][field] = value
  return changed


def logged(workdir, stage: str) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [
    {name: value for name, value in row.items() if not name.startswith("time/")}
    for row in rows
    if row["stage"] == stage
  ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The workdir of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("straight")
  experiment.train(config(), workdir)
  return workdir


def test_a_policy_is_measured_every_so_many_steps_and_after_the_last():
  assert [s for s in range(7) if progress.due(3, s, 7)] == [2, 5, 6]
  assert [s for s in range(6) if progress.due(3, s, 6)] == [2, 5]
  assert not any(progress.due(0, s, 7) for s in range(7))


@pytest.mark.parametrize("stage, a_step", [("sft", 1), ("ppo", 6)])
def test_the_curve_is_in_the_log_by_the_updates_made(straight, stage, a_step):
  rows = logged(straight, stage)
  measured = [row for row in rows if "eval/score" in row]
  assert [row["step"] for row in measured] == sorted({2, 4, len(rows)}) and len(rows) > 2
  assert [row["eval/updates"] for row in measured] == [row["step"] * a_step for row in measured]
  assert all(0 <= row["eval/score"] <= 1 for row in measured)
  # SFT has no reference to be far from.
  assert all(("eval/kl_exact" in row) == (stage == "ppo") for row in measured)


def test_an_interrupted_run_logs_and_learns_the_same_bit_for_bit(straight, tmp_path, monkeypatch):
  class Killed(Exception):
    pass

  measure, calls = progress.measure, []

  def killed_at_times(*args, **kwargs):
    calls.append(kwargs["updates"])
    if len(calls) in (2, 5):  # within SFT, and within PPO
      raise Killed
    return measure(*args, **kwargs)

  monkeypatch.setattr(progress, "measure", killed_at_times)
  for _ in range(2):
    with pytest.raises(Killed):
      experiment.train(config(), tmp_path)
  experiment.train(config(), tmp_path)
  for stage in ("sft", "ppo"):
    assert logged(tmp_path, stage) == logged(straight, stage)


def test_measuring_leaves_no_trace_in_what_is_learned(straight, tmp_path):
  experiment.train(config(sft__evaluate_every=0, ppo__evaluate_every=0), tmp_path)
  plain = lambda row: {k: v for k, v in row.items() if not k.startswith("eval/")}
  for stage in ("sft", "ppo"):
    assert logged(tmp_path, stage) == [plain(row) for row in logged(straight, stage)]


def measured(setup, weights, reference=None, updates=3) -> dict[str, float]:
  frozen = {"base": {}, "reference": {"model": setup.place(reference or weights)}}
  found = progress.measure(setup, {"model": setup.place(weights)}, frozen, updates=updates)
  return {name: float(mean.sum / mean.count) for name, mean in found.items()}


def test_the_score_is_the_verifiers_mean_over_an_answer_to_each_held_out_prompt(tmp_path):
  setup, asked = make_setup(config(), tmp_path), []
  pretrained = setup.pretrained()

  def verifier(ids, texts):
    asked.extend(zip(ids, texts, strict=True))
    return np.arange(len(ids)) / 2

  told = setup._replace(task=setup.task._replace(verifier=verifier))
  found = measured(told, pretrained)
  assert [id for id, _ in asked] == [prompt.id for prompt in setup.task.test_prompts]
  assert found["eval/score"] == np.mean(np.arange(12) / 2) and found["eval/updates"] == 3
  assert found["eval/kl_exact"] == 0.0
  first = list(asked)
  measured(told, pretrained, updates=7)
  assert asked[12:] == first  # the same chance every time


def test_nothing_is_compiled_after_the_first_measurement(tmp_path, caplog):
  setup = make_setup(config(), tmp_path)
  pretrained = setup.pretrained()
  other = jax.tree.map(lambda x: 1.5 * x, pretrained)
  measured(setup, pretrained, other)
  programs = sampling._write._cache_size(), progress.exact_kl._cache_size()
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    assert measured(setup, other, pretrained)["eval/kl_exact"] > 0
  assert (sampling._write._cache_size(), progress.exact_kl._cache_size()) == programs
  assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
