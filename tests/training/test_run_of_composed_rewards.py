"""A run without a reward model: a verifier and a function of one's own train it, and the verifier judges it."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data import tasks
from rlhf_jax.evaluation import scores
from rlhf_jax.training import disk, experiment, rewarding

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
SOURCE = """
import os

def short(prompts, responses):
  if os.path.exists("{stop}"):
    raise RuntimeError("stopped")
  if len(responses) > 1:
    raise ValueError("one by one")
  assert len(responses[0]) != 4, "four"
  return [-len(responses[0])]
"""


def config_of(folder: Path) -> dict:
  (folder / "custom.py").write_text(SOURCE.format(stop=folder / "stop"))
  return dict(
    seed=0,
    stages=("policy", "evaluation"),
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
    rewards=dict(
      terms=("verifier", f"{folder}/custom.py:short"), weights=(2, 0.5), failed_score=-9.0
    ),
    algorithm=dict(name="remax"),
    remax=dict(steps=4, prompts=8, learning_rate=1e-2, checkpoint_every=1),
    evaluation=dict(greedy=True, batch_size=8),
  )


def logged(workdir: Path) -> list[dict]:
  """The metrics of each step but for the time they took."""
  rows = disk.rows(workdir / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def even(ids, responses) -> np.ndarray:
  """A check that a model that knows nothing passes now and then: an answer whose length is even."""
  return np.asarray([1.0 - len(response) % 2 for response in responses])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("composed")
  load = tasks.load_task
  with pytest.MonkeyPatch.context() as patch:
    checked = lambda *given, **named: load(*given, **named)._replace(verifier=even)
    patch.setattr(tasks, "load_task", checked)
    results = experiment.train(config_of(folder), folder / "workdir")
    yield folder, folder / "workdir", results


def test_the_reward_is_the_weighted_sum_and_failing_rows_are_counted_and_kept(run):
  _, workdir, _ = run
  rows = logged(workdir)
  errors = disk.rows(workdir / "reward_errors.jsonl")
  for row in rows:
    total = 2 * row["rewards/verifier"] + 0.5 * row["rewards/short"]
    assert row["rewards/mean"] == pytest.approx(total, rel=1e-5)
    mine = [e for e in errors if (e["stage"], e["step"]) == ("remax", row["step"])]
    assert len(mine) == row["rewards/failed"]
  assert len(rows) == 4 and sum(row["rewards/failed"] for row in rows) > 0
  assert {len(e["response"]) for e in errors} == {4}
  assert all("AssertionError: four" in e["error"] for e in errors)


def test_the_verifier_judges_the_policy_and_sft_on_the_same_prompts(run):
  _, workdir, results = run
  answers = {p: disk.rows(workdir / "evaluation" / f"{p}.jsonl") for p in ("sft", "remax")}
  of = {policy: np.asarray([row["score"] for row in rows]) for policy, rows in answers.items()}
  assert [r["prompt"] for r in answers["sft"]] == [r["prompt"] for r in answers["remax"]]
  assert 0 < of["sft"].mean() < 1
  for policy, mine in of.items():
    assert results[f"{policy}/score"] == pytest.approx(mine.mean())
    assert results[f"{policy}/score_low"] <= mine.mean() <= results[f"{policy}/score_high"]
  gain = scores.gain(of["remax"], of["sft"])
  got = [results[f"remax/score_gain{end}"] for end in ("", "_low", "_high")]
  assert got == pytest.approx(list(gain))
  assert "remax/reward" in results  # of the terms, since none asks for a reward model
  # Greedy answers are no samples: no KL is estimated, and the best of several equal ones is none.
  assert not {n for n in results if n.endswith("/kl") or n.startswith("best_of")}
  assert not {n for n in results if "win_rate" in n}


def test_a_run_that_its_reward_stopped_goes_on_bit_for_bit_when_that_is_repaired(run):
  folder, workdir, results = run
  again = folder / "again"
  config = config_of(folder)

  def stop_at(step, found=rewarding.Rewards.add):
    def add(self, rollout, ids, now):
      if now == step:
        (folder / "stop").touch()
      return found(self, rollout, ids, now)

    return add

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rewarding.Rewards, "add", stop_at(3))
    with pytest.raises(rewarding.Unscored, match="step 3 of stage remax.*RuntimeError: stopped"):
      experiment.train(config, again)
  (folder / "stop").unlink()
  repaired = experiment.train(config, again)
  assert logged(again) == logged(workdir)
  keep = lambda found: {n: v for n, v in found.items() if n.startswith(("sft/", "remax/"))}
  assert keep(repaired) == keep(results)
  names = ("reward_errors.jsonl", "samples.jsonl")
  assert all((again / n).read_text() == (workdir / n).read_text() for n in names)


def test_without_a_reward_model_there_is_neither_reward_nor_best_of_n(tmp_path):
  config = config_of(tmp_path)
  config |= dict(
    rewards={},  # asks for one
    algorithm=dict(name="dpo"),
    answers=dict(source="human"),
    dpo=dict(epochs=0.2, batch_size=8, learning_rate=1e-3),
    evaluation=dict(batch_size=8),
  )
  results = experiment.train(config, tmp_path / "workdir")
  assert {"sft/score", "dpo/score", "dpo/score_gain", "dpo/kl", "dpo/length"} <= results.keys()
  assert not [name for name in results if name.endswith("/reward") or name.startswith("best_of")]
