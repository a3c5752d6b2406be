"""A whole experiment in a run directory: its stages in order, finished ones restored, not repeated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.data.task import FILES
from rlhf_jax.sharding import processes
from rlhf_jax.training import checks, evaluate, options, preflight, stages
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup, Weights, algorithm_module, make_setup
from rlhf_jax.types import Params


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, float]:
  """Runs `config.stages` in `workdir`, resuming whatever is unfinished; returns results.json.

  Raises ValueError or FileNotFoundError, with the remedy, before anything is computed; Interrupted
  after a signal; NotFinite at a loss that is not finite.
  """
  options.check(config)
  config = at_seed(config)
  run = RunDir(Path(workdir))
  name, wanted = config["algorithm"]["name"], config["stages"]
  claims = _claims(config)
  for stage, sections in claims.items():
    run.assert_same(stage, sections)
  if all(run.finished(stage) for stage in _entries(config)):
    if processes.is_first():
      print(f"{run.workdir}: finished; nothing is left to do.", flush=True)
    return run.results
  processes.wait("the run directory is read")  # before the first process writes there
  with run.timed("setup"):
    setup = make_setup(config, run.workdir)
  preflight.assert_ready(setup)
  run.save_config(config)  # now that it is known to be sound
  run.save_data({name: config["data"][name] for name in FILES if config["data"].get(name)})
  if processes.is_first():
    for note in setup.task.notes:
      print(note, flush=True)

  with jax.set_mesh(setup.mesh):
    if "sft" in wanted:
      with run.timed("sft", claims["sft"]):
        weights = setup.at_rest(stages.sft(setup))
    else:
      weights = foreign_weights(setup)
    if "reward_model" in wanted:
      with run.timed("reward_model", claims["reward_model"]):
        reward_params = stages.reward_model(setup, weights)
      if "evaluation" in wanted and not run.finished("reward_model_evaluation"):
        scored = {"base": setup.base(weights), "reward_model": reward_params}
        with run.timed("reward_model_evaluation", claims["reward_model_evaluation"]):
          run.add(evaluate.evaluate_reward_model(setup, scored))
    else:
      reward_params = foreign_reward_model(setup)
    if "policy" in wanted:
      cost_params = foreign_reward_model(setup, "cost_model")
      with run.timed(name, claims[name]):
        params, frozen = stages.policy(setup, weights, reward_params, cost_params)
      if processes.is_first():
        for check in checks.of_stage(run.workdir, name, options.stage(config, name)[0]):
          print(f"{name}: {check.says}", flush=True)
          run.add({f"{name}/{what}": value for what, value in check.found.items()})
      if "evaluation" in wanted:
        judged = f"{name}_evaluation"
        with run.timed(judged, claims[judged]):
          run.add(evaluate.evaluate(setup, name, params, frozen))
  return run.results


def at_seed(config: Mapping[str, Any]) -> dict[str, Any]:
  """`config` with its seed where a path of its section `start` says {seed}."""
  paths = {
    name: path.replace("{seed}", str(config["seed"])) if isinstance(path, str) else path
    for name, path in config.get("start", {}).items()
  }
  return {**config, "start": paths} if paths else dict(config)


def starting_weights(setup: Setup) -> Weights:
  """What the later stages start from: the run's own SFT model, or what it has instead."""
  own = "sft" in setup.config["stages"]
  return setup.at_rest(stages.sft(setup)) if own else foreign_weights(setup)


def foreign_weights(setup: Setup) -> Weights:
  """What a run without SFT of its own starts from: the SFT model that `start.sft` names, or the pretrained."""
  source = _start(setup.config, "sft")
  return source.at_rest(stages.sft(source)) if source else setup.pretrained


def foreign_reward_model(setup: Setup, role: str = "reward_model") -> Params | None:
  """The reward model that `start.<role>` names, with the weights that it stands on."""
  source = _start(setup.config, role)
  if source is None:
    return None
  weights = starting_weights(source)
  params = stages.reward_model(source, weights)
  return (
    {**params, "base": setup.frozen(weights(), source.lora.base)} if source.lora.rank else params
  )


def _entries(config: Mapping[str, Any]) -> list[str]:
  """The stages of `config` under their names in stages.json."""
  name, wanted = config["algorithm"]["name"], config["stages"]
  judged = {"reward_model": "reward_model_evaluation", "policy": f"{name}_evaluation"}
  own = {"policy": (name,), "evaluation": tuple(judged[s] for s in judged if s in wanted)}
  return [entry for stage in wanted for entry in own.get(stage, (stage,))]


def _claims(config: Mapping[str, Any]) -> dict[str, dict]:
  """What each entry of stages.json depends on: sections, and the stages that it stands on."""
  name = config["algorithm"]["name"]
  rewarding = ("sft", options.reward_algorithm(config))
  learning = (*rewarding, "rewards", name)
  if algorithm_module(name).DATA != "rollouts":
    learning = (*learning, "answers")
  depends = {
    "sft": ("sft",),
    "reward_model": rewarding,
    "reward_model_evaluation": (*rewarding, "evaluation"),
    name: learning,
    f"{name}_evaluation": (*learning, "evaluation"),
  }
  last = {"reward_model_evaluation": "reward_model", name: "policy", f"{name}_evaluation": "policy"}
  claims = {}
  for entry in _entries(config):
    before = options.STAGES[: options.STAGES.index(last.get(entry, entry)) + 1]
    claims[entry] = {section: config.get(section) for section in (*options.SHARED, *depends[entry])}
    claims[entry]["stages"] = [s for s in before if s in config["stages"]]
  return claims


def _start(config: Mapping[str, Any], stage: str) -> Setup | None:
  """The setup of the run directory that `config.start.<stage>` names, whose stage is finished; on this run's mesh."""
  run = preflight.started_from(config, stage)
  return make_setup({**run.config, "mesh": config.get("mesh", {})}, run.workdir) if run else None
