"""Every algorithm raises a known reward on a tiny problem: the share of one token in the response."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import (
  a2c,
  alphapo,
  bco,
  cpo,
  dpo,
  dqn,
  grpo,
  ilql,
  kto,
  nash_md,
  online_dpo,
  orpo,
  pl_dpo,
  ppo,
  q_learning,
  raft,
  reinforce,
  reinforce_pp,
  remax,
  reward_model,
  rloo,
  sac,
  sarsa,
  sft,
  simpo,
  xpo,
)
from rlhf_jax.models import heads, llama, registry
from rlhf_jax.models.policy import make_policy, make_scorer
from rlhf_jax.rollout.generate import Sampling, generate
from rlhf_jax.training import online, replay, value_heads
from rlhf_jax.training.step import init_state, make_train_step
from rlhf_jax.types import LabelledBatch, PreferenceBatch, RankingBatch, Scorer, Sequences, Shared

V, D, B, P, N, GOOD = 7, 16, 32, 2, 6, 3
CONFIG = llama.LlamaConfig(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=24,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  max_positions=16,
  initializer_range=0.1,
)
MODEL = registry.language_model(CONFIG)
START = MODEL.init(jax.random.key(0))
PROMPTS = jnp.tile(jnp.asarray([[1, 2]], jnp.int32), (B, 1))
SAMPLING = Sampling(max_new_tokens=N)
write = jax.jit(
  lambda weights, key: generate(
    MODEL, weights, PROMPTS, jnp.ones((B, P)), jax.random.split(key, B), SAMPLING
  )
)


def share(sequences: Sequences | Shared) -> jax.Array:
  """The reward: how much of each response is the good token, float32[B]."""
  if isinstance(sequences, Shared):
    sequences = sequences.alone
  chosen = sequences.response_mask
  return jnp.sum((sequences.tokens == GOOD) * chosen, axis=-1) / jnp.sum(chosen, axis=-1)


def mean_reward(weights) -> float:
  return float(np.mean(share(write(weights, jax.random.key(99)).sequences)))


def trained(algorithm, config, params, frozen, batch_at, steps: int, **parts):
  tx = optax.scale_by_adam()
  train_step = make_train_step(algorithm, tx, **parts)
  if replay.size(config) > 1:
    rollout = jax.eval_shape(batch_at, params, 0)
    algorithm, train_step = replay.remembering(algorithm, train_step, rollout, config.replay)
  state = init_state(jax.random.key(1), params, algorithm, tx, config)
  train_step = jax.jit(train_step)
  for step in range(steps):
    state, _ = train_step(state, frozen, batch_at(state.params, step), config)
  return state.params


def random_pairs(step: int) -> PreferenceBatch:
  """Two answers of the untrained model to each prompt, the one with more good tokens preferred."""
  one, other = (
    write(START, jax.random.fold_in(jax.random.key(2 * step + i), 0)).sequences for i in range(2)
  )
  first = (share(one) >= share(other))[:, None]
  pick = lambda a, b, flip: jax.tree.map(lambda x, y: jnp.where(first ^ flip, x, y), a, b)
  return PreferenceBatch(
    chosen=pick(one, other, False),
    rejected=pick(one, other, True),
    preference=jnp.ones(B),
    margin=jnp.zeros(B),
  )


def by_sft():
  def batch_at(params, step):
    return random_pairs(step).chosen

  algorithm = sft.make(make_policy(MODEL))
  return trained(algorithm, sft.Config(1e-2), {"model": START}, {"base": {}}, batch_at, 60)["model"]


def random_marks(step: int) -> LabelledBatch:
  """The answers of `random_pairs`, better and worse ones in turn, each marked."""
  pairs = random_pairs(step)
  rows = np.arange(B) % 2 == 0
  take = lambda a, b: jax.tree.map(lambda x, y: jnp.where(rows[:, None], x, y), a, b)
  return LabelledBatch(
    answers=take(pairs.chosen, pairs.rejected),
    labels=jnp.asarray(rows[:, None], jnp.float32),
    mismatched=take(pairs.rejected, pairs.chosen),
  )


def random_rankings(step: int) -> RankingBatch:
  """Three answers to each prompt, by their share of good tokens; equal shares tie."""
  written = [write(START, jax.random.key(3 * step + i)).sequences for i in range(3)]
  shares = jnp.stack([share(rows) for rows in written], axis=1)
  ranks = 1 + jnp.sum(shares[:, None] > shares[:, :, None], axis=2)
  return RankingBatch(jax.tree.map(lambda *x: jnp.stack(x, axis=1), *written), ranks)


def offline(module, batch_at=random_pairs, steps=40, **options):
  frozen = {"base": {}, "reference": {"model": START}}
  config = module.Config(learning_rate=1e-2, **options)
  algorithm = module.make(make_policy(MODEL))
  batches = lambda params, step: batch_at(step)
  return trained(algorithm, config, {"model": START}, frozen, batches, steps)["model"]


def by_ppo(critic, **options):
  setup = SimpleNamespace(
    model=MODEL,
    decoding=lambda base, whole: whole,
    scorer=Scorer(lambda params, frozen, sequences: share(sequences)),
  )
  collect = jax.jit(online.make_collect(setup))
  value_head = heads.init_head(jax.random.key(3), D, 0.0)
  params = {"model": START, "value_head": value_head}
  if critic == "separate":
    params = {"model": START, "critic": {"model": START, "value_head": value_head}}
  frozen = {"base": {}, "reference": {"model": START}, "reward_model": {}}
  config = ppo.Config(learning_rate=1e-2, kl_coef=0.01, epochs=2, minibatches=2, **options)

  def batch_at(params, step):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), B)
    return collect(params, frozen, PROMPTS, jnp.ones((B, P)), keys, SAMPLING)[0]

  algorithm = ppo.make(make_policy(MODEL, critic=critic))
  return trained(algorithm, config, params, frozen, batch_at, 15, epochs=2, minibatches=2)["model"]


def by_a2c():
  setup = SimpleNamespace(
    model=MODEL,
    decoding=lambda base, whole: whole,
    scorer=Scorer(lambda params, frozen, sequences: share(sequences)),
  )
  collect = jax.jit(online.make_collect(setup))
  params = {"model": START, "value_head": heads.init_head(jax.random.key(3), D, 0.0)}
  frozen = {"base": {}, "reference": {"model": START}, "reward_model": {}}
  config = a2c.Config(learning_rate=1e-2, kl_coef=0.01)

  def batch_at(params, step):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), B)
    return collect(params, frozen, PROMPTS, jnp.ones((B, P)), keys, SAMPLING)[0]

  return trained(
    a2c.make(make_policy(MODEL, critic="shared")), config, params, frozen, batch_at, 30
  )["model"]


def by_ilql(steps=40):
  config = ilql.Config(learning_rate=1e-2, beta=30.0)
  setup = SimpleNamespace(model=MODEL, key=lambda purpose: jax.random.key(4))
  params = value_heads.added(setup, ilql, config, {"model": START})
  algorithm = ilql.make(make_policy(MODEL))

  def batch_at(params, step):
    answers = write(START, jax.random.key(step)).sequences
    return LabelledBatch(answers, share(answers)[:, None])

  return trained(algorithm, config, params, {"base": {}}, batch_at, steps)["model"]


def without_critic(module, steps=30, learning_rate=1e-2, **options):
  setup = SimpleNamespace(
    model=MODEL,
    decoding=lambda base, whole: whole,
    key=lambda purpose: jax.random.key(4),
    scorer=Scorer(lambda params, frozen, sequences: share(sequences)),
  )
  second = getattr(module, "SECOND", None)
  collect = jax.jit(online.make_collect(setup, second=second))
  frozen = {"base": {}, "reference": {"model": START}, "reward_model": {}}
  near = {"beta": 0.1} if hasattr(module.Config, "beta") else {"kl_coef": 0.01}
  near = {} if hasattr(module, "HEADS") else near  # for which it is α, among the options
  config = module.Config(learning_rate=learning_rate, max_new_tokens=N, **near, **options)
  start = value_heads.added(setup, module, config, {"model": START})
  mixed = {"mixture_coef": config.mixture_coef} if second == "mixture" else {}

  def batch_at(params, step):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), B)
    return collect(params, frozen, PROMPTS, jnp.ones((B, P)), keys, SAMPLING, **mixed)[0]

  algorithm, parts = module.make(make_policy(MODEL)), dict(epochs=config.epochs)
  return trained(algorithm, config, start, frozen, batch_at, steps, **parts)["model"]


def of_values(module, steps=40, **options):
  return without_critic(module, steps=steps, learning_rate=3e-3, **options)


DETAILS = dict(
  kl_in="loss",
  kl_estimator="exact",
  reward_at="after_last",
  scale_rewards="running",
  whiten_rewards="scale",
  whiten_advantages="minibatch",
  clip_eps_high=0.28,
  dual_clip=3.0,
  value_clip_eps=None,
  critic_warmup=2,
  stop_ratio=2.0,
)

# One-step targets carry an answer's score back a token at each update, so that these need more of them.
OF_VALUES = {
  "q_learning": lambda: of_values(q_learning, alpha=0.05, epochs=4, backup="soft"),
  # After 40 steps it earns anything from 0.12 to 1.0, as the last bits of its start have it.
  "sarsa": lambda: of_values(sarsa, steps=80, alpha=0.05, epochs=4, backup="expected"),
  "dqn": lambda: of_values(dqn, steps=80, alpha=0.05, epochs=2),
  "sac": lambda: of_values(sac, alpha=0.02, epochs=2),
}
WITHOUT_CRITIC = {
  "reinforce": lambda: without_critic(reinforce),
  "rloo": lambda: without_critic(rloo, group=4),
  "grpo": lambda: without_critic(grpo, group=4),
  "dr_grpo": lambda: without_critic(grpo, group=4, scale="none", aggregation="fixed_length"),
  "dapo": lambda: without_critic(grpo, group=4, aggregation="token", clip_eps_high=0.28, epochs=2),
  "gspo": lambda: without_critic(grpo, group=4, ratio="sequence", epochs=2),
  "cispo": lambda: without_critic(
    grpo, group=4, surrogate="cispo", aggregation="token", clip_eps=1.0, clip_eps_high=4.0
  ),
  "reinforce_pp": lambda: without_critic(reinforce_pp),
  "reinforce_pp, group's mean": lambda: without_critic(
    reinforce_pp, group=4, baseline="group_mean", kl_in="loss"
  ),
  "remax": lambda: without_critic(remax),
  "online_dpo": lambda: without_critic(online_dpo),
  "xpo": lambda: without_critic(xpo, alpha=1e-3),
  "nash_md": lambda: without_critic(nash_md, steps=60),
  "raft": lambda: without_critic(raft, group=4),
}
# With its own τ of 0.05 discopop goes downhill from the reference in the wrong direction (docs/preferences.md).
OTHERWISE = {"exo_pair": dict(label_smoothing=0.01), "discopop": dict(discopop_tau=1.0)}
OFFLINE = {
  **{
    f"dpo, {loss}": lambda loss=loss: offline(
      dpo, loss_type=loss, beta=0.1, **OTHERWISE.get(loss, {})
    )
    for loss in dpo.LOSSES
  },
  "dpo, forward KL": lambda: offline(dpo, beta=0.1, divergence="forward_kl"),
  "dpo, everything at once": lambda: offline(
    dpo, steps=60, beta=0.1, wpo=True, length_decay=0.5, nll_coef=0.1, sync_every=10
  ),
  "kto": lambda: offline(kto, random_marks, beta=0.3),
  "kto, apo_zero_unpaired": lambda: offline(
    kto, random_marks, beta=0.3, loss_type="apo_zero_unpaired"
  ),
  "bco": lambda: offline(bco, random_marks, beta=0.3),
  "cpo": lambda: offline(cpo, beta=0.3, nll_coef=0.1),
  "simpo": lambda: offline(simpo),
  "alphapo": lambda: offline(alphapo),
  "orpo": lambda: offline(orpo, steps=60, beta=2.0),
  "pl_dpo": lambda: offline(pl_dpo, random_rankings, beta=0.1),
}


@pytest.mark.parametrize(
  "learned, at_least",
  [
    pytest.param(
      by_sft, 0.21, id="sft"
    ),  # it imitates the better half of what it could write anyway
    *(pytest.param(learned, 0.25, id=name) for name, learned in OFFLINE.items()),
    pytest.param(by_a2c, 0.6, id="a2c"),
    *(pytest.param(learned, 0.6, id=name) for name, learned in WITHOUT_CRITIC.items()),
    *(pytest.param(learned, 0.4, id=name) for name, learned in OF_VALUES.items()),
    pytest.param(by_ilql, 0.4, id="ilql"),
    pytest.param(lambda: by_ppo("shared"), 0.6, id="ppo"),
    pytest.param(lambda: by_ppo("separate"), 0.6, id="ppo, separate critic"),
    pytest.param(lambda: by_ppo("separate", **DETAILS), 0.6, id="ppo, its details"),
  ],
)
def test_the_policy_earns_a_known_reward(learned, at_least):
  before = mean_reward(START)
  assert before < 0.2
  assert mean_reward(learned()) > at_least


def test_a_reward_model_orders_answers_it_has_not_seen():
  params = {"model": START, "reward_head": heads.init_head(jax.random.key(3), D, 0.1)}
  scorer = make_scorer(MODEL)
  batch_at = lambda params, step: random_pairs(step)
  config = reward_model.Config(learning_rate=1e-2)
  params = trained(reward_model.make(scorer), config, params, {"base": {}}, batch_at, 80)
  fresh = random_pairs(1_000)
  scores = [scorer.score(params, {"base": {}}, side) for side in (fresh.chosen, fresh.rejected)]
  differ = np.asarray(share(fresh.chosen) > share(fresh.rejected))
  right = np.asarray(scores[0] > scores[1])[differ]
  assert right.mean() > 0.9, right.mean()
