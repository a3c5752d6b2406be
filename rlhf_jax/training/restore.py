"""What a run has trained, read back from its workdir: a policy to evaluate, or a whole model to use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlhf_jax.config import suggest
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.training import experiment, held_out, options, stages
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup, fits, make_setup
from rlhf_jax.types import LanguageModel, Params


class TrainedPolicy(NamedTuple):
  """A finished policy beside what it was trained against."""

  name: str
  run: RunDir
  setup: Setup
  params: Params
  frozen: Params


class TextModel(NamedTuple):
  """A whole model that writes: float32 weights on the host, adapters merged."""

  model: LanguageModel
  weights: Params
  tokenizer: Any
  sampling: Sampling
  dtype: str  # of the model's matrix products


def algorithm(workdir: str | os.PathLike) -> str:
  """The name of the algorithm that the run's config trains its policy with."""
  return _config(_open(workdir))["algorithm"]["name"]


def policy(workdir: str | os.PathLike, name: str) -> TrainedPolicy:
  """The policy that algorithm `name` trained, with its reference and reward model.

  Raises ValueError where there is none or it is not finished.
  """
  run, setup = _setup(workdir, name)
  with jax.set_mesh(setup.mesh):
    weights = experiment.starting_weights(setup)
    if "reward_model" in setup.config["stages"]:
      reward_params = stages.reward_model(setup, weights)
    else:
      reward_params = experiment.foreign_reward_model(setup)
    cost_params = experiment.foreign_reward_model(setup, "cost_model")
    return TrainedPolicy(
      name, run, setup, *stages.policy(setup, weights, reward_params, cost_params)
    )


def model(workdir: str | os.PathLike, stage: str) -> TextModel:
  """The model after `stage`: `sft`, or the algorithm that trained a policy.

  Raises ValueError where the stage is not finished, or trained something that does not write.
  """
  if stage == "reward_model":
    raise ValueError(
      "stage='reward_model' scores texts and writes none; use sft or a policy's name."
    )
  _, setup = _setup(workdir, stage)
  with jax.set_mesh(setup.mesh):
    weights = experiment.starting_weights(setup)
    if stage != "sft":
      params, _ = stages.policy(setup, weights, None)
      whole = setup.merged(weights, params["model"])
    else:
      whole = weights()
  return TextModel(setup.model, jax.device_get(whole), setup.tokenizer, setup.sampling, setup.dtype)


def reward_model(workdir: str | os.PathLike) -> held_out.Reader:
  """The reward model of a run, its own or that of `start.reward_model`, to read answers with.

  Raises ValueError where there is none.
  """
  run = _open(workdir)
  own = run.finished("reward_model")
  config = _config(run, "reward_model" if own else None)
  if not own and not config.get("start", {}).get("reward_model"):
    raise ValueError(
      f"{run.workdir} has no finished reward model; add reward_model to config.stages and train it there, or give the "
      "--workdir of a run that has one."
    )
  setup = make_setup(config, run.workdir)
  with jax.set_mesh(setup.mesh):
    if own:
      weights = experiment.starting_weights(setup)
      base = setup.base(weights)
      params = stages.reward_model(setup, weights)
    else:
      base, params = {}, experiment.foreign_reward_model(setup)
  return held_out.Reader(setup, params, {"base": base}, batch_size=16)


def _setup(workdir: str | os.PathLike, stage: str) -> tuple[RunDir, Setup]:
  """The run and what `stage` was run with. Raises ValueError unless it is finished."""
  run = _open(workdir)
  if not run.finished(stage):
    known = [name for name in ("sft", *options.policy_algorithms()) if run.finished(name)]
    unfinished = stage in run.stages or stage in ("sft", *options.policy_algorithms())
    remedy = f"; train it there first. Finished: {', '.join(known) or 'none'}."
    raise ValueError(
      f"{run.workdir} has no finished stage {stage!r}"
      + (remedy if unfinished or not known else suggest(stage, known))
    )
  return run, make_setup(_config(run, stage), run.workdir)


def _open(workdir: str | os.PathLike) -> RunDir:
  path = Path(workdir)
  if not (path / "config.json").is_file():
    raise FileNotFoundError(f"{path / 'config.json'} does not exist; give the --workdir of a run.")
  return RunDir(path)


def _config(run: RunDir, stage: str | None = None) -> Mapping[str, Any]:
  """The run's last config, or that with which `stage` was run."""
  config = run.config
  if not fits(config):  # trained on more devices than these
    config["mesh"] = {}
  if stage is not None:
    sections = run.stages[stage]["config"]
    config |= {section: value for section, value in sections.items() if value is not None}
    if stage in options.policy_algorithms():
      config["algorithm"] = {**config["algorithm"], "name": stage}
  return config
