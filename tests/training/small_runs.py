"""Runs of the tiny experiment that cost little: one layer, a few dozen short texts, a few steps of each stage."""

import json
from pathlib import Path

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
