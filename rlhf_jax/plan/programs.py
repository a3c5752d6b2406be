"""The programs of an experiment, made by the stages themselves with shapes in place of arrays.

Every stage is traced, not run: what it hands to its loop is written down as a `Program`, which can be compiled for chips
that are not there. So what is compiled is what trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.plan import abstract
from rlhf_jax.rollout import refill
from rlhf_jax.training import (
  offline,
  online,
  optimizer,
  replay,
  rewarding,
  stages,
  value_heads,
)
from rlhf_jax.training.setup import Setup
from rlhf_jax.training.step import init_state, jitted, layout_of, make_train_step

PARAMETERS, OPTIMIZER, FROZEN, BATCH, OTHER = (
  "parameters",
  "optimizer",
  "frozen models",
  "batch",
  "other state",
)


class Program(NamedTuple):
  """One jitted function of an experiment and what it is called with."""

  name: str
  function: Callable  # jitted
  arguments: tuple  # shapes on the mesh
  holds: dict[str, Any]  # the trees among the arguments, by what they are for
  beside: dict[str, Any]  # trees that are on the devices meanwhile
  turns: float = 1  # of each of its loops of unknown length
  cache: Any = None  # of keys and values, which the program makes for itself


def programs(setup: Setup) -> list[Program]:
  """Of every stage that `setup.config` has. Raises ValueError for batches that do not divide over the mesh."""
  config, made = setup.config, []
  doing = stages.Doing(
    offline=lambda *args, **kwargs: _offline(made, *args, **kwargs),
    online=lambda *args, **kwargs: _online(made, *args, **kwargs),
    feedback=lambda setup, form, frozen: abstract.records(
      setup, form, abstract.width_of_answers(setup)
    ),
    reference_logps=lambda setup, frozen, wanted: (
      lambda example: np.zeros(len(example.tokens), np.float32)
    ),
  )

  def whole(weights):
    start = config.get("start", {})
    sft = lambda: stages.sft(setup._replace(pretrained=lambda: weights), doing)
    begun = sft() if "sft" in config["stages"] else weights
    started = lambda: begun
    rewards = costs = None
    if "reward_model" in config["stages"]:
      rewards = stages.reward_model(setup, started, doing)
    if "policy" in config["stages"]:
      rewards = _foreign(setup, started) if start.get("reward_model") else rewards
      costs = _foreign(setup, started) if start.get("cost_model") else None
      stages.policy(setup, started, rewards, costs, doing)
    return ()

  jax.eval_shape(whole, setup.pretrained())
  return made


def _foreign(setup: Setup, weights):
  """A reward model of another run, as this one would train it."""
  nothing = lambda setup, stage, algorithm, config, *rest, params, **kwargs: init_state(
    setup.key(stage), params(), algorithm, optimizer.make_optimizer(rest[1], 1), config
  )
  params = stages.reward_model(setup, weights, stages.TRAINING._replace(offline=nothing))
  return {**params, "base": setup.frozen(weights())} if setup.lora.rank else params


def _offline(
  made,
  setup,
  stage,
  algorithm,
  config,
  settings,
  optim,
  *,
  params,
  frozen,
  batches,
  members=None,
  finish=None,
):
  """In place of `offline.run`."""
  offline.assert_divides(setup, stage, settings)
  tx = optimizer.make_optimizer(optim, batches.steps)
  train_step = make_train_step(algorithm, tx, accumulate=settings.accumulate)
  if members:
    tx, train_step = members(tx, train_step)
  state = init_state(setup.key(stage), params(), algorithm, tx, config)
  batch = on_rows(setup, batches.at(0))
  made.append(_step(setup, stage, train_step, optim, state, frozen, batch, config))
  return state


def _online(made, setup, stage, module, config, settings, optim, *, weights, frozen):
  """In place of `online.run`."""
  online.assert_divides(setup, stage, module, config, settings)
  online.assert_groups(stage, config, settings)
  online.assert_critic(setup.config, stage, module, config, settings, optim)
  params = online.parameters(setup, stage, module, settings, weights, frozen["reward_model"])
  params = value_heads.added(setup, module, config, params)
  algorithm, tx, train_step = online.learner(setup, module, config, settings, optim)
  second = getattr(module, "SECOND", None)
  collect = jax.jit(online.make_collect(setup, **online.collected(module, config, settings)))
  rows = np.arange(settings.prompts * online.group_of(config)) % len(setup.task.prompts)
  asked = on_rows(setup, jax.eval_shape(lambda: online.questions(setup, rows, 0)))
  if not rewarding.asks_model(setup.config):
    frozen = {**frozen, "reward_model": None}
  shapes = lambda tree: on_mesh(setup, tree)
  mixed = {"mixture_coef": config.mixture_coef} if second == "mixture" else {}
  arguments = (shapes(params), shapes(frozen), *asked, setup.sampling)
  rollout, _ = jax.eval_shape(collect, *arguments, **mixed)
  refilled = refill.is_refilled(len(rows), setup.sampling)
  slots = setup.sampling.slots if refilled else len(rows)
  state = init_state(setup.key(stage), params, algorithm, tx, config)
  made.append(
    Program(
      "rollout",
      collect if not mixed else jax.jit(lambda *args: collect(*args, **mixed)),
      arguments,
      {PARAMETERS: arguments[0], FROZEN: arguments[1], BATCH: asked},
      {OPTIMIZER: _placed(setup, optim, state).opt_state},
      turns=refill.turns(len(rows), setup.sampling, sharding.data_shards(setup.mesh)),
      cache=jax.eval_shape(
        lambda: setup.model.init_cache(slots, asked[0].shape[1] + setup.sampling.max_new_tokens)
      ),
    )
  )
  if replay.size(config) > 1:
    algorithm, train_step = replay.remembering(algorithm, train_step, rollout, config.replay)
    state = init_state(setup.key(stage), params, algorithm, tx, config)
  made.append(
    _step(setup, stage, train_step, optim, state, frozen, on_rows(setup, rollout), config)
  )
  return params


def _step(setup: Setup, stage: str, train_step, optim, state, frozen, batch, config) -> Program:
  state, frozen = _placed(setup, optim, state), on_mesh(setup, frozen)
  rest = state.replace(params=None, opt_state=None)
  return Program(
    stage,
    jitted(train_step, jax.tree.map(lambda leaf: leaf.sharding, state)),
    (state, frozen, batch, config),
    {
      PARAMETERS: state.params,
      OPTIMIZER: state.opt_state,
      FROZEN: frozen,
      BATCH: batch,
      OTHER: rest,
    },
    {},
  )


def _placed(setup: Setup, optim, state):
  """The shapes of a state, where training has them."""
  state = _shapes(state)
  return jax.tree.map(_laid, state, layout_of(setup, optim, state))


def on_mesh(setup: Setup, tree):
  """The shapes of `tree`, each matrix laid out as in training."""
  shapes = _shapes(tree)
  return jax.tree.map(_laid, shapes, setup.layout(shapes))


def on_rows(setup: Setup, tree):
  """The shapes of a batch, its rows over the mesh's data axes."""
  layout = sharding.batch_sharding(setup.mesh)
  return jax.tree.map(lambda x: _laid(x, layout), _shapes(tree))


def _shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _laid(x, layout):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
