"""A whole experiment in a run directory: its stages in order, finished ones restored, not repeated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config import suggest
from rlhf_jax.training import evaluate, stages
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup, algorithm_module, make_setup
from rlhf_jax.types import Params

STAGES = ("sft", "reward_model", "policy", "evaluation")
SHARED = (
  "seed",
  "model",
  "lora",
  "data",
  "rollout",
  "start",
)  # sections that every stage depends on
OTHER = ("algorithm", "evaluation", "mesh", "stages")


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, float]:
  """Runs `config.stages` in `workdir`, resuming whatever is unfinished; returns results.json.

  Raises ValueError or FileNotFoundError, with the remedy, before anything is computed; Interrupted
  after a signal; NotFinite at a loss that is not finite.
  """
  check(config)
  run = RunDir(Path(workdir))
  name, wanted = config["algorithm"]["name"], config["stages"]
  chain = [("sft", ("sft",)), ("reward_model", ("sft", "reward_model"))]
  if "policy" in wanted:
    chain.append((name, ("sft", "reward_model", name)))
  for stage, own in chain:
    if stage in wanted or stage == name:
      run.claim(stage, {section: config.get(section) for section in (*SHARED, *own)})
  run.save_config(config)
  with run.timed("setup"):
    setup = make_setup(config, run.workdir)
  for note in setup.task.notes:
    print(note, flush=True)

  with jax.set_mesh(setup.mesh):
    weights, reward_params = setup.pretrained, None
    if "sft" in wanted:
      with run.timed("sft"):
        weights = stages.sft(setup)
    elif source := _start(config, "sft"):
      weights = stages.sft(source)
    if "reward_model" in wanted:
      with run.timed("reward_model"):
        reward_params = stages.reward_model(setup, weights)
    elif source := _start(config, "reward_model"):
      reward_params = _foreign_reward_model(source, setup)
    if "policy" in wanted:
      with run.timed(name):
        params, frozen = stages.policy(setup, weights, reward_params)
      if "evaluation" in wanted:
        with run.timed(f"{name}_evaluation"):
          run.add(evaluate.evaluate(setup, name, params, frozen))
  return run.results


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError for a section or stage that does not exist."""
  name = config.get("algorithm", {}).get("name", "ppo")
  algorithm_module(name)
  known = {*SHARED, *OTHER, *STAGES, name}
  for section in config:
    if section not in known and not _is_algorithm(section):
      raise ValueError(f"config.{section} is not a section{suggest(section, known)}")
  for missing in sorted(
    {"seed", "model", "lora", "data", "rollout", "algorithm", "stages"} - set(config)
  ):
    raise ValueError(f"config has no section {missing!r}; copy it from experiments/tiny.py.")
  for stage in config["stages"]:
    if stage not in STAGES:
      raise ValueError(f"config.stages names {stage!r}{suggest(stage, STAGES)}")


def _is_algorithm(section: str) -> bool:
  try:
    return bool(algorithm_module(section))
  except ValueError:
    return False


def _start(config: Mapping[str, Any], stage: str) -> Setup | None:
  """The setup of the run directory that `config.start.<stage>` names, whose stage is finished."""
  path = config.get("start", {}).get(stage)
  if not path:
    return None
  run = RunDir(Path(path))
  if not run.finished(stage):
    raise ValueError(
      f"start.{stage}={path!r} holds no finished stage {stage}; finish it there first."
    )
  return make_setup(json.loads((run.workdir / "config.json").read_text()), run.workdir)


def _foreign_reward_model(source: Setup, setup: Setup) -> Params:
  """Another run's reward model, with the weights that it stands on."""
  finished = RunDir(source.workdir).finished("sft")
  weights = stages.sft(source) if finished else source.pretrained
  params = stages.reward_model(source, weights)
  return {**params, "base": setup.frozen(weights)} if source.lora.rank else params
