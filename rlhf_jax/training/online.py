"""Learning from what the policy writes: prompts -> generate -> score -> annotate -> updates."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.models import decoder, heads, lora
from rlhf_jax.models.policy import make_policy
from rlhf_jax.ops import returns, stats
from rlhf_jax.rollout.generate import generate, left_pad
from rlhf_jax.training import loop, optimizer, sampling
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.setup import Setup, assert_multiple
from rlhf_jax.training.step import make_train_step, start
from rlhf_jax.types import Mean, Params, Rollout


@hyperparameters
class Settings:
  """How much is written a step, and who values it."""

  steps: int = option(30, at_least=1)
  prompts: int = option(64, at_least=1)  # a step
  accumulate: int = option(1, at_least=1)  # parts a minibatch is split into, to save memory
  checkpoint_every: int = option(5, at_least=1)
  critic: str = option("shared", choices=("shared", "separate"))
  logged_samples: int = option(4, at_least=0)  # a step, into samples.jsonl


def run(
  setup: Setup,
  stage: str,
  module,
  config,
  settings: Settings,
  optim: optimizer.Settings,
  *,
  weights: Params,
  trained: Params,
  frozen: Params,
) -> Params:
  """Trains `trained` over `frozen` with the algorithm `module`; returns the policy's parameters."""
  assert_learnable(setup)
  assert_divides(setup, stage, config, settings)
  algorithm = module.make(
    make_policy(setup.model, lora_scale=setup.lora.scale, critic=settings.critic)
  )
  params = _with_critic(setup, weights, trained, settings.critic)
  tx = optimizer.make_optimizer(optim, settings.steps * config.epochs * config.minibatches)
  step_function = make_train_step(
    algorithm,
    tx,
    epochs=config.epochs,
    minibatches=config.minibatches,
    accumulate=settings.accumulate,
  )
  state, train_step = start(setup, stage, algorithm, tx, config, params, step_function)
  collect = jax.jit(make_collect(setup))
  prompts = setup.task.prompts
  width = examples.width_of(prompts)
  order = setup.order(stage)
  rows_at = lambda step: examples.batch_rows(len(prompts), settings.prompts, order, step)

  def iterate(state, step):
    jax.block_until_ready(state.params)  # so that the clock below measures the rollout alone
    clock = time.perf_counter()
    tokens, mask = left_pad([prompts[i].tokens for i in rows_at(step)], width)
    keys = jax.random.split(jax.random.fold_in(setup.key("rollout"), step), len(tokens))
    placed = setup.place_batch((tokens, mask, keys))
    rollout, metrics = collect(state.params, frozen, *placed, setup.sampling)
    jax.block_until_ready(rollout)
    metrics["time/rollout"] = Mean(np.float32(time.perf_counter() - clock), np.float32(1))
    state, learned = train_step(state, frozen, rollout, config)

    def samples() -> list[dict]:
      few = jax.device_get(jax.tree.map(lambda x: x[: settings.logged_samples], rollout))
      pairs = zip(
        sampling.prompt_texts(setup, few.sequences),
        sampling.texts(setup, few.sequences),
        few.rewards.sum(axis=-1),
        strict=True,
      )
      return [{"prompt": p, "response": r, "reward": float(s)} for p, r, s in pairs]

    return state, {**metrics, **learned}, samples

  state = loop.run(
    state,
    iterate,
    stage=stage,
    steps=settings.steps,
    workdir=setup.workdir,
    checkpoints=Checkpoints(setup.workdir / "checkpoints" / stage),
    checkpoint_every=settings.checkpoint_every,
    row_ids=lambda step: [prompts[i].id for i in rows_at(step)],
  )
  return state.params


def make_collect(setup: Setup):
  """`(params, frozen, tokens, mask, keys, sampling) -> (Rollout, metrics)`, pure: write and score."""

  def collect(params, frozen, tokens, mask, keys, settings):
    whole = lora.attach(frozen["base"], params["model"], setup.lora.scale)
    weights = decoder.cast_for_decoding(whole, setup.dtype)
    written = generate(setup.model, weights, tokens, mask, keys, settings)
    scores = setup.scorer.score(frozen["reward_model"], frozen, written.sequences)
    chosen = written.sequences.response_mask
    rollout = Rollout(
      sequences=written.sequences,
      logps=written.logps,
      rewards=returns.at_last(scores, chosen),
      truncated=written.truncated,
    )
    metrics = {
      "rollout/length": stats.batch_mean(jnp.sum(chosen, axis=-1)),
      "rollout/truncated": stats.batch_mean(written.truncated.astype(jnp.float32)),
    }
    return rollout, metrics

  return collect


def assert_learnable(setup: Setup) -> None:
  """The learner must know the distribution that was sampled from."""
  if setup.sampling.truncates:
    raise ValueError(
      "rollout.top_k, top_p, min_p, greedy and min_new_tokens change the distribution that is "
      "sampled from, and the learner's ratios would be wrong; leave them off in training (rollout."
      "temperature is applied to sampler and learner alike)."
    )


def assert_divides(setup: Setup, stage: str, config, settings: Settings) -> None:
  """Raises ValueError unless an iteration's rows split evenly over devices, minibatches and their parts."""
  name, parts = f"{stage}.prompts", config.minibatches * settings.accumulate
  assert_multiple(name, settings.prompts, "minibatches x accumulate", parts)
  each = f"{name} / (minibatches x accumulate)" if parts > 1 else name
  sharding.assert_divides(each, settings.prompts // parts, setup.mesh)


def _with_critic(setup: Setup, weights: Params, trained: Params, critic: str) -> Params:
  head = heads.init_head(setup.key("value head"), setup.model.config.hidden_size, std=0.0)
  if critic == "shared":
    return {"model": trained, "value_head": head}
  _, trunk, _ = setup.starting_point(weights, "critic")
  return {"model": trained, "critic": {"model": trunk, "value_head": head}}
