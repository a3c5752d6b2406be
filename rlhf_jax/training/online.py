"""Learning from what the policy writes: prompts -> generate -> score -> annotate -> updates."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.models import heads
from rlhf_jax.models.mixture import mixture
from rlhf_jax.ops import returns, stats
from rlhf_jax.rollout import refill
from rlhf_jax.rollout.generate import left_pad
from rlhf_jax.sharding import processes
from rlhf_jax.training import (
  dynamic_sampling,
  loop,
  optimizer,
  parts,
  progress,
  replay,
  rewarding,
  sampling,
  value_heads,
)
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.setup import (
  Lora,
  Setup,
  Weights,
  assert_multiple,
  policy_of,
  reward_model_of,
)
from rlhf_jax.training.step import make_train_step, start
from rlhf_jax.types import Mean, Packing, Params, Reading, Rollout, Sequences

OTHERS = 1 << 20  # folded into a row's key for whoever answers beside the policy


@hyperparameters
class Settings:
  """How much is written a step, and who values it."""

  steps: int = option(30, at_least=1)
  prompts: int = option(64, at_least=1)  # a step
  accumulate: int = option(1, at_least=1)  # parts a minibatch is split into, to save memory
  # What is learned from is padded to one of so many sizes, each of which compiles once: the columns that no answer of a
  # step reaches are left out, and where an update is of all rows they are put into fewer.
  widths: int = option(8, at_least=1)
  checkpoint_every: int = option(5, at_least=1)
  critic: str = option("shared", choices=("shared", "separate"))
  # What a critic of its own starts from; InstructGPT's and SFFD's were reward models, head and all.
  critic_init: str = option("policy", choices=("policy", "reward_model"))
  value_head_std: float = option(0.0, at_least=0)  # of a fresh value head; OpenAI's began at 0
  logged_samples: int = option(4, at_least=0)  # a step, into samples.jsonl
  # Groups whose answers all score the same are replaced from up to so many further draws of a step's prompts.
  dynamic_sampling: int = option(0, at_least=0)
  evaluate_every: int = option(0, at_least=0)  # steps, the policy on held-out prompts; 0 is never


def run(
  setup: Setup,
  stage: str,
  module,
  config,
  settings: Settings,
  optim: optimizer.Settings,
  *,
  weights: Weights,
  frozen: Params,
) -> Params:
  """Trains a policy from `weights()` on, over `frozen`, with the algorithm `module`; returns its parameters."""
  assert_learnable(setup)
  assert_groups(stage, config, settings)
  assert_critic(setup.config, stage, module, config, settings, optim)
  progress.assert_possible(setup, stage, settings.evaluate_every)

  def params():
    made = parameters(setup, stage, module, settings, weights, frozen["reward_model"])
    return value_heads.added(setup, module, config, made)

  algorithm, tx, step_function = learner(setup, module, config, settings, optim)
  rewards = rewarding.Rewards(setup, stage)
  second = getattr(module, "SECOND", None)
  group = group_of(config)
  collect = jax.jit(make_collect(setup, **collected(module, config, settings)))
  prompts = setup.task.prompts
  if replay.size(config) > 1:
    first = questions(setup, rows_at(setup, stage, settings, 0, group), 0)
    one, _ = jax.eval_shape(collect, params(), rewards.frozen(frozen), *first, setup.sampling)
    algorithm, step_function = replay.remembering(algorithm, step_function, one, config.replay)
  state, train_step = start(setup, stage, algorithm, tx, optim, config, params, step_function)

  mixed = {"mixture_coef": config.mixture_coef} if second == "mixture" else {}
  remembers = replay.size(config) > 1  # rollouts of one size
  packs = config.minibatches * settings.accumulate == 1 and learns_from_rows(module, config)

  def short(rollout):
    return rollout if remembers else shortened(rollout, settings.widths, group, packs=packs)

  def draw(params, step, number):
    """The `number`-th batch of prompts of a step, answered and scored."""
    rows = rows_at(setup, stage, settings, step, group, number)
    placed = setup.place_batch(questions(setup, rows, step, number))
    rollout, metrics = collect(params, rewards.frozen(frozen), *placed, setup.sampling, **mixed)
    answered = np.repeat(rows, len(rollout.rewards) // len(rows))  # the prompt of every row
    ids = [prompts[i].id for i in answered]
    rollout, valued = rewards.add(rollout, ids, step + 1)
    jax.block_until_ready(rollout)
    assert_finite_rewards(rollout, ids, stage, step + 1)
    return rollout, {**metrics, **valued}

  def iterate(state, step):
    jax.block_until_ready(state.params)  # so that the clock below measures the rollout alone
    clock = time.perf_counter()
    if settings.dynamic_sampling:
      rollout, metrics = dynamic_sampling.fill(
        lambda number: draw(state.params, step, number),
        group=group,
        further=settings.dynamic_sampling,
      )
      rollout = setup.place_batch(rollout)
    else:
      rollout, metrics = draw(state.params, step, 0)
    metrics["time/rollout"] = Mean(np.float32(time.perf_counter() - clock), np.float32(1))
    state, learned = train_step(state, frozen, short(rollout), config)
    metrics |= learned
    if progress.due(settings.evaluate_every, step, settings.steps):
      updates = (step + 1) * config.epochs * config.minibatches
      metrics |= progress.measure(setup, state.params, frozen, updates=updates)

    def samples() -> list[dict]:
      few = processes.fetch(jax.tree.map(lambda x: x[: settings.logged_samples], rollout))
      pairs = zip(
        sampling.prompt_texts(setup, few.sequences),
        sampling.texts(setup, few.sequences),
        few.rewards.sum(axis=-1),
        strict=True,
      )
      return [{"prompt": p, "response": r, "reward": float(s)} for p, r, s in pairs]

    return state, metrics, samples

  with rewards:
    state = loop.run(
      state,
      iterate,
      stage=stage,
      steps=settings.steps,
      workdir=setup.workdir,
      checkpoints=Checkpoints(setup.workdir / "checkpoints" / stage),
      checkpoint_every=settings.checkpoint_every,
      row_ids=lambda step: [prompts[i].id for i in rows_at(setup, stage, settings, step)],
    )
  return state.params


def parameters(
  setup: Setup,
  stage: str,
  module,
  settings: Settings,
  weights: Weights,
  reward_model: Params | None = None,
) -> Params:
  """What the algorithm `module` trains from `weights()`: a policy, and its critic where there is one."""
  trained = setup.trained(weights, stage)
  if critic_free(module):
    return {"model": trained}
  if settings.critic_init == "reward_model":
    return {"model": trained, "critic": _critic_of(reward_model)}
  size, std = setup.model.config.hidden_size, settings.value_head_std
  head = heads.init_head(setup.key("value head"), size, std=std)
  if settings.critic == "shared":
    return {"model": trained, "value_head": head}
  trunk = setup.trained(weights, "critic")
  return {"model": trained, "critic": {"model": trunk, "value_head": head}}


def _critic_of(reward_model: Params) -> Params:
  """The trunk of a reward model, and its head after gain and bias, so that values start as rewards."""
  head, plain = reward_model["reward_head"], heads.unnormalized()
  gain, bias = (reward_model.get("normalization", plain)[name] for name in ("gain", "bias"))
  value_head = {"kernel": gain * head["kernel"], "bias": gain * head["bias"] + bias}
  return {"model": reward_model["model"], "value_head": value_head}


def learner(setup: Setup, module, config, settings: Settings, optim: optimizer.Settings):
  """(algorithm, optimizer, train step) of a run; none of them depends on its seed or on floats of `config`."""
  policy = policy_of(setup.config, setup.model, settings.critic)
  algorithm = parts.make_algorithm(module, policy, parts_of(config, settings))
  tx = optimizer.make_optimizer(optim, settings.steps * config.epochs * config.minibatches)
  step = make_train_step(
    algorithm,
    tx,
    epochs=config.epochs,
    minibatches=config.minibatches,
    accumulate=settings.accumulate,
  )
  return algorithm, tx, step


def rows_at(
  setup: Setup, stage: str, settings: Settings, step: int, group: int = 1, draw: int = 0
) -> np.ndarray:
  """Which of the task's prompts are answered in `step`, by the run's seed; the `group` answers to one are neighbours."""
  order = setup.order(_of_draw(stage, draw))
  rows = examples.batch_rows(len(setup.task.prompts), settings.prompts, order, step)
  return np.repeat(rows, group)


def questions(setup: Setup, rows: np.ndarray, step: int, draw: int = 0):
  """(tokens int32[B, P], mask float32[B, P], a key a row) of the prompts `rows`, by the run's seed."""
  prompts = setup.task.prompts
  tokens, mask = left_pad([prompts[i].tokens for i in rows], examples.width_of(prompts))
  key = jax.random.fold_in(setup.key(_of_draw("rollout", draw)), step)
  return tokens, mask, jax.random.split(key, len(tokens))


def _of_draw(purpose: str, draw: int) -> str:
  return f"{purpose}, draw {draw}" if draw else purpose


def make_collect(setup: Setup, *, second: str | None = None, group: int = 1, scored_in: int = 1):
  """`(params, frozen, tokens, mask, keys, sampling) -> (Rollout, metrics)`, pure: write, and score by the reward model.

  `second` says who else answers each prompt: "greedy" is the policy itself without chance, and `Rollout.baseline` is the
  score of that; "reference" is the reference policy, whose answer stands in the row after the policy's, and "mixture" the
  geometric mixture of both, `mixture_coef` of it the reference, which `collect` then takes too. Without a reward model
  all scores are 0, for others to add theirs. With a cost model there are costs. `group` adjacent rows have a prompt in common, which
  scorers then read once; they see the rows in `scored_in` parts.
  """
  beside = 2 if second in ("reference", "mixture") else 1

  def collect(params, frozen, tokens, mask, keys, settings, mixture_coef=None):
    def written_by(model, weights, keys, settings):
      found = refill.write(model, weights, tokens, mask, keys, settings)
      B, T = found.sequences.tokens.shape
      asked = jnp.broadcast_to(jnp.arange(tokens.shape[1], T)[None], (B, T - tokens.shape[1]))
      return found.replace(sequences=found.sequences.replace(asked=asked))

    def score(scorer, params, sequences, rows_a_prompt):
      if params is None:
        return jnp.zeros(len(sequences.tokens))
      if rows_a_prompt > 1:
        sequences = sequences.in_groups(rows_a_prompt)
      return parts.in_parts(scorer, scored_in).score(params, frozen, sequences).ravel()

    weights = setup.decoding(frozen["base"], params["model"])
    written = written_by(setup.model, weights, keys, settings)
    greedy = baseline = None
    if second == "greedy":
      without_chance = dataclasses.replace(settings, greedy=True)
      greedy = written_by(setup.model, weights, keys, without_chance).sequences
      baseline = score(setup.scorer, frozen["reward_model"], greedy, group)
    elif second in ("reference", "mixture"):
      model, others = setup.model, setup.decoding(frozen["base"], frozen["reference"]["model"])
      if second == "mixture":
        model = mixture(setup.model, mixture_coef)
        others = {"policy": weights, "reference": others}
      keys = jax.vmap(lambda key: jax.random.fold_in(key, OTHERS))(keys)
      other = written_by(model, others, keys, settings)
      written = jax.tree.map(_alternating, written, other)
    chosen = written.sequences.response_mask
    scores = score(setup.scorer, frozen["reward_model"], written.sequences, beside * group)
    costs = None
    if frozen.get("cost_model") is not None:
      costs = score(setup.cost_scorer, frozen["cost_model"], written.sequences, beside * group)
    rollout = Rollout(
      sequences=written.sequences,
      logps=written.logps,
      rewards=returns.at_last(scores, chosen),
      truncated=written.truncated,
      baseline=baseline,
      greedy=greedy,
      costs=None if costs is None else returns.at_last(costs, chosen),
    )
    metrics = {
      "rollout/length": stats.batch_mean(jnp.sum(chosen, axis=-1)),
      "rollout/truncated": stats.batch_mean(written.truncated.astype(jnp.float32)),
    }
    if costs is not None:
      metrics["costs/mean"] = stats.batch_mean(costs)
    return rollout, metrics

  return collect


def collected(module, config, settings: Settings) -> dict[str, Any]:
  """How the rollouts of the algorithm `module` are, for `make_collect`."""
  return {
    "second": getattr(module, "SECOND", None),
    "group": group_of(config),
    "scored_in": parts_of(config, settings),
  }


def shortened(rollout: Rollout, widths: int, group: int = 1, *, packs: bool = False) -> Rollout:
  """Without most of its padding, in one of few sizes.

  The longest answers have one of `widths` sizes, the last of them R. If it `packs`, models see the rows in one of as many numbers
  of rows, several in each, where that leaves less to compute; `group` rows have a prompt in common, which they else see once.
  """
  sequences = rollout.sequences
  B, T, R = *sequences.tokens.shape, sequences.asked.shape[1]
  whole, written = processes.fetch(_extents(sequences))
  size = examples.step_of(R, widths, int(written.max()))
  if packs:
    rows, starts = examples.first_fit(whole, T)
    shards = sharding.shards_in_scope()
    rows_needed = -(-int(rows.max() + 1) // shards)
    packed = shards * examples.step_of(B // shards, widths, rows_needed)
    if packed * T < examples.WORTHWHILE * B // group * (T - R + group * size):
      place = np.asarray(rows * T + starts, np.int32)
      return rollout.replace(sequences=sequences.replace(packing=Packing(place, packed)))
  return rollout if size == R else _without_last(rollout, R - size)


@jax.jit
def _extents(sequences: Sequences) -> tuple[jax.Array, jax.Array]:
  """How many tokens each row has, and how many of them were written, int32[B] each."""
  count = lambda x: jnp.sum(x > 0, axis=1)
  return count(sequences.segments), count(sequences.response_mask)


@functools.partial(jax.jit, static_argnums=1)
def _without_last(rollout: Rollout, columns: int) -> Rollout:
  cut = lambda x: x[:, :-columns] if x.ndim == 2 else x
  return jax.tree.map(cut, rollout)


def _alternating(own: jax.Array, other: jax.Array) -> jax.Array:
  """Rows of both in turn, [2B, ...]."""
  return jnp.stack([own, other], axis=1).reshape(-1, *own.shape[1:])


def assert_learnable(setup: Setup) -> None:
  """The learner must know the distribution that was sampled from."""
  if setup.sampling.truncates:
    raise ValueError(
      "rollout.top_k, top_p, min_p, greedy and min_new_tokens change the distribution that is "
      "sampled from, and the learner's ratios would be wrong; leave them off in training (rollout."
      "temperature is applied to sampler and learner alike)."
    )


def assert_divides(setup: Setup, stage: str, module, config, settings: Settings) -> None:
  """Raises ValueError unless an iteration's rows split evenly over devices, minibatches and their parts."""
  field, count = learned_of(module, config)
  pieces = config.minibatches * settings.accumulate
  name, rows = f"{stage}.prompts", settings.prompts * count
  if count > 1:
    name = f"{name} x {field}"
  assert_multiple(name, rows, "minibatches x accumulate", pieces)
  each = f"{name} / (minibatches x accumulate)" if pieces > 1 else name
  sharding.assert_divides(each, rows // pieces, setup.mesh)


def group_of(config) -> int:
  """How many answers to each prompt the algorithm compares; 1 where it compares none."""
  return getattr(config, "group", 1)


def learned_of(module, config) -> tuple[str, int]:
  """How many rows of each prompt are learned from, and the option that says so: its answers, the best ones or a pair."""
  if getattr(module, "PAIRED", False):
    return "", 1
  return ("keep", config.keep) if hasattr(config, "keep") else ("group", group_of(config))


def assert_groups(stage: str, config, settings: Settings) -> None:
  """Raises ValueError for dynamic sampling where no answers to one prompt are compared."""
  if settings.dynamic_sampling and group_of(config) == 1:
    raise ValueError(
      f"{stage}.dynamic_sampling={settings.dynamic_sampling} replaces groups of answers to one prompt, and {stage} "
      "has one answer to each; leave it out, or use an algorithm with a group, such as grpo."
    )


def parts_of(config, settings: Settings) -> int:
  """In how many parts models see a rollout that is not learned from yet: those of its updates, where one is split to save memory."""
  return config.minibatches * settings.accumulate if settings.accumulate > 1 else 1


def learns_from_rows(module, config) -> bool:
  """Whether every row that was written is learned from, as it is."""
  some = getattr(module, "PAIRED", False) or hasattr(config, "keep")
  return not some and not getattr(config, "looks_beyond", False)


def critic_free(module) -> bool:
  """Whether the algorithm learns without values."""
  return getattr(module, "CRITIC_FREE", False)


def assert_critic(
  whole: Mapping[str, Any],
  stage: str,
  module,
  config,
  settings: Settings,
  optim: optimizer.Settings,
) -> None:
  """Raises ValueError for a critic where there is none, or one that cannot start or learn as asked; `whole` is the run's config."""
  if critic_free(module):
    for name in ("critic", "critic_init", "value_head_std"):
      value = getattr(settings, name)
      if value != getattr(Settings, name):
        raise ValueError(
          f"{stage}.{name}={value!r} has no effect, {stage} learns without a critic; leave it out."
        )
    return
  if settings.critic_init == "reward_model":
    _assert_critic_from_reward_model(whole, stage, settings)
  warmup = getattr(config, "critic_warmup", 0)
  if warmup and settings.critic == "shared":
    raise ValueError(
      f"{stage}.critic_warmup={warmup} needs a critic of its own, the policy would move with a shared one; set "
      f"{stage}.critic='separate'."
    )
  if warmup and optim.weight_decay:
    raise ValueError(
      f"{stage}.critic_warmup={warmup} lets the critic alone learn, and {stage}.weight_decay={optim.weight_decay} would "
      "shrink the policy meanwhile; set one of them to 0."
    )


def _assert_critic_from_reward_model(whole: Mapping[str, Any], stage: str, settings: Settings):
  asked = f"{stage}.critic_init='reward_model'"
  if settings.critic != "separate":
    raise ValueError(f"{asked} needs a trunk of its own; set {stage}.critic='separate'.")
  if settings.value_head_std:
    raise ValueError(
      f"{asked} brings its head, and {stage}.value_head_std={settings.value_head_std} is for a fresh one; leave it out."
    )
  if not rewarding.asks_model(whole):
    raise ValueError(f"{asked} needs a reward model, and none is among rewards.terms.")
  made = reward_model_of(whole)
  if made.group.members > 1 and made.group.combine != "average" or made.reading != Reading():
    raise ValueError(
      f"{asked} needs one model whose one number at the last token is the reward, and {made.name} is an ensemble, says several "
      f"numbers or scores every token; set {stage}.critic_init='policy'."
    )
  if whole["lora"].get("rank", Lora.rank) and whole.get("start", {}).get("reward_model"):
    raise ValueError(
      f"{asked} cannot be with lora.rank > 0 and start.reward_model, whose adapters stand on weights of their own; train "
      f"the reward model in this run, or set {stage}.critic_init='policy'."
    )


def assert_finite_rewards(rollout: Rollout, ids: list, stage: str, step: int) -> None:
  """Raises NotFinite, with the prompts named, unless every answer's reward, and cost, is a finite number."""
  scores = jnp.sum(rollout.rewards, axis=-1)
  if rollout.baseline is not None:
    scores = scores + rollout.baseline
  if rollout.costs is not None:
    scores = scores + jnp.sum(rollout.costs, axis=-1)
  scores = processes.fetch(scores)
  bad = np.flatnonzero(~np.isfinite(scores))
  if len(bad):
    which = ", ".join(f"{scores[i]} for row {i}, prompt {ids[i]}" for i in bad[:8])
    raise loop.NotFinite(
      f"{len(bad)} of {len(scores)} rewards at step {step} of stage {stage} are not finite: {which}. Repair what "
      "scores these answers, and run again to go on from the last checkpoint."
    )
