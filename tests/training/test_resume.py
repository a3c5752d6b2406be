"""A run that is interrupted at any moment and started again ends as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parent.parent.parent
OPTIONS = (
  "--config.sft.epochs=0.05",
  "--config.sft.checkpoint_every=2",
  "--config.reward_model.epochs=0.08",
  "--config.reward_model.checkpoint_every=2",
  "--config.ppo.steps=6",
  "--config.ppo.checkpoint_every=2",
  "--config.data.test_prompts=16",
  "--config.evaluation.batch_size=32",
)
# In which stage, with what: the moment within it is random.
INTERRUPTIONS = (
  ("sft", signal.SIGTERM),
  ("sft", signal.SIGKILL),
  ("reward_model", signal.SIGKILL),
  ("ppo", signal.SIGINT),
  ("ppo", signal.SIGKILL),
  ("ppo_evaluation", signal.SIGKILL),
)


class Stopped(NamedTuple):
  code: int
  error: str
  stage: str


def start(workdir: Path) -> subprocess.Popen:
  environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, "-m", "rlhf_jax", "train", f"--workdir={workdir}", *OPTIONS]
  return subprocess.Popen(
    [*command, f"--config={ROOT / 'experiments' / 'tiny.py'}"],
    cwd=ROOT,
    env=environ,
    text=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )


def rows(path: Path) -> list[dict]:
  """What a file of JSON Lines holds; a line that is still being written is left out."""
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def progress(workdir: Path, stage: str) -> int:
  """Logged steps of a stage; for one that logs none, 1 once it has begun."""
  logged = sum(row["stage"] == stage for row in rows(workdir / "metrics.jsonl"))
  stages = workdir / "stages.json"
  begun = stages.exists() and stage in json.loads(stages.read_text())
  return logged or int(begun)


def interrupt(process: subprocess.Popen, workdir: Path, stage: str, number, rng) -> Stopped | None:
  """Sends the signal at a random moment after the stage's next few steps; None if the run ends before."""
  steps = progress(workdir, stage) + rng.choice((1, 2, 3)) if stage != "ppo_evaluation" else 1
  while progress(workdir, stage) < steps:
    if process.poll() is not None:
      assert process.returncode == 0, process.stderr.read()
      return None
    time.sleep(0.01)
  time.sleep(rng.uniform(0, 0.3))
  process.send_signal(number)
  _, error = process.communicate()
  return Stopped(process.returncode, error, stage)


def finish(workdir: Path) -> None:
  process = start(workdir)
  _, error = process.communicate()
  assert process.returncode == 0, error


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The workdir of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  finish(workdir)
  return workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
  """The workdir of a run stopped and started again, and what its processes said."""
  workdir = tmp_path_factory.mktemp("interrupted") / "run"
  rng = random.Random(0)
  stops = []
  for stage, number in INTERRUPTIONS:
    stopped = interrupt(start(workdir), workdir, stage, number, rng)
    stops.append((number, stopped))
  finish(workdir)
  return workdir, stops


def test_every_interruption_met_a_running_stage(interrupted):
  _, stops = interrupted
  codes = [stopped.code if stopped else 0 for _, stopped in stops]
  assert codes == [-9 if number == signal.SIGKILL else 128 + number for number, _ in stops]


def test_a_signal_is_answered_with_what_is_saved_and_how_to_go_on(interrupted):
  for number, stopped in interrupted[1]:
    if number != signal.SIGKILL:
      assert f"stopped by {signal.Signals(number).name} " in stopped.error
      assert "Run the same command again to go on from there." in stopped.error
      assert "Traceback" not in stopped.error


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_the_final_state_is_the_same_bit_for_bit(stage, straight, interrupted):
  expected, found = (
    state(workdir / "checkpoints" / stage) for workdir in (straight, interrupted[0])
  )
  assert expected.keys() == found.keys() and len(expected) > 20
  for name in expected:
    assert expected[name].tobytes() == found[name].tobytes(), name


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl"])
def test_logs_are_the_same_but_for_time_and_memory(file, straight, interrupted):
  expected, found = (timeless(rows(workdir / file)) for workdir in (straight, interrupted[0]))
  assert expected == found and len(expected) > 15


def test_answers_and_results_are_the_same(straight, interrupted):
  for name in ("sft.jsonl", "ppo.jsonl"):
    expected, found = (rows(w / "evaluation" / name) for w in (straight, interrupted[0]))
    assert expected == found
  expected, found = (
    json.loads((workdir / "results.json").read_text()) for workdir in (straight, interrupted[0])
  )
  clean = lambda results: {
    k: v for k, v in results.items() if k.split("/")[0] not in ("seconds", "memory")
  }
  assert clean(expected) == clean(found) != {}


def timeless(logged: list[dict]) -> list[dict]:
  return [
    {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in logged
  ]


def state(folder: Path) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint: parameters, optimizer, key, and the algorithm's own."""
  newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  tree = ocp.StandardCheckpointer().restore(folder / str(newest) / "default")
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
