"""Many seeds of an online run as one program, and an ablation that goes over the variants of an experiment so.

Collecting and learning are pure functions of a state, its keys and its prompts, so `jax.vmap` over the states of all
seeds makes one program of their runs. What does not depend on the seed, the reference and the reward model, is shared.
Member k sees the prompts, and draws the tokens and minibatches, of the run with seed k alone.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rlhf_jax import sharding
from rlhf_jax.config import from_dict, suggest
from rlhf_jax.training import (
  disk,
  ensemble,
  evaluate,
  experiment,
  online,
  options,
  preflight,
  progress,
  rewarding,
  sampling,
  stages,
  variants,
)
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup, Weights, algorithm_module, make_setup
from rlhf_jax.training.step import init_state
from rlhf_jax.types import Params, TrainState

FILE = "ablation.json"
LAST = 5  # the last 1 / LAST of the steps are averaged
TRAINING = {"score": "rewards/mean", "kl": "policy/kl_exact"}  # of these steps, and their metrics


class Programs(NamedTuple):
  """What is compiled once and runs for all seeds of all variants of one structure."""

  init: Callable  # (key, params, config) -> TrainState, of one seed
  collect: Callable
  train_step: Callable


class Sweep:
  """All seeds of a policy's stage, from `weights()` on."""

  def __init__(self, setup: Setup, seeds: Sequence[int], weights: Weights, reward_model: Params):
    self.setup, self.seeds, self.weights = setup, tuple(seeds), weights
    self.members = [setup._replace(seed=seed) for seed in self.seeds]
    base, reference = setup.base(weights), setup.reference(weights)
    self.frozen = {"base": base, "reference": reference, "reward_model": reward_model}
    self._made: dict = {}

  def run(
    self, config: Mapping[str, Any], after_step: Callable = lambda: None
  ) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains `config.algorithm.name` with every seed; the states, seeds in front, and metrics float[steps, seeds]."""
    name = config["algorithm"]["name"]
    module = algorithm_module(name)
    algorithm, settings, optim = options.stage(config, name)
    programs = self.programs(name, algorithm, settings, optim)
    place = self.setup.place_batch  # the seeds over the devices

    def begin(member: Setup) -> TrainState:
      params = online.parameters(
        member, name, module, settings, self.weights, self.frozen["reward_model"]
      )
      return programs.init(member.key(f"{name} state"), params, algorithm)

    def questions(member: Setup, step: int):
      rows = online.rows_at(member, name, settings, step, online.group_of(algorithm))
      return online.questions(member, rows, step)

    states = place(ensemble.stacked([begin(member) for member in self.members]))
    coef = getattr(algorithm, "mixture_coef", None)
    measured = []
    for step in range(settings.steps):
      asked = place(ensemble.stacked([questions(member, step) for member in self.members]))
      policy = {"model": states.params["model"]}
      rollout, metrics = programs.collect(policy, self.frozen, *asked, self.setup.sampling, coef)
      states, learned = programs.train_step(states, self.frozen, rollout, algorithm)
      measured.append({**metrics, **learned})
      if step:  # one step late, so that the devices never wait
        measured[-2] = jax.device_get(measured[-2])
      after_step()
    measured = [_values(metrics) for metrics in jax.device_get(measured)]
    return states, {name: np.stack([m[name] for m in measured]) for name in measured[0]}

  def held_out(self, config: Mapping[str, Any], states: TrainState) -> dict[str, list[float]]:
    """What each seed's policy answers to the held-out prompts, measured as the evaluation stage does."""
    each = [
      self._held_out(config, member, jax.tree.map(operator.itemgetter(k), states.params["model"]))
      for k, member in enumerate(self.members)
    ]
    return {name: [measured[name] for measured in each] for name in each[0]}

  def _held_out(self, config: Mapping[str, Any], member: Setup, model: Params) -> dict[str, float]:
    settings = from_dict(evaluate.Settings, config.get("evaluation", {}), where="evaluation")
    size = settings.batch_size
    written = sampling.sample(
      evaluate.sampling_plainly(member, settings),
      self.frozen["base"],
      model,
      member.task.test_prompts,
      f"evaluation {config['algorithm']['name']}",
      batch_size=size,
    )
    sequences = written.sequences

    def divergence(rows):
      return progress.exact_kl(
        member.policy, {"model": model}, self.frozen, sampling.take(sequences, rows)
      )

    rows = len(sequences.tokens)
    measured = {
      "reward": sampling.score(
        member, self.frozen["reward_model"], self.frozen, sequences, batch_size=size
      ),
      "kl": sampling.in_batches(member, divergence, rows, size, "measuring"),
      "length": sequences.response_mask.sum(axis=-1),
      "truncated": written.truncated,
    }
    return {name: float(np.mean(values)) for name, values in measured.items()}

  def programs(self, name: str, algorithm_config, settings, optim) -> Programs:
    """Variants that differ in floats of their algorithm alone share them."""
    structure = name, settings, optim, jax.tree.structure(algorithm_config)
    if structure not in self._made:
      module = algorithm_module(name)
      algorithm, tx, step = online.learner(self.setup, module, algorithm_config, settings, optim)
      self._made[structure] = Programs(
        lambda key, params, config: init_state(key, params, algorithm, tx, config),
        self._collect(**online.collected(module, algorithm_config, settings)),
        jax.jit(jax.vmap(step, in_axes=(0, None, 0, None)), donate_argnums=0),
      )
    return self._made[structure]

  def _collect(self, **how) -> Callable:
    which = tuple(sorted(how.items()))
    if which not in self._made:
      collect = online.make_collect(self.setup, **how)
      mapped = jax.vmap(collect, in_axes=(0, None, 0, 0, 0, None, None))
      self._made[which] = jax.jit(mapped)
    return self._made[which]


def ablate(
  config: Mapping[str, Any],
  workdir: str | os.PathLike,
  *,
  only: Sequence[str] = (),
  after_each: Callable = lambda workdir, found: None,
) -> dict[str, Any]:
  """Trains every variant of `config` with all seeds of `config.ablation`; what ablation.json holds.

  SFT and the reward model are trained once, by the run's own seed. A variant that is finished stays as it is; one that
  was interrupted begins anew, since it takes a minute or so. Of each, metrics and results are kept, and no weights.
  `after_each(workdir, found)` follows every new one. Raises ValueError for a variant that cannot be trained so, before
  anything is trained.
  """
  workdir = Path(workdir)
  settings = from_dict(options.Ablation, config.get("ablation", {}), where="ablation")
  shared, all_variants = variants.parse(config, workdir)
  for name in (*only, settings.base):
    if name not in all_variants:
      raise ValueError(f"{name!r} is not a variant{suggest(name, all_variants)}")
  chosen = {name: all_variants[name] for name in only or all_variants}
  for name, variant in chosen.items():
    options.check(variant)
    assert_sweepable(name, variant)
  seeds = range(config["seed"], config["seed"] + settings.seeds)
  found = {
    "base": settings.base,
    "kl_coef": _kl_coef(all_variants[settings.base]),
    "seeds": list(seeds),
    "variants": {n: r for n, r in _read(workdir / FILE).items() if n in all_variants},
  }
  todo = {}
  for name, variant in chosen.items():
    run, stage = RunDir(workdir / variants.SECTION / name), variant["algorithm"]["name"]
    run.assert_same(stage, _claims(variant, settings))
    if name not in found["variants"] or not run.finished(stage):
      todo[name] = run, stage, variant
  if not todo:
    print(f"{workdir}: finished; nothing is left to do.", flush=True)
    return found

  setup = make_setup(shared, workdir)
  sharding.assert_divides("ablation.seeds", settings.seeds, setup.mesh)
  # Each alone, for what it starts from is made only below.
  alone = {"stages": ("policy",), "start": config.get("start", {})}
  for *_, variant in todo.values():
    preflight.assert_ready(setup._replace(config={**variant, **alone}))
  experiment.train(shared, workdir)
  with jax.set_mesh(setup.mesh):
    sweep = Sweep(setup, seeds, *_models(setup))
    steps = sum(options.stage(variant, stage)[1].steps for _, stage, variant in todo.values())
    bar = tqdm(total=steps, unit="step", dynamic_ncols=True)
    for name, (run, stage, variant) in todo.items():
      bar.set_description(f"{name:>12}")
      with run.timed(stage, _claims(variant, settings)):
        states, metrics = sweep.run(variant, after_step=bar.update)
        disk.replace_rows(run.workdir / "metrics.jsonl", _rows(stage, seeds, metrics))
        found["variants"][name] = sweep.held_out(variant, states) | _at_the_end(metrics)
        disk.replace(workdir / FILE, json.dumps(found, indent=2) + "\n")
      after_each(workdir, found)
    bar.close()
  return found


def assert_sweepable(name: str, variant: Mapping[str, Any]) -> None:
  """Raises ValueError for a variant whose seeds do not run as one program."""
  algorithm = variant["algorithm"]["name"]
  module, rewards = algorithm_module(algorithm), rewarding.settings_of(variant)
  if module.DATA != "rollouts":
    why = f"{algorithm} does not learn from what the policy writes"
  elif getattr(module, "COSTS", False):
    why = f"{algorithm} weighs costs, which are not scored here"
  elif rewards != rewarding.Settings():
    why = f"rewards.terms={rewards.terms!r} with these weights are more than the reward model"
  else:
    config, settings, _ = options.stage(variant, algorithm)
    if settings.dynamic_sampling:
      why = f"{algorithm}.dynamic_sampling draws as often as each seed needs"
    elif getattr(module, "HEADS", None) or getattr(config, "replay", 1) > 1:
      why = f"{algorithm} acts by heads of its own, or replays"
    else:
      return
  raise ValueError(
    f"config.variants.{name}: {why}, and all seeds are one program here; train it with rlhf-jax compare."
  )


def _read(path: Path) -> dict[str, dict]:
  """The variants of an ablation.json, none where there is no such file."""
  return json.loads(path.read_text(encoding="utf-8"))["variants"] if path.exists() else {}


def _kl_coef(variant: Mapping[str, Any]) -> float:
  """What a nat of KL costs in reward."""
  config, *_ = options.stage(variant, variant["algorithm"]["name"])
  return config.beta if hasattr(config, "beta") else config.kl_coef


def _claims(variant: Mapping[str, Any], settings: options.Ablation) -> dict[str, Any]:
  """The sections that a variant's results depend on."""
  own = "sft", options.reward_algorithm(variant), variant["algorithm"]["name"], "evaluation"
  sections = {section: variant.get(section) for section in (*options.SHARED, *own)}
  return sections | {"ablation": {"seeds": settings.seeds}}


def _models(setup: Setup) -> tuple[Weights, Params]:
  """The SFT model and the reward model that all variants share."""
  weights = experiment.starting_weights(setup)
  if "reward_model" in setup.config["stages"]:
    return weights, stages.reward_model(setup, weights)
  return weights, experiment.foreign_reward_model(setup)


def _values(metrics) -> dict[str, np.ndarray]:
  return {name: m.sum / np.maximum(m.count, 1e-8) for name, m in metrics.items()}


def _at_the_end(metrics: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
  """Means over the last fifth of the steps, a seed each."""
  last = {name: metrics[metric] for name, metric in TRAINING.items() if metric in metrics}
  return {
    f"training_{n}": x[-max(len(x) // LAST, 1) :].mean(axis=0).tolist() for n, x in last.items()
  }


def _rows(stage: str, seeds: Sequence[int], metrics: Mapping[str, np.ndarray]):
  """An object a step and seed, for metrics.jsonl."""
  steps = len(next(iter(metrics.values())))
  for step in range(steps):
    for k, seed in enumerate(seeds):
      values = {name: float(x[step, k]) for name, x in metrics.items()}
      yield {"step": step + 1, "stage": stage, "seed": seed, **values}
