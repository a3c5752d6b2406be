"""However devices are arranged, and over however many processes, training gives what one device gives, generation included."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import small_runs

STAGES = ("sft", "reward_model", "ppo", "dpo", "grpo")
EVERY_AXIS = "data=2 fsdp=2 tensor=2 sequence=True"


class Matrix(NamedTuple):
  """Which stages are trained in which layout. What a layout lacks it takes from the run on one device."""

  layouts: dict[str, tuple[str, tuple[str, ...]]]  # of one process with eight devices
  processes: tuple[str, tuple[str, ...]]  # of two processes with two devices each
  options: tuple[str, ...]

  @property
  def cases(self) -> list[tuple[str, str]]:
    sharded = {**self.layouts, "processes": self.processes}
    return [(name, s) for name, (_, stages) in sharded.items() if name != "one" for s in stages]


FEW = Matrix(
  {"one": ("data=1", ("sft", "ppo")), "all": (EVERY_AXIS, ("sft", "ppo"))},
  ("fsdp=2 tensor=2", ("ppo",)),
  ("--config.rewards.terms=('length',)", "--config.rewards.length_target=2"),
)
MANY = Matrix(
  {
    "one": ("data=1", STAGES),
    "data": ("data=8", ("sft", "reward_model", "dpo")),
    "fsdp": ("fsdp=8", ("dpo", "grpo")),
    "all": (EVERY_AXIS, STAGES),
  },
  ("data=2 tensor=2", STAGES),
  ("--config.answers.source=human",),
)
CASES = [("few", *case) for case in FEW.cases]
CASES += [pytest.param("many", *case, marks=pytest.mark.slow) for case in MANY.cases]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
  return trained(FEW, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  return trained(MANY, tmp_path_factory.mktemp("many"))


def trained(matrix: Matrix, folder: Path) -> Path:
  """The folder of all runs, a workdir each: those of one process with eight devices, and that of two processes."""
  data = small_runs.write_data(folder)

  def arguments(name: str, mesh: str, stages: tuple[str, ...]) -> list[list[str]]:
    own = [stage for stage in STAGES[:2] if stage in stages]
    given = [
      stage for stage in STAGES[:2] if stage not in stages and stage in matrix.layouts["one"][1]
    ]
    options = [f"--config.mesh.{part}" for part in mesh.split()]
    options += [f"--config.start.{stage}={folder / 'one'}" for stage in given]
    found = []
    for algorithm in [stage for stage in stages if stage not in own]:
      chosen = [f"--config.algorithm.name={algorithm}", f"--config.stages={(*own, 'policy')}"]
      found.append(small_runs.arguments(folder / name, data, *options, *matrix.options, *chosen))
    return found

  in_one = [run for name, layout in matrix.layouts.items() for run in arguments(name, *layout)]
  small_runs.finish([small_runs.start(in_one, devices=8)])
  said = small_runs.finish(small_runs.start_two(arguments("processes", *matrix.processes)))
  (folder / "said.json").write_text(json.dumps(said))
  return folder


@pytest.mark.parametrize("matrix, layout, stage", CASES)
def test_metrics_are_those_of_one_device(request, matrix, layout, stage):
  runs = request.getfixturevalue(matrix)
  expected, found = (small_runs.metrics(runs / name, stage) for name in ("one", layout))
  assert len(expected) == len(found) >= 2
  for one, many in zip(expected, found, strict=True):
    assert one.keys() == many.keys() and "loss/total" in one
    for name, value in one.items():
      if name == "rewards/accuracy" and one.get("rewards/margin") == 0:
        continue  # the policy is its reference still, and rounding says which answer it prefers
      np.testing.assert_allclose(many[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("matrix, layout, stage", CASES)
def test_parameters_and_moments_are_those_of_one_device(request, matrix, layout, stage):
  runs = request.getfixturevalue(matrix)
  expected, found = (small_runs.state(runs / name, stage) for name in ("one", layout))
  assert expected.keys() == found.keys() and len(expected) > 30
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("layout", ["all", "processes"])
def test_the_same_answers_are_written(few, layout):
  said = lambda name: [
    (row["prompt"], row["response"]) for row in small_runs.rows(few / name / "samples.jsonl")
  ]
  assert said(layout) == said("one") and len(said("one")) == 8


def test_the_first_of_two_processes_writes_and_speaks_alone(few):
  first, second = json.loads((few / "said.json").read_text())
  assert "report: " in first["out"] and "step/s" in first["error"]
  assert "report: " not in second["out"] and "step/s" not in second["error"]
  assert [row["step"] for row in small_runs.metrics(few / "processes", "ppo")] == [1, 2]
