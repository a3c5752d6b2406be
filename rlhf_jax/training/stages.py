"""SFT, reward model and policy: each builds what it needs and runs its loop.

A stage that is finished restores its result and iterates no more, so running everything again is
how a run is resumed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.config import from_dict
from rlhf_jax.data import examples
from rlhf_jax.models import heads
from rlhf_jax.training import (
  answers,
  ensemble,
  offline,
  online,
  options,
  parts,
  sampling,
  value_heads,
)
from rlhf_jax.training.reference import reference_logps
from rlhf_jax.training.setup import Setup, Weights, algorithm_module
from rlhf_jax.types import Algorithm, Beginning, Params


def feedback(setup: Setup, form: str, frozen: Params) -> list[examples.Record]:
  """What a policy learns from without writing anew: people's feedback, or its reference's scored answers."""
  settings = from_dict(answers.Settings, setup.config.get("answers", {}), where="answers")
  if settings.source == "human":
    records = setup.task.feedback(form, 0)
  else:
    records = answers.FORMS[form](answers.load_or_sample(settings, setup, frozen))
  return (
    examples.with_mismatched(records, setup.order("mismatched")) if form == "marks" else records
  )


class Doing(NamedTuple):
  """What a stage does with what it has built: to train; or, in `plan`, to compile it and go no further."""

  offline: Callable = offline.run
  online: Callable = online.run
  feedback: Callable = feedback
  reference_logps: Callable = reference_logps


TRAINING = Doing()


def sft(setup: Setup, doing: Doing = TRAINING) -> Params:
  """Fine-tunes the pretrained model on texts; returns the whole model, float32."""
  config, settings, optim = options.stage(setup.config, "sft")
  width = setup.data.max_tokens
  rows = examples.pack(setup.task.sft, width)
  state = doing.offline(
    setup,
    "sft",
    sft_algorithm.make(setup.policy),
    config,
    settings,
    optim,
    params=lambda: {"model": setup.trained(setup.pretrained, "sft")},
    frozen={"base": setup.base(setup.pretrained)},
    batches=offline.packed(rows, width, settings, setup.order("sft")),
  )
  return setup.merged(setup.pretrained, state.params["model"])


def reward_model(setup: Setup, weights: Weights, doing: Doing = TRAINING) -> Params:
  """Trains a reward model, or several at once, from `weights()` on feedback; returns its `Scorer` parameters.

  Its gain and bias make samples of the policy `weights()` score mean 0, standard deviation 1.
  """
  name = options.reward_algorithm(setup.config)
  form = algorithm_module(name).DATA
  config, settings, optim, group = options.stage(setup.config, name)
  algorithm, started = reward_learner(setup)
  frozen, order = {"base": setup.base(weights)}, setup.order("reward_model")
  records = lambda epoch: setup.task.feedback(form, epoch)
  batches = offline.padded(records, settings, order)
  how = {}
  if group.members > 1 and group.share == "adapters":
    how["members"] = lambda tx, step: ensemble.at_once(tx, step, group.bootstrap)
    if group.bootstrap:
      batches = offline.bootstrapped(records, settings, order, group.members)

  def normalize(state):
    prompts = setup.task.prompts
    rows = examples.batch_rows(
      len(prompts), min(256, len(prompts)), setup.order("normalization"), 0
    )
    chosen = [prompts[i] for i in rows]
    writer = setup.reference(weights)["model"]
    written = sampling.sample(
      setup, frozen["base"], writer, chosen, "normalization", batch_size=128
    ).sequences
    score = lambda params: sampling.score(setup, params, frozen, written, batch_size=128)
    return state.replace(extra=setup.place(ensemble.normalize(group, state.params, score)))

  state = doing.offline(
    setup,
    "reward_model",
    algorithm._replace(init_extra=lambda params, config: ensemble.unnormalized(group)),
    config,
    settings,
    optim,
    params=lambda: _fresh_reward_model(setup, weights, started, group),
    frozen=frozen,
    batches=batches,
    finish=normalize,
    **how,
  )
  return ensemble.scoring(group, state.params, state.extra)


def reward_learner(setup: Setup) -> tuple[Algorithm, Beginning]:
  """What trains the reward model of `setup`, and from what.

  Raises ValueError for feedback or an ensemble that it cannot learn from.
  """
  name = options.reward_algorithm(setup.config)
  module = algorithm_module(name)
  config, settings, _, group = options.stage(setup.config, name)
  algorithm = parts.make_algorithm(module, setup.scorer, settings.accumulate)
  if group.members > 1 and group.share == "trunk":
    algorithm = ensemble.on_one_trunk(algorithm, name)
  if not hasattr(module, "begin"):
    return algorithm, Beginning()
  return algorithm, module.begin(config, _labels(setup.task.feedback(module.DATA, 0)))


def _fresh_reward_model(
  setup: Setup, weights: Weights, started: Beginning, group: ensemble.Settings
) -> Params:
  """One, or several in the form that trains."""
  weights = functools.cache(weights)  # read once for all members
  members = [_reward_member(setup, weights, started, group, i) for i in range(group.members)]
  if group.members == 1:
    return members[0]
  if group.share == "adapters":
    return ensemble.stacked(members)
  own = [{n: x for n, x in member.items() if n != "model"} for member in members]
  return {"model": members[0]["model"], "members": ensemble.stacked(own)}


def _reward_member(
  setup: Setup, weights: Weights, started: Beginning, group: ensemble.Settings, member: int
) -> Params:
  """A fresh reward model; those whose weights will be averaged begin with one head."""
  which = f" {member}" if member else ""
  size = setup.model.config.hidden_size
  key = setup.key("reward head" if group.combine == "average" else f"reward head{which}")
  head = heads.init_head(key, size, std=(size + 1) ** -0.5, outputs=started.outputs)
  head["bias"] = head["bias"] + jnp.asarray(started.bias, jnp.float32)
  params = {"model": setup.trained(weights, f"reward_model{which}"), "reward_head": head}
  if started.link is not None:
    params["link"] = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), started.link)
  return params


def _labels(records: list[examples.Record]) -> np.ndarray:
  """What people said, float[N, ...]: preferences, ranks with zeros after the shorter ones, labels of answers or tokens."""
  of = {
    examples.Pair: lambda record: [record.preference],
    examples.Ranking: lambda record: record.ranks,
    examples.Labelled: lambda record: record.labels,
    examples.TokenLabelled: lambda record: record.labels,
  }[type(records[0])]
  said = [of(record) for record in records]
  if isinstance(records[0], examples.TokenLabelled):
    return np.concatenate(said)[:, None]
  longest = max(len(labels) for labels in said)
  return np.asarray([[*labels, *[0.0] * (longest - len(labels))] for labels in said], float)


def policy(
  setup: Setup,
  weights: Weights,
  reward_params: Params | None,
  cost_params: Params | None = None,
  doing: Doing = TRAINING,
) -> tuple[Params, Params]:
  """Trains the policy that `weights()` start by `config.algorithm.name`; (its parameters, frozen)."""
  name = setup.config["algorithm"]["name"]
  module = algorithm_module(name)
  frozen = {
    "base": setup.base(weights),
    "reference": setup.reference(weights),
    "reward_model": reward_params,
    "cost_model": cost_params,
  }
  if module.DATA == "rollouts":
    config, settings, optim = options.stage(setup.config, name)
    params = doing.online(
      setup,
      name,
      module,
      config,
      settings,
      optim,
      weights=weights,
      frozen=frozen,
    )
    return params, frozen

  config, settings, optim = options.stage(setup.config, name)
  records = doing.feedback(setup, module.DATA, frozen)
  wanted = [answer for record in records for answer in record.answers]
  ref_logps = doing.reference_logps(setup, frozen, wanted)
  resting = None
  if ref_logps is not None and not settings.evaluate_every:  # no step asks the reference itself
    resting = setup.at_rest(frozen.pop("reference"))
  state = doing.offline(
    setup,
    name,
    parts.make_algorithm(module, setup.policy, settings.accumulate),
    config,
    settings,
    optim,
    params=lambda: value_heads.added(
      setup, module, config, {"model": setup.trained(weights, name)}
    ),
    frozen=frozen,
    batches=offline.padded(lambda epoch: records, settings, setup.order(name), ref_logps),
  )
  if resting is not None:
    frozen["reference"] = resting()
  return state.params, frozen
