"""However eight devices are arranged, training gives what one device gives: every stage, generation included."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import small_runs

# Which stages are run in which layout. What a layout does not train it takes from the run on one device, and so restores
# checkpoints of another layout.
LAYOUTS = {
  "one": ("data=1", ("sft", "reward_model", "ppo", "dpo", "grpo")),
  "data": ("data=8", ("sft",)),
  "fsdp": ("fsdp=8", ("dpo",)),
  "all": (
    "data=2 fsdp=2 tensor=2 sequence=True",
    ("sft", "reward_model", "ppo", "dpo", "grpo"),
  ),
}
CASES = [(layout, stage) for layout in list(LAYOUTS)[1:] for stage in LAYOUTS[layout][1]]
PROGRAM = """
import json, sys
from rlhf_jax.cli import main
sys.exit(any(main(run) for run in json.load(sys.stdin)))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The folder of all runs, a workdir each, from one process of eight devices."""
  folder = tmp_path_factory.mktemp("layouts")
  data = small_runs.write_data(folder)
  started = []
  for name, (mesh, stages) in LAYOUTS.items():
    options = [f"--config.mesh.{part}" for part in mesh.split()]
    for algorithm in [s for s in stages if s not in ("sft", "reward_model")] or [None]:
      own = [s for s in ("sft", "reward_model") if s in stages]
      chosen = [*own, "policy"] if algorithm else own
      more = [f"--config.algorithm.name={algorithm}", "--config.answers.source=human"]
      for other in {"sft", "reward_model"} - set(own):
        more.append(f"--config.start.{other}={folder / 'one'}")
      stages_of = f"--config.stages={tuple(chosen)}"
      started.append(small_runs.arguments(folder / name, data, *options, *more, stages_of))
  environ = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
    "JAX_COMPILATION_CACHE_DIR": str(small_runs.ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    input=json.dumps(started),
    cwd=small_runs.ROOT,
    env=environ,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.mark.parametrize("layout, stage", CASES)
def test_metrics_are_those_of_one_device(runs, layout, stage):
  expected, found = (small_runs.metrics(runs / name, stage) for name in ("one", layout))
  assert len(expected) == len(found) >= 2
  for one, many in zip(expected, found, strict=True):
    assert one.keys() == many.keys() and "loss/total" in one
    for name, value in one.items():
      np.testing.assert_allclose(many[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("layout, stage", CASES)
def test_parameters_and_moments_are_those_of_one_device(runs, layout, stage):
  expected, found = (small_runs.state(runs / name, stage) for name in ("one", layout))
  assert expected.keys() == found.keys() and len(expected) > 30
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_the_same_answers_are_written(runs, stage):
  said = lambda name: [
    (row["prompt"], row["response"])
    for row in small_runs.rows(runs / name / "samples.jsonl")
    if row["stage"] == stage
  ]
  assert said("all") == said("one") and len(said("one")) == 8
