"""Whether every stage of a run can begin: what would fail after hours of training is refused at once."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config import from_dict
from rlhf_jax.data import examples, tasks
from rlhf_jax.training import (
  answers,
  checkpoint,
  disk,
  offline,
  online,
  options,
  progress,
  rewarding,
  stages,
  value_heads,
)
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import (
  Lora,
  Setup,
  algorithm_module,
  learned_tokenizer,
  reward_model_of,
)

ADAM_COPIES = 3  # parameters and two moments


def assert_ready(setup: Setup) -> None:
  """Raises ValueError, OSError or ImportError, with the remedy, for what any wanted stage would fail at."""
  wanted, name = setup.config["stages"], setup.config["algorithm"]["name"]
  _assert_trainable(setup)
  for stage in ("sft", "reward_model"):
    if stage in wanted:
      assert_no_start(setup.config, stage)
    else:
      _assert_same_tokens(setup, stage, started_from(setup.config, stage))
  _assert_same_tokens(setup, "cost_model", started_from(setup.config, "cost_model"))
  if "sft" in wanted:
    _assert_sft(setup)
  if "reward_model" in wanted:
    reward_model = options.reward_algorithm(setup.config)
    _assert_feedback(setup, reward_model)
    stages.reward_learner(setup)
    _assert_prompts(
      setup, "reward_model", "whose sampled answers fix the mean and scale of rewards"
    )
  if "policy" in wanted:
    rewarding.assert_computable(setup)
    rollouts = algorithm_module(name).DATA == "rollouts"
    (_assert_rollouts if rollouts else _assert_offline)(setup, name)
  if {"policy", "evaluation"} <= set(wanted):
    _assert_evaluation(setup)
  _assert_disk(setup)


def started_from(config: Mapping[str, Any], stage: str) -> RunDir | None:
  """The run directory that `config.start.<stage>` names, None where it names none.

  Raises FileNotFoundError or ValueError unless the stage is finished there, on this run's model. A cost model is a
  reward model there.
  """
  path = config.get("start", {}).get(stage)
  if not path:
    return None
  if not Path(path).is_dir():
    raise FileNotFoundError(f"start.{stage}={path!r} is not a folder; give the workdir of a run.")
  run = RunDir(Path(path))
  trained = "sft" if stage == "sft" else "reward_model"
  if not run.finished(trained):
    raise ValueError(
      f"start.{stage}={path!r} holds no finished stage {trained}; finish it there first."
    )
  assert_same = lambda name, theirs, ours: _assert_same(
    f"start.{stage}={path!r}", name, theirs, ours
  )
  for field in ("source", "random"):
    assert_same(f"model.{field}", run.config["model"].get(field), config["model"].get(field))
  if stage == "reward_model":  # which is read as that run reads it
    ours = config["algorithm"].get("reward_model")
    theirs = options.reward_algorithm(run.config)
    assert_same("algorithm.reward_model", theirs, ours or theirs)
  theirs, ours = (from_dict(Lora, c["lora"], where="lora") for c in (run.config, config))
  if (
    trained == "reward_model" and theirs.rank
  ):  # adapters are scaled by the run that scores with them
    assert_same("lora.alpha / lora.rank", theirs.scale, ours.scale)
  if stage == "cost_model":
    combine = reward_model_of(config, stage).group.combine
    if combine not in ("mean", "average"):
      raise ValueError(
        f"start.cost_model={path!r} combines its members by {combine!r}, which is careful with rewards and "
        "careless with costs; train it with 'mean' or 'average'."
      )
  return run


def _assert_same_tokens(setup: Setup, stage: str, run: RunDir | None) -> None:
  """Raises ValueError where `run` reads other tokens: those of a model made from nothing are learned from texts."""
  if run is None or setup.config["model"].get("source") != "random":
    return
  data = from_dict(tasks.Settings, run.config["data"], where="data")
  size = run.config["model"]["random"]["vocab_size"]
  theirs = learned_tokenizer(data, size, run.config["seed"])
  if theirs.get_vocab() != setup.tokenizer.get_vocab():
    raise ValueError(
      f"start.{stage}={str(run.workdir)!r} learned its tokens from other texts than this run; use its data and its seed."
    )


def assert_no_start(config: Mapping[str, Any], stage: str) -> None:
  """Raises ValueError when `stage` is both trained here and taken from another run."""
  path = config.get("start", {}).get(stage)
  if path:
    raise ValueError(
      f"start.{stage}={path!r} replaces a stage that config.stages trains here; take {stage} out of "
      f"config.stages, or leave start.{stage} empty."
    )


def _assert_same(where: str, name: str, theirs, ours) -> None:
  if json.dumps(theirs, sort_keys=True) != json.dumps(ours, sort_keys=True):
    raise ValueError(
      f"{where} was trained with {name}={theirs!r} and this run has {ours!r}; use the same."
    )


def _assert_trainable(setup: Setup) -> None:
  if setup.lora.rank and not setup.lora.targets:
    raise ValueError(
      "lora.targets is empty, so nothing would train; name linear maps such as ('q', 'v'), or set "
      "lora.rank=0 to train the whole model."
    )
  _trained(setup)


def _assert_sft(setup: Setup) -> None:
  _, settings, _ = options.stage(setup.config, "sft")
  offline.assert_divides(setup, "sft", settings)
  progress.assert_possible(setup, "sft", settings.evaluate_every)
  _assert_given(setup, setup.task.sft, "sft", "texts", "sft")
  rows = examples.pack(setup.task.sft, setup.data.max_tokens)
  _assert_enough("sft.batch_size", settings.batch_size, len(rows), "packed rows of text")


def _assert_feedback(setup: Setup, name: str) -> None:
  """People's feedback of the form that algorithm `name` learns from."""
  _, settings, *_ = options.stage(setup.config, name)
  offline.assert_divides(setup, name, settings)
  progress.assert_possible(setup, name, settings.evaluate_every)
  form = algorithm_module(name).DATA
  records = setup.task.feedback(form, 0)
  _assert_given(setup, records, name, form, "feedback")
  _assert_enough(f"{name}.batch_size", settings.batch_size, len(records), form)


def _assert_prompts(setup: Setup, stage: str, why: str) -> None:
  _assert_given(setup, setup.task.prompts, stage, f"prompts, {why}", "prompts")


def _assert_rollouts(setup: Setup, name: str) -> None:
  config, settings, optim = options.stage(setup.config, name)
  online.assert_learnable(setup)
  online.assert_critic(setup.config, name, algorithm_module(name), config, settings, optim)
  progress.assert_possible(setup, name, settings.evaluate_every)
  online.assert_divides(setup, name, algorithm_module(name), config, settings)
  online.assert_groups(name, config, settings)
  _assert_prompts(setup, name, "which the policy learns to answer")
  _assert_enough(f"{name}.prompts", settings.prompts, len(setup.task.prompts), "prompts")


def _assert_offline(setup: Setup, name: str) -> None:
  sampled = from_dict(answers.Settings, setup.config.get("answers", {}), where="answers")
  form = algorithm_module(name).DATA
  if sampled.source == "human":
    _assert_feedback(setup, name)
    return
  if form not in answers.FORMS:
    raise ValueError(
      f"{name} learns from {form}, which sampled answers are not; set answers.source='human' and "
      "data.feedback, a file of them."
    )
  _, settings, _ = options.stage(setup.config, name)
  offline.assert_divides(setup, name, settings)
  progress.assert_possible(setup, name, settings.evaluate_every)
  _assert_prompts(setup, name, f"whose sampled answers become {form}")
  most = min(sampled.prompts, len(setup.task.prompts))
  _assert_enough(f"{name}.batch_size", settings.batch_size, most, "prompts of answers.prompts")


def _assert_evaluation(setup: Setup) -> None:
  _assert_given(setup, setup.task.test_prompts, "evaluation", "held-out prompts", "test")
  if setup.task.verifier is None and importlib.util.find_spec("vaderSentiment") is None:
    raise ImportError("evaluation needs the package vaderSentiment: pip install vaderSentiment")


def _assert_given(setup: Setup, rows, stage: str, what: str, file: str) -> None:
  if not rows:
    from_file = setup.data.source == "files"
    remedy = f"set data.{file}, a file of them" if from_file else "lower data.prompt_tokens"
    if file == "feedback" and setup.data.labels == "vader":
      remedy = "data.labels='vader' makes marks, which reward_from_marks learns from"
    raise ValueError(f"stage {stage} needs {what}, and there are none; {remedy}.")


def _assert_enough(name: str, size: int, count: int, what: str) -> None:
  if size > count:
    raise ValueError(f"{name}={size} exceeds the {count} {what}; lower it to at most {count}.")


def _assert_disk(setup: Setup) -> None:
  """Room for the checkpoints of every stage that has none yet, and for one more while it is written."""
  names = {
    "sft": "sft",
    "reward_model": "reward_model",
    "policy": setup.config["algorithm"]["name"],
  }
  group = reward_model_of(setup.config).group
  members = group.members if group.share == "adapters" else 1
  count = 1
  for stage, name in names.items():
    if stage in setup.config["stages"] and not (setup.workdir / "checkpoints" / name).exists():
      count += checkpoint.KEEP * (members if stage == "reward_model" else 1)
  needed = count * ADAM_COPIES * _bytes(_trained(setup))
  if "policy" in setup.config["stages"]:
    # A target network besides.
    needed += checkpoint.KEEP * (ADAM_COPIES + 1) * _bytes(_value_heads(setup, names["policy"]))
  disk.assert_room(setup.workdir, needed, "keeping this run's checkpoints")


def _bytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _value_heads(setup: Setup, name: str):
  """The shapes of the heads that algorithm `name` learns values with, none for most."""
  module, (config, *_) = algorithm_module(name), options.stage(setup.config, name)
  return jax.eval_shape(lambda: value_heads.added(setup, module, config, {"model": {}}))


def _trained(setup: Setup):
  """The shapes of what trains. Raises ValueError for a LoRA target that the model lacks."""
  if setup.lora.rank:
    return jax.eval_shape(lambda: setup.adapters("shapes"))
  return jax.eval_shape(setup.model.init, setup.key("shapes"))
