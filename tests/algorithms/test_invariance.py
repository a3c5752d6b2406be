"""What must not change what is learned: padding, the order of rows, accumulation, devices, hidden values.

Every property holds for every algorithm in `CASES`; a new algorithm is a row there.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sharding, types
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
  ppo_lagrangian,
  raft,
  reinforce,
  reinforce_pp,
  remax,
  reward_from_classes,
  reward_from_marks,
  reward_from_rankings,
  reward_from_ratings,
  reward_from_tokens,
  reward_model,
  reward_odin,
  rloo,
  sac,
  sft,
  simpo,
  xpo,
)
from rlhf_jax.models import heads, llama, policy, q_heads, registry
from rlhf_jax.training import ensemble, parts, step

V, D, B = 17, 8, 4
CONFIG = llama.LlamaConfig(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=12,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  max_positions=32,
  initializer_range=0.3,
)
MODEL = registry.language_model(CONFIG)
TOLERANCE = 1e-5  # of the largest gradient: float32 sums in another order


class Layout(NamedTuple):
  """On which side rows are padded, and by how many columns more than the longest needs."""

  side: str
  extra: int


PLAIN = Layout("right", 0)


# Which tokens the policy chose: ragged, ended and cut responses, a tool's turn in the middle of one.
RESPONSES = ([0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1])
THIRD_RESPONSES = ([0, 0, 1], [0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1])
OTHER_RESPONSES = ([0, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])

ANSWERS = (RESPONSES, OTHER_RESPONSES, THIRD_RESPONSES)


def laid(rows, layout: Layout) -> np.ndarray:
  """Ragged rows as an array [B, T], zeros where they are padded."""
  T = 7 + layout.extra
  pads = [(0, T - len(row)) if layout.side == "right" else (T - len(row), 0) for row in rows]
  return np.stack([np.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])


def sequences(responses, layout: Layout, seed: int) -> types.Sequences:
  rng = np.random.default_rng(seed)
  tokens = [rng.integers(0, V, len(row)) for row in responses]
  mask = [np.ones(len(row), int) for row in responses]
  return types.Sequences.from_mask(
    laid(tokens, layout), laid(mask, layout), laid(responses, layout)
  )


def demonstrations(layout: Layout) -> types.Sequences:
  return sequences(RESPONSES, layout, seed=1)


def preferences(layout: Layout) -> types.PreferenceBatch:
  return types.PreferenceBatch(
    chosen=sequences(RESPONSES, layout, seed=1),
    rejected=sequences(OTHER_RESPONSES, layout, seed=2),
    preference=jnp.asarray([1.0, 0.8, 1.0, 0.5]),
    margin=jnp.asarray([0.0, 0.5, -0.25, 1.0]),
  )


def rankings(layout: Layout) -> types.RankingBatch:
  answers = [sequences(rows, layout, seed) for rows, seed in zip(ANSWERS, (1, 2, 4), strict=True)]
  return types.RankingBatch(
    answers=jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *answers),
    ranks=jnp.asarray([[1, 2, 3], [2, 2, 1], [0, 2, 1], [3, 1, 0]]),
  )


def marks(layout: Layout) -> types.LabelledBatch:
  return types.LabelledBatch(
    answers=sequences(RESPONSES, layout, seed=1),
    labels=jnp.asarray([[1.0], [0.0], [0.0], [1.0]]),
    mismatched=sequences(OTHER_RESPONSES, layout, seed=2),
  )


def ratings(layout: Layout) -> types.LabelledBatch:
  labels = [[1.0, 4.0, 2.0], [np.nan, 3.0, 0.5], [5.0, np.nan, np.nan], [2.0, 2.0, 3.0]]
  return marks(layout).replace(labels=jnp.asarray(labels), mismatched=None)


def classes(layout: Layout) -> types.LabelledBatch:
  labels = jnp.asarray([[2.0], [0.0], [np.nan], [1.0]])
  return marks(layout).replace(labels=labels, mismatched=None)


def token_labels(layout: Layout) -> types.LabelledBatch:
  rng = np.random.default_rng(5)
  said = [np.where(rng.random(len(row)) < 0.6, rng.random(len(row)), np.nan) for row in RESPONSES]
  labels = jnp.asarray(laid(said, layout), jnp.float32)
  return marks(layout).replace(labels=labels, mismatched=None)


def rollouts(layout: Layout) -> types.Rollout:
  rng = np.random.default_rng(3)
  answers = sequences(RESPONSES, layout, seed=1)
  logps = laid([-rng.gamma(2.0, 1.0, len(row)).astype(np.float32) for row in RESPONSES], layout)
  score = [np.zeros(len(row), np.float32) for row in RESPONSES]
  for row, value in zip(score, (1.5, -0.75, 0.25, -2.0), strict=True):
    row[-1] = value
  zeros = jnp.zeros_like(logps)
  return types.Rollout(
    sequences=answers,
    logps=logps * answers.response_mask,
    ref_logps=zeros,
    values=zeros,
    rewards=jnp.asarray(laid(score, layout)),
    truncated=jnp.asarray([True, False, False, True]),
    bootstrap=jnp.zeros(B),
    baseline=jnp.asarray([0.5, -0.5, 1.0, 0.0]),
  )


def costed(layout: Layout) -> types.Rollout:
  written = rollouts(layout)
  score = [
    [*[0.0] * (len(row) - 1), cost]
    for row, cost in zip(RESPONSES, (0.9, 0.1, 0.4, 0.6), strict=True)
  ]
  return written.replace(costs=jnp.asarray(laid(score, layout), jnp.float32))


def twice(layout: Layout) -> types.Rollout:
  """The rollouts, and as many again with other tokens: four prompts, two answers to each in adjacent rows."""
  first = rollouts(layout)
  other = sequences(RESPONSES, layout, seed=6)
  second = first.replace(sequences=other, rewards=-0.5 * first.rewards)
  return jax.tree.map(lambda *x: jnp.concatenate(x), first, second)


def params_of(seed: int, **kinds) -> dict:
  keys = jax.random.split(jax.random.key(seed), 1 + len(kinds))
  made = {
    name: heads.init_head(key, D, 0.5)
    for (name, _), key in zip(kinds.items(), keys[1:], strict=True)
  }
  return {"model": MODEL.init(keys[0]), **made}


POLICY = policy.make_policy(MODEL, critic="shared", chunk=8)
SEPARATE = policy.make_policy(MODEL, critic="separate", chunk=8)
SCORER = policy.make_scorer(MODEL)
FROZEN = {"base": {}, "reference": params_of(9)}
ACTOR = params_of(0, value_head=True)
OTHER_ACTOR = params_of(7)
HEADS = [{"reward_head": heads.init_head(jax.random.key(m), D, 0.5)} for m in range(3)]
CUTPOINTS = {"first": jnp.float32(-1.0), "log_gaps": jnp.asarray([0.5])}
# Two passes over the batch, so that the second has ratios other than one.
PPO = dict(learning_rate=0.05, epochs=2, entropy_coef=0.01, kl_target=1.0, kl_horizon=10_000.0)


def several(outputs: int) -> dict:
  """A reward model whose head says several numbers."""
  head = heads.init_head(jax.random.key(2), D, 0.5, outputs=outputs)
  return {**params_of(1), "reward_head": head}


CRITIC_FREE = dict(learning_rate=0.02, epochs=2, entropy_coef=0.01, kl_coef=0.1)


def with_q(params: dict, count: int, scale: float | None) -> dict:
  """`params` with Q heads that say something: of the policy, moved by `scale`, or beside it."""
  fresh = q_heads.init_q_heads(jax.random.key(6), D, V, count)
  for i, head in enumerate(fresh.values()):
    head["out"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(i), (D, V))
  if scale is None:
    return {**params, "q_heads": fresh}
  return {**params, "model": {**params["model"], "q_heads": q_heads.acting(fresh, scale)}}


VALUES = dict(learning_rate=0.02, epochs=2, alpha=0.5)


class Case(NamedTuple):
  make: Any  # Policy | Scorer -> Algorithm
  config: Any
  params: dict
  batch: Any  # Layout -> batch
  model: Any = POLICY
  roles: bool = False  # whether two rows of a pair are by different writers, whose order matters

  @property
  def algorithm(self) -> types.Algorithm:
    return self.make(self.model)


CASES = {
  "sft": Case(sft.make, sft.Config(), {"model": ACTOR["model"]}, demonstrations),
  "reward_model": Case(
    reward_model.make, reward_model.Config(), params_of(1, reward_head=True), preferences, SCORER
  ),
  "reward_model, Rao-Kupper": Case(
    reward_model.make,
    reward_model.Config(ties="rao_kupper", margin=True, label_smoothing=0.1, centering=0.01),
    {**params_of(1, reward_head=True), "link": {"log_threshold": jnp.float32(-0.5)}},
    preferences,
    SCORER,
  ),
  "reward_model, Davidson": Case(
    reward_model.make,
    reward_model.Config(ties="davidson"),
    {**params_of(1, reward_head=True), "link": {"log_nu": jnp.float32(0.3)}},
    preferences,
    SCORER,
  ),
  "reward_model, heads on one trunk": Case(
    lambda scorer: ensemble.on_one_trunk(reward_model.make(scorer), "reward_model"),
    reward_model.Config(),
    {"model": params_of(1)["model"], "members": ensemble.stacked(HEADS)},
    preferences,
    SCORER,
  ),
  "reward_odin": Case(
    reward_odin.make, reward_odin.Config(label_smoothing=0.1), several(2), preferences, SCORER
  ),
  "reward_from_rankings": Case(
    reward_from_rankings.make,
    reward_from_rankings.Config(),
    params_of(1, reward_head=True),
    rankings,
    SCORER,
  ),
  "reward_from_rankings, Breslow": Case(
    reward_from_rankings.make,
    reward_from_rankings.Config(ties="breslow", unranked="ignored"),
    params_of(1, reward_head=True),
    rankings,
    SCORER,
  ),
  "reward_from_rankings, top one": Case(
    reward_from_rankings.make,
    reward_from_rankings.Config(loss="top_one"),
    params_of(1, reward_head=True),
    rankings,
    SCORER,
  ),
  "reward_from_ratings": Case(
    reward_from_ratings.make, reward_from_ratings.Config(), several(3), ratings, SCORER
  ),
  "reward_from_ratings, Huber": Case(
    reward_from_ratings.make, reward_from_ratings.Config(loss="huber"), several(3), ratings, SCORER
  ),
  "reward_from_classes": Case(
    reward_from_classes.make,
    reward_from_classes.Config(),
    {**params_of(1, reward_head=True), "link": CUTPOINTS},
    classes,
    SCORER,
  ),
  "reward_from_marks": Case(
    reward_from_marks.make,
    reward_from_marks.Config(),
    params_of(1, reward_head=True),
    marks,
    SCORER,
  ),
  "reward_from_tokens": Case(
    reward_from_tokens.make,
    reward_from_tokens.Config(),
    params_of(1, reward_head=True),
    token_labels,
    SCORER,
  ),
  "dpo": Case(dpo.make, dpo.Config(label_smoothing=0.1), ACTOR, preferences),
  "dpo, averaged": Case(
    dpo.make, dpo.Config(loss_type="ipo", average_logps=True), ACTOR, preferences
  ),
  "dpo, weighted": Case(
    dpo.make,
    dpo.Config(wpo=True, length_decay=0.5, nll_coef=0.3, margin=True, divergence="alpha"),
    ACTOR,
    preferences,
  ),
  "dpo, aot": Case(dpo.make, dpo.Config(loss_type="aot"), ACTOR, preferences),
  "dpo, bco_pair": Case(dpo.make, dpo.Config(loss_type="bco_pair"), ACTOR, preferences),
  "dpo, synced reference": Case(
    dpo.make, dpo.Config(loss_type="apo_down", sync_every=1), OTHER_ACTOR, preferences
  ),
  "kto": Case(kto.make, kto.Config(beta=0.5), ACTOR, marks),
  "bco": Case(bco.make, bco.Config(beta=0.5), ACTOR, marks),
  "cpo": Case(cpo.make, cpo.Config(label_smoothing=0.1), ACTOR, preferences),
  "simpo": Case(simpo.make, simpo.Config(), ACTOR, preferences),
  "alphapo": Case(alphapo.make, alphapo.Config(), ACTOR, preferences),
  "orpo": Case(orpo.make, orpo.Config(), ACTOR, preferences),
  "pl_dpo": Case(pl_dpo.make, pl_dpo.Config(), ACTOR, rankings),
  "ppo": Case(ppo.make, ppo.Config(**PPO), ACTOR, rollouts),
  "ppo, separate critic, bootstrap": Case(
    ppo.make,
    ppo.Config(truncation="bootstrap", **PPO),
    {"model": ACTOR["model"], "critic": params_of(3, value_head=True)},
    rollouts,
    SEPARATE,
  ),
  "ppo, its details": Case(
    ppo.make,
    ppo.Config(
      kl_in="loss",
      kl_estimator="exact",
      kl_clamp=0.5,
      reward_at="after_last",
      truncation="bootstrap",
      scale_rewards="running",
      whiten_rewards="scale",
      whiten_advantages="minibatch",
      aggregation="sequence",
      clip_eps_high=0.28,
      dual_clip=3.0,
      value_clip_eps=None,
      min_tokens=4,
      **PPO,
    ),
    ACTOR,
    rollouts,
  ),
  "ppo_lagrangian": Case(
    ppo_lagrangian.make, ppo_lagrangian.Config(learning_rate=0.05, epochs=2), ACTOR, costed
  ),
  "a2c": Case(a2c.make, a2c.Config(importance_level="token", **CRITIC_FREE), ACTOR, rollouts),
  "grpo, weighted KL": Case(
    grpo.make,
    grpo.Config(group=2, kl_weighted=True, aggregation="sum", **CRITIC_FREE),
    OTHER_ACTOR,
    rollouts,
  ),
  "reinforce": Case(
    reinforce.make, reinforce.Config(baseline="running_mean", **CRITIC_FREE), OTHER_ACTOR, rollouts
  ),
  "rloo": Case(rloo.make, rloo.Config(truncation="penalty", **CRITIC_FREE), OTHER_ACTOR, rollouts),
  "grpo": Case(grpo.make, grpo.Config(group=2, **CRITIC_FREE), OTHER_ACTOR, rollouts),
  "grpo, dapo": Case(
    grpo.make,
    grpo.Config(
      group=2,
      scale="batch_std",
      aggregation="token",
      clip_eps_high=0.28,
      dual_clip=3.0,
      truncation="mask",
      max_new_tokens=6,
      overlong_cache=3,
      **CRITIC_FREE,
    ),
    OTHER_ACTOR,
    rollouts,
  ),
  "grpo, gspo": Case(
    grpo.make,
    grpo.Config(
      group=2,
      ratio="sequence",
      scale="none",
      kl_in="reward",
      importance_level="sequence",
      importance_mode="mask",
      importance_high=9.0,
      **CRITIC_FREE,
    ),
    OTHER_ACTOR,
    rollouts,
  ),
  "grpo, cispo": Case(
    grpo.make,
    grpo.Config(
      group=2, surrogate="cispo", aggregation="fixed_length", kl_estimator="k2", **CRITIC_FREE
    ),
    OTHER_ACTOR,
    rollouts,
  ),
  "reinforce_pp": Case(
    reinforce_pp.make, reinforce_pp.Config(**CRITIC_FREE), OTHER_ACTOR, rollouts
  ),
  "reinforce_pp, group's mean": Case(
    reinforce_pp.make,
    reinforce_pp.Config(group=2, baseline="group_mean", kl_in="loss", **CRITIC_FREE),
    OTHER_ACTOR,
    rollouts,
  ),
  "ilql": Case(ilql.make, ilql.Config(beta=2.0, awac_beta=0.5), with_q(ACTOR, 2, 2.0), ratings),
  # With all that q_learning and sarsa have, and a target network.
  "dqn": Case(
    dqn.make,
    dqn.Config(target_every=1, backup="soft", td_lambda=0.5, truncation="mask", **VALUES),
    with_q(OTHER_ACTOR, 1, 2.0),
    rollouts,
  ),
  "sac": Case(
    sac.make,
    sac.Config(kl_target=2.0, td_lambda=0.5, **VALUES),
    with_q(OTHER_ACTOR, 2, None),
    rollouts,
  ),
  "remax": Case(remax.make, remax.Config(**CRITIC_FREE), OTHER_ACTOR, rollouts),
  "online_dpo": Case(
    online_dpo.make,
    online_dpo.Config(learning_rate=0.02, epochs=2, wpo=True, nll_coef=0.2),
    OTHER_ACTOR,
    twice,
  ),
  "xpo": Case(
    xpo.make, xpo.Config(learning_rate=0.02, epochs=2, alpha=0.1), OTHER_ACTOR, twice, roles=True
  ),
  "nash_md": Case(
    nash_md.make, nash_md.Config(kl_in="loss", **CRITIC_FREE), OTHER_ACTOR, twice, roles=True
  ),
  "raft": Case(raft.make, raft.Config(group=2, **CRITIC_FREE), OTHER_ACTOR, twice),
}


@pytest.fixture(scope="module", params=CASES)
def name(request):
  """An algorithm, through all tests before the next; its programs are dropped behind it, or memory maps run out."""
  yield request.param
  train_step.cache_clear()
  plainly.cache_clear()


@functools.cache
def train_step(name: str, accumulate: int = 1, packed: bool = False):
  case = CASES[name]
  model = packing(case.model) if packed else case.model
  return jax.jit(
    step.make_train_step(
      parts.make_algorithm(case, model, accumulate),
      optax.trace(decay=0.0),  # plain gradient descent that remembers its last gradient
      epochs=getattr(case.config, "epochs", 1),
      accumulate=accumulate,
    ),
  )


def initial(name: str):
  case = CASES[name]
  return step.init_state(
    jax.random.key(5), case.params, case.algorithm, optax.trace(decay=0.0), case.config
  )


def learned(name: str, batch, accumulate: int = 1, packed: bool = False):
  """The last gradient, the metrics and the algorithm's own state after one step."""
  run = train_step(name, accumulate, packed)
  state, metrics = run(initial(name), FROZEN, batch, CASES[name].config)
  values = {key: metric.value for key, metric in metrics.items()}
  return jax.device_get((state.opt_state.trace, values, state.extra))


@functools.cache
def plainly(name: str):
  return learned(name, CASES[name].batch(PLAIN))


def assert_same(got, expected):
  """Gradients to `TOLERANCE` of the largest one; metrics to a little more, they are sums of unlike signs."""
  size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
  assert np.isfinite(size) and size > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * size),
    got[0],
    expected[0],
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got[1:], expected[1:]
  )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
  assert_same(learned(name, CASES[name].batch(Layout(side, 3))), plainly(name))


def test_the_order_of_rows_changes_nothing(name):
  # Groups of answers to one prompt, here pairs of rows, stay together.
  batch = CASES[name].batch(PLAIN)
  pairs = np.arange(len(jax.tree.leaves(batch)[0])).reshape(-1, 2)[::-1]
  rows = (pairs if CASES[name].roles else pairs[:, ::-1]).ravel()
  batch = jax.tree.map(lambda x: x[rows], batch)
  assert_same(learned(name, batch), plainly(name))


@pytest.mark.parametrize(("accumulate", "devices"), [(2, 2), (4, 1)])
def test_neither_accumulation_nor_devices_change_anything(name, accumulate, devices):
  mesh = sharding.make_mesh(data=devices)
  batch = jax.device_put(CASES[name].batch(PLAIN), sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    assert_same(learned(name, batch, accumulate), plainly(name))


def everywhere(change, batch):
  """`change` applied to all `Sequences` of a batch, however deep."""
  rows = lambda x: isinstance(x, types.Sequences)
  return jax.tree.map(lambda x: change(x) if rows(x) else x, batch, is_leaf=rows)


def test_what_stands_in_the_padding_changes_nothing(name):
  def garbage(rows: types.Sequences):
    padding = rows.segments == 0
    return rows.replace(
      tokens=jnp.where(padding, 5, rows.tokens), positions=jnp.where(padding, 9, rows.positions)
    )

  batch = CASES[name].batch(Layout("left", 3))
  assert_same(learned(name, everywhere(garbage, batch)), plainly(name))


def two_to_a_row(rows: types.Sequences) -> types.Sequences:
  """The second half of the rows beside the first, as segments of their own."""
  half = len(rows.tokens) // 2
  beside = lambda x: jnp.concatenate([x[:half], x[half:]], axis=1)
  later = jnp.where(rows.segments > 0, rows.segments + 1, 0)
  segments = jnp.concatenate([rows.segments[:half], later[half:]], axis=1)
  return jax.tree.map(beside, rows).replace(segments=segments)


def packing(policy: types.Policy) -> types.Policy:
  """The policy, but that it reads two examples in every row."""

  def unpacked(stats):
    return jax.tree.map(lambda x: jnp.concatenate(jnp.split(x, 2, axis=1)), stats)

  return types.Policy(
    lambda p, f, rows, t: unpacked(policy.evaluate(p, f, two_to_a_row(rows), t)),
    lambda p, q, f, rows, t: unpacked(policy.compare(p, q, f, two_to_a_row(rows), t)),
    lambda look, trees, f, rows, t=1.0: unpacked(
      policy.over_vocabulary(look, trees, f, two_to_a_row(rows), t)
    ),
  )


def test_packing_changes_nothing(name):
  if not isinstance(CASES[name].model, types.Policy):
    pytest.skip("a reward model reads a row at its last token, so it takes an example a row")
  assert_same(learned(name, CASES[name].batch(PLAIN), packed=True), plainly(name))


def test_what_may_end_the_updates_of_a_batch_is_measured(name):
  case = CASES[name]
  if not hasattr(case.config, "stop_kl"):
    pytest.skip("has no rule that ends updates")
  state = initial(name)

  def measured(batch):
    batch, _ = case.algorithm.annotate(state.params, FROZEN, batch, case.config, state.extra)
    return case.algorithm.loss(state.params, FROZEN, batch, case.config, state.extra)[1]

  assert set(step.STOP_RULES.values()) <= jax.eval_shape(measured, case.batch(PLAIN)).keys()


# The log-probabilities of a batch, each with the sequences that it belongs to.
BELONGS = {
  "ref_chosen_logps": "chosen",
  "ref_rejected_logps": "rejected",
  "ref_logps": "answers",
  "ref_mismatched_logps": "mismatched",
  "labels": "answers",
}


def poisoned(batch, value):
  """Every number a token of the batch set to `value` where no token was chosen."""
  if not hasattr(batch, "__dataclass_fields__") or isinstance(batch, types.Sequences):
    return batch
  fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}

  def poison(name, x):
    rows = fields.get(BELONGS.get(name, "sequences"))
    if rows is None or not hasattr(x, "dtype") or x.dtype != jnp.float32:
      return poisoned(x, value)
    mask = rows.response_mask
    return jnp.where(mask > 0, x, value) if x.shape == mask.shape else x

  return batch.replace(**{name: poison(name, x) for name, x in fields.items()})


def test_numbers_outside_the_response_reach_neither_loss_nor_gradient(name):
  case = CASES[name]
  state = initial(name)

  @jax.jit
  def with_poison(batch, value):
    batch, metrics = case.algorithm.annotate(
      state.params, FROZEN, poisoned(batch, value), case.config, state.extra
    )

    def total(params):
      terms, metrics = case.algorithm.loss(
        params, FROZEN, poisoned(batch, value), case.config, state.extra
      )
      return sum(term.value for term in terms.values()), {k: m.value for k, m in metrics.items()}

    # Away from the parameters that made the batch, so that ratios are not all one.
    return metrics, jax.grad(total, has_aux=True)(jax.tree.map(lambda x: 1.05 * x, state.params))

  clean = with_poison(case.batch(PLAIN), 0.0)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(clean))
  for value in (1e9, -1e9, np.nan):
    got = with_poison(case.batch(PLAIN), value)
    jax.tree.map(np.testing.assert_array_equal, got, clean)
