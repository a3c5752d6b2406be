"""Many seeds in one program are the runs of these seeds, and an ablation says which differences are more than chance."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import TINY

from rlhf_jax.cli import main
from rlhf_jax.report import ablation
from rlhf_jax.training import experiment, online, options, stages, sweep
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import algorithm_module, make_setup

SEEDS = (0, 3)


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
  """A config whose SFT and reward model are finished, its setup, and these two models."""
  workdir = tmp_path_factory.mktemp("sweep") / "tiny"
  shutil.copytree(tiny_run[1], workdir)
  config = RunDir(workdir).config
  setup = make_setup(config, workdir)
  with jax.set_mesh(setup.mesh):
    weights = stages.sft(setup)
    return config, setup, weights, stages.reward_model(setup, weights)


def test_each_member_of_a_sweep_is_the_run_of_its_seed_alone(trained, tmp_path):
  config, setup, weights, reward_model = trained
  with jax.set_mesh(setup.mesh):
    group = sweep.Sweep(setup, SEEDS, weights, reward_model)
    states, metrics = group.run(config)
    alone = setup._replace(seed=SEEDS[1], workdir=tmp_path)
    base, policy, _ = alone.starting_point(weights, "ppo")
    params = online.run(
      alone,
      "ppo",
      algorithm_module("ppo"),
      *options.stage(config, "ppo"),
      weights=weights,
      trained=policy,
      frozen={**group.frozen, "base": base},
    )
  member = jax.tree.map(lambda x: x[1], states.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), member, params)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert len(rows) == len(metrics["rewards/mean"]) == 3
  for name in ("rewards/mean", "policy/kl_exact", "loss/total", "rollout/length"):
    np.testing.assert_allclose(metrics[name][:, 1], [r[name] for r in rows], rtol=1e-3, atol=1e-5)
    assert (metrics[name][:, 0] != metrics[name][:, 1]).any()  # another seed, another run
