"""Many seeds in one program are the runs of these seeds, and an ablation says which differences are more than chance."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.cli import main
from rlhf_jax.report import ablation
from rlhf_jax.training import online, options, stages, sweep
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import algorithm_module, make_setup

TINY = Path(__file__).parent.parent.parent / "experiments" / "tiny.py"
SEEDS = (0, 3)
CONFIG = f"""
import runpy

def get_config():
  config = runpy.run_path({str(TINY)!r})["get_config"]()
  config.ablation = dict(seeds=2, base="plain")
  config.variants = {{
    "no_kl": {{"ppo": {{"kl_coef": 0.0}}}},
    "plain": {{"algorithm": {{"name": "ppo"}}}},
  }}
  return config
"""


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
  """A config whose SFT and reward model are finished, its setup, and these two models."""
  workdir = tmp_path_factory.mktemp("sweep") / "tiny"
  shutil.copytree(tiny_run[1], workdir)
  config = RunDir(workdir).config
  setup = make_setup(config, workdir)
  with jax.set_mesh(setup.mesh):
    weights = setup.at_rest(stages.sft(setup))
    return config, setup, weights, stages.reward_model(setup, weights)


@pytest.fixture(scope="module")
def ablated(tiny_run, tmp_path_factory):
  """A finished ablation: the arguments of its command and its workdir."""
  folder = tmp_path_factory.mktemp("ablation")
  (folder / "config.py").write_text(CONFIG)
  shutil.copytree(tiny_run[1], folder / "run")
  short = tiny_run[0][3:]
  arguments = ["ablate", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}", *short]
  assert main(arguments) == 0
  return arguments, folder / "run"


def test_each_member_of_a_sweep_is_the_run_of_its_seed_alone(trained, tmp_path):
  config, setup, weights, reward_model = trained
  with jax.set_mesh(setup.mesh):
    group = sweep.Sweep(setup, SEEDS, weights, reward_model)
    states, metrics = group.run(config)
    alone = setup._replace(seed=SEEDS[1], workdir=tmp_path)
    params = online.run(
      alone,
      "ppo",
      algorithm_module("ppo"),
      *options.stage(config, "ppo"),
      weights=weights,
      frozen=group.frozen,
    )
  member = jax.tree.map(lambda x: x[1], states.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), member, params)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert len(rows) == len(metrics["rewards/mean"]) == 3
  for name in ("rewards/mean", "policy/kl_exact", "loss/total", "rollout/length"):
    np.testing.assert_allclose(metrics[name][:, 1], [r[name] for r in rows], rtol=1e-3, atol=1e-5)
  score = metrics["rewards/mean"]
  assert (score[:, 0] != score[:, 1]).all(), "both seeds saw the same"


def test_variants_that_differ_in_numbers_share_their_programs(trained):
  config, setup, weights, reward_model = trained
  group = sweep.Sweep(setup, SEEDS, weights, reward_model)

  def programs(**changes):
    algorithm, settings, optim = options.stage(
      {**config, "ppo": {**config["ppo"], **changes}}, "ppo"
    )
    return group.programs("ppo", algorithm, settings, optim)

  assert programs(kl_coef=0.0, clip_eps=0.1) is programs()
  assert programs(value_clip_eps=None) is not programs()
  assert programs(value_clip_eps=None).collect is programs().collect


def test_every_step_of_every_seed_and_every_result_is_kept(ablated):
  _, run = ablated
  rows = [json.loads(x) for x in (run / "variants/plain/metrics.jsonl").read_text().splitlines()]
  assert [(r["step"], r["seed"]) for r in rows] == [(s, k) for s in (1, 2, 3) for k in (0, 1)]
  found = json.loads((run / "ablation.json").read_text())
  assert found["seeds"] == [0, 1] and set(found["variants"]) == {"no_kl", "plain"}
  for results in found["variants"].values():
    assert {"reward", "kl", "length", "truncated", "training_score", "training_kl"} == set(results)
    assert all(len(values) == 2 for values in results.values())
  # A fifth of three steps is the last one.
  last = [r["rewards/mean"] for r in rows if r["step"] == 3]
  assert found["variants"]["plain"]["training_score"] == pytest.approx(last)


def test_the_first_seed_of_an_ablation_is_what_train_gives(ablated, tiny_run):
  """Its held-out answers are those of the evaluation stage."""
  _, run = ablated
  plain = json.loads((run / "ablation.json").read_text())["variants"]["plain"]
  alone = json.loads((tiny_run[1] / "results.json").read_text())
  for column, name in (("reward", "reward"), ("kl", "kl_exact"), ("length", "length")):
    assert plain[column][0] == pytest.approx(alone[f"ppo/{name}"], abs=1e-3)


def test_the_same_command_again_trains_nothing(ablated, capsys):
  arguments, run = ablated
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*.jsonl")}
  assert main(arguments) == 0
  assert {p: p.stat().st_mtime_ns for p in run.rglob("*.jsonl")} == before
  assert "nothing is left to do" in capsys.readouterr().out


def test_an_interrupted_variant_begins_anew_and_gives_the_same(ablated, tmp_path):
  arguments, run = ablated
  other = tmp_path / "run"
  shutil.copytree(run, other)
  (other / "variants/no_kl/stages.json").unlink()
  again = [a if not a.startswith("--workdir") else f"--workdir={other}" for a in arguments]
  assert main([*again, "--only=no_kl"]) == 0
  metrics = "variants/no_kl/metrics.jsonl"
  assert (other / metrics).read_text() == (run / metrics).read_text()


def test_a_variant_that_is_changed_afterwards_is_refused_by_name(ablated, capsys):
  arguments, _ = ablated
  assert main([*arguments, "--config.ppo.gamma=0.9"]) == 1
  assert "ran stage ppo with ppo.gamma=" in capsys.readouterr().err


def test_intervals_are_those_of_student():
  # t of 2 degrees of freedom at 97.5 % is 4.3027; the standard error of 1, 2, 3 is 1 / √3.
  found = ablation.interval_over([1.0, 2.0, 3.0])
  assert found == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
  assert not ablation.interval_over([-1.0, 0.5, 1.0]).excludes_zero
  assert ablation.interval_over([1.0, 1.1, 0.9]).excludes_zero


FOUND = {
  "base": "plain",
  "kl_coef": 0.1,
  "seeds": [0, 1, 2],
  "variants": {
    "better": {"reward": [2.0, 3.1, 4.0], "kl": [5.0, 5.0, 5.1], "length": [4.0], "truncated": [0]},
    "plain": {"reward": [1.0, 2.0, 3.0], "kl": [5.0, 5.1, 5.0], "length": [6.0], "truncated": [1]},
  },
}


def test_differences_are_taken_seed_by_seed_and_marked_where_they_exclude_zero():
  base, better = ablation.table(FOUND).splitlines()[2:]
  assert base.startswith("| plain | 2.00 (−0.48 to 4.48) | – |")
  # 1, 1.1 and 1: far from 0, though the two intervals overlap nearly whole.
  assert "| **1.03 (0.89 to 1.18)** |" in better
  assert "| 0.00 (−0.25 to 0.25) |" in better
  # The objective of the first seed is 2 − 0.1 · 5, that of the base 1 − 0.1 · 5.
  assert ablation.of_seeds(FOUND, "better", "objective")[0] == pytest.approx(1.5)
  assert ablation.difference(FOUND, "better", "objective").excludes_zero


def test_a_seed_that_diverged_is_left_out_and_said():
  ill = {
    **FOUND["variants"]["better"],
    "reward": [2.0, 3.0, float("nan")],
    "kl": [5.0, 5.1, np.nan],
  }
  row = ablation.table({**FOUND, "variants": {**FOUND["variants"], "better": ill}}).splitlines()[3]
  assert row.startswith("| better (2 of 3 seeds) | 2.50 (")
