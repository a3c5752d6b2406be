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
  "--config.sft.epochs=0.15",
  "--config.sft.checkpoint_every=2",
  "--config.reward_model.epochs=0.2",
  "--config.reward_model.checkpoint_every=2",
  "--config.ppo.steps=8",
  "--config.ppo.checkpoint_every=2",
  "--config.data.test_prompts=16",
  "--config.evaluation.batch_size=32",
)
# The signal, and in which stage after which logged steps: one of these, and a moment more.
INTERRUPTIONS = (
  (signal.SIGTERM, "sft", (2, 7)),
  (signal.SIGKILL, "sft", (10, 18)),
  (signal.SIGKILL, "reward_model", (1, 12)),
  (signal.SIGINT, "ppo", (1, 3)),
  (signal.SIGKILL, "ppo", (4, 6)),
  (signal.SIGKILL, "ppo_evaluation", (1, 1)),
)


class Stopped(NamedTuple):
  number: signal.Signals
  code: int
  error: str


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


def interrupt(
  workdir: Path, number: signal.Signals, stage: str, step: int, delay: float
) -> Stopped:
  """Starts the run and sends the signal `delay` seconds after `stage` has logged `step` steps."""
  process = start(workdir)
  while progress(workdir, stage) < step and process.poll() is None:
    time.sleep(0.002)
  time.sleep(delay)
  process.send_signal(number)
  _, error = process.communicate()
  return Stopped(number, process.returncode, error)


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
  stops = [
    interrupt(workdir, number, stage, rng.randint(*steps), rng.uniform(0, 0.1))
    for number, stage, steps in INTERRUPTIONS
  ]
  finish(workdir)
  return workdir, stops


def test_every_signal_stopped_a_running_process(interrupted):
  for stop in interrupted[1]:
    code = -stop.number if stop.number == signal.SIGKILL else 128 + stop.number
    assert stop.code == code, stop.error


def test_a_signal_is_answered_with_what_is_saved_and_how_to_go_on(interrupted):
  for stop in interrupted[1]:
    if stop.number != signal.SIGKILL:
      assert f"stopped by {stop.number.name} " in stop.error
      assert "Run the same command again to go on from there." in stop.error
      assert "Traceback" not in stop.error


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
