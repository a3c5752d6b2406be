"""Runs of the tiny experiment that cost little: one layer, a few dozen short texts, a few steps of each stage."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent.parent
WORDS = "the tea was good warm and sweet but late cold dry so we left".split()
OPTIONS = (
  "--config.seed=3",
  "--config.data.max_tokens=24",
  "--config.data.prompt_tokens=8",
  "--config.rollout.max_new_tokens=8",
  "--config.model.random.num_hidden_layers=1",
  "--config.model.random.num_attention_heads=4",
  "--config.model.random.num_key_value_heads=2",
  "--config.sft.batch_size=8",
  "--config.sft.epochs=4",
  "--config.reward_model.batch_size=8",
  "--config.reward_model.epochs=1",
  "--config.reward_model.widths=1",
  "--config.ppo.steps=2",
  "--config.ppo.prompts=16",
  "--config.dpo.batch_size=8",
  "--config.dpo.epochs=0.5",
  "--config.dpo.widths=1",
  "--config.grpo.steps=2",
  "--config.grpo.prompts=8",
  "--config.grpo.group=2",
)


def write_data(folder: Path) -> list[str]:
  """Texts, pairs and prompts in `folder`; the options that say so."""
  random = np.random.RandomState(0)
  text = lambda letters: " ".join(random.choice(WORDS, letters))[:letters]
  rows = {
    "sft": [{"prompt": text(6), "response": text(12)} for _ in range(24)],
    "feedback": [{"prompt": text(6), "chosen": text(12), "rejected": text(9)} for _ in range(32)],
    "prompts": [{"prompt": text(7)} for _ in range(32)],
  }
  options = ["--config.data.source=files"]
  for name, given in rows.items():
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    options.append(f"--config.data.{name}={path}")
  return options


def arguments(workdir: Path, data: list[str], *options: str) -> list[str]:
  """Of `rlhf-jax`: the tiny experiment made small, in `workdir`."""
  tiny = ROOT / "experiments" / "tiny.py"
  return ["train", f"--config={tiny}", f"--workdir={workdir}", *OPTIONS, *data, *options]


def environment(devices: int) -> dict[str, str]:
  """Of a process with so many devices, whose programs are compiled in half the time and kept."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
  }


PROGRAM = """
import json, sys
from rlhf_jax.cli import main
codes = (main(run) for run in json.loads(sys.argv[1]))
sys.exit(next(filter(None, codes), 0))
"""


class End(NamedTuple):
  """How a process ended."""

  code: int
  out: str
  error: str


def start(runs: list[list[str]], devices: int) -> subprocess.Popen:
  """`rlhf-jax` with each of the arguments `runs` in turn, in one process with so many devices."""
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, json.dumps(runs)],
    cwd=ROOT,
    env=environment(devices),
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def start_two(runs: list[list[str]]) -> list[subprocess.Popen]:
  """`start` as two processes of two devices each, which find each other on this machine."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  job = [f"--coordinator=localhost:{port}", "--processes=2", "--heartbeat=10"]
  return [start([[*run, *job, f"--process={i}"] for run in runs], devices=2) for i in range(2)]


def ends(processes: list[subprocess.Popen]) -> list[End]:
  """Of each process, once all have ended; their pipes are read side by side."""
  with ThreadPoolExecutor() as threads:
    said = list(threads.map(lambda process: process.communicate(), processes))
  return [End(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def finish(processes: list[subprocess.Popen]) -> list[dict]:
  """`ends` as dicts, where all have done what they were asked."""
  found = ends(processes)
  assert not any(end.code for end in found), [end.error[-3000:] for end in found]
  return [end._asdict() for end in found]


def rows(path: Path) -> list[dict]:
  """What a file of JSON Lines holds; a line that is still being written is left out."""
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
  """The logged steps of a stage, without times."""
  return [
    {name: x for name, x in row.items() if name != "stage" and not name.startswith("time/")}
    for row in rows(workdir / "metrics.jsonl")
    if row["stage"] == stage
  ]


def state(workdir: Path, stage: str) -> dict[str, np.ndarray]:
  """Every array of the stage's newest checkpoint, whole, however it was spread: parameters, optimizer, key."""
  folder = workdir / "checkpoints" / stage
  newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  path = folder / str(newest) / "default"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    flat, structure = jax.tree.flatten(tree)
    whole = structure.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(flat))
    found = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=whole))
  leaves = jax.tree_util.tree_leaves_with_path(found)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
