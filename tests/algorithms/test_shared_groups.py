"""A group's answers with their prompt once, rows packed into fewer, one pass for a batch of one update: what is learned stays the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sharding
from rlhf_jax.algorithms import a2c, grpo, online_dpo, ppo, ppo_lagrangian, raft
from rlhf_jax.models import heads, llama, policy, registry
from rlhf_jax.training import online, step
from rlhf_jax.types import Rollout, Sequences

V, D = 17, 8
N, G, P, R = 2, 3, 4, 5
B, T = N * G, P + R
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=12,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_positions=32,
    initializer_range=0.3,
  )
)
POLICY = policy.make_policy(MODEL, critic="shared", chunk=8)
SCORER = policy.make_scorer(MODEL)


@pytest.fixture(scope="module")
def params():
  keys = jax.random.split(jax.random.key(0), 3)
  return {
    "model": MODEL.init(keys[0]),
    "value_head": heads.init_head(keys[1], D, 0.5),
    "reward_head": heads.init_head(keys[2], D, 0.5),
  }


@pytest.fixture(scope="module")
def frozen():
  return {"base": {}, "reference": {"model": MODEL.init(jax.random.key(9))}}


@pytest.fixture(scope="module")
def rollout() -> Rollout:
  """Prompts of 4 and 2 tokens, three answers to each of 5, 1, 0, 3, 5 and 2."""
  rng = np.random.default_rng(1)
  prompts = np.repeat(rng.integers(0, V, (N, P)), G, axis=0)
  tokens = np.concatenate([prompts, rng.integers(0, V, (B, R))], axis=1)
  long = np.arange(T)[None] >= np.repeat([0, 2], G)[:, None]
  written = np.arange(R)[None] < np.asarray([5, 1, 0, 3, 5, 2])[:, None]
  response = np.pad(written, ((0, 0), (P, 0)))
  mask = np.where(np.arange(T)[None] < P, long, response)
  sequences = Sequences.from_mask(tokens, mask, response)
  scores = rng.normal(size=B)
  return Rollout(
    sequences=sequences.replace(asked=jnp.broadcast_to(jnp.arange(P, T)[None], (B, R))),
    logps=jnp.asarray(-rng.gamma(2.0, 1.0, (B, T)) * response, jnp.float32),
    rewards=jnp.asarray(scores[:, None] * (np.arange(T)[None] == P + 1), jnp.float32),
    truncated=jnp.asarray(written.all(axis=1)),
  )


def plain(rollout: Rollout) -> Rollout:
  return rollout.replace(sequences=rollout.sequences.replace(asked=None))


def assert_close(got, want, size=1.0):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * size), got, want
  )


@pytest.mark.parametrize("fork", [True, False])
def test_an_answer_among_others_to_its_prompt_is_as_likely_as_alone(params, rollout, fork):
  grouped = rollout.sequences.in_groups(G)
  grouped = grouped if fork else dataclasses.replace(grouped, fork=None)
  found = jax.jit(POLICY.evaluate)(params, {}, grouped, 0.7)
  alone = jax.jit(POLICY.evaluate)(params, {}, plain(rollout).sequences, 0.7)
  mask = rollout.sequences.response_mask
  flat = lambda x: np.asarray(x).reshape(B, T) * mask
  assert_close(jax.tree.map(flat, found), jax.tree.map(lambda x: x * mask, alone))


def test_scores_of_a_group_are_those_of_its_answers_alone(params, rollout):
  score = jax.jit(SCORER.score)
  grouped = score(params, {}, rollout.sequences.in_groups(G))
  assert_close(grouped.ravel(), score(params, {}, rollout.sequences))


def test_fewer_prompts_than_devices_are_answered_a_row_each(params, rollout):
  evaluate = lambda params, rows: POLICY.evaluate(params, {}, rows, 1.0).logps
  expected = jax.jit(evaluate)(params, rollout.sequences.in_groups(G))
  with jax.set_mesh(sharding.make_mesh(data=3)):
    assert not sharding.spreads(N) and sharding.spreads(B)
    got = jax.jit(evaluate)(params, rollout.sequences.in_groups(G))
  mask = rollout.sequences.response_mask.reshape(N, G, T)
  assert_close(got * mask, expected * mask)


@pytest.mark.parametrize(
  ("module", "config", "epochs"),
  [
    (grpo, grpo.Config(group=G, kl_in="reward", importance_level="token", entropy_coef=0.1), 1),
    (a2c, a2c.Config(truncation="mask"), 1),
    (grpo, grpo.Config(group=G, kl_in="loss", learning_rate=0.1), 2),
    (ppo, ppo.Config(whiten_advantages="minibatch", entropy_coef=0.1, learning_rate=0.1), 3),
    (ppo, ppo.Config(kl_in="loss", kl_estimator="exact", truncation="bootstrap"), 2),
    (ppo, ppo.Config(reward_at="after_last", stop_kl=1e-9, learning_rate=0.1), 3),
    (ppo_lagrangian, ppo_lagrangian.Config(cost_limit=0.1, multiplier=0.7), 2),
  ],
  ids=[
    "grpo",
    "a2c",
    "grpo twice",
    "ppo",
    "ppo with KL in its loss",
    "ppo that stops",
    "lagrangian",
  ],
)
def test_one_pass_teaches_what_two_do(params, frozen, rollout, module, config, epochs):
  algorithm, tx = module.make(POLICY), optax.trace(decay=0.0)

  def learned(algorithm, batch):
    state = step.init_state(jax.random.key(5), params, algorithm, tx, config)
    train_step = step.make_train_step(algorithm, tx, epochs=epochs)
    state, metrics = jax.jit(train_step)(state, frozen, batch, config)
    return state.opt_state.trace, {name: mean.value for name, mean in metrics.items()}

  if module is ppo_lagrangian:
    rollout = rollout.replace(costs=0.5 * rollout.rewards**2)
  twice, expected = learned(algorithm._replace(at_once=None), plain(rollout))
  size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(twice))
  assert size > 1e-3
  for batch in (rollout, online.shortened(rollout, 6, packs=True)):
    gradient, metrics = learned(algorithm, batch)
    assert_close(gradient, twice, size)
    assert_close(metrics, expected)
    assert metrics["rollout/mismatch"] > 0.1


def test_rows_are_packed_into_fewer_in_a_few_sizes(rollout):
  packed = online.shortened(rollout, 6, packs=True)  # 9, 5, 4, 5, 7 and 4 tokens
  assert packed.sequences.packing.rows == 4
  rows, at = packed.sequences.packed()
  segments = np.asarray(rows.segments)
  assert [len(set(row[row > 0])) for row in segments] == [1, 1, 2, 2]
  live = rollout.sequences.segments > 0
  for name in ("tokens", "positions", "response_mask"):
    there = getattr(rows, name).ravel()[at]
    np.testing.assert_array_equal(there[live], getattr(rollout.sequences, name)[live])
  assert (segments > 0).sum() == live.sum() == 34
  # Of 6 rows half are too few, and all are no gain; a prompt that is seen once leaves less to compute than packing.
  assert online.shortened(rollout, 2, packs=True).sequences.packing is None
  assert online.shortened(rollout, 6, G, packs=True).sequences.packing is None


@pytest.mark.parametrize(
  ("module", "config", "packs"),
  [
    (ppo, ppo.Config(), True),
    (grpo, grpo.Config(), True),
    (ppo, ppo.Config(truncation="bootstrap"), False),
    (ppo, ppo.Config(reward_at="after_last"), False),
    (raft, raft.Config(), False),
    (online_dpo, online_dpo.Config(), False),
  ],
)
def test_rows_are_packed_where_each_is_learned_from_as_it_is(module, config, packs):
  assert online.learns_from_rows(module, config) == packs


def test_packed_rows_are_as_likely_as_rows_alone_over_the_devices(params, rollout):
  few = jax.tree.map(lambda x: jnp.concatenate([x, x]), rollout)  # 12 rows into 8
  evaluate = jax.jit(lambda params, rows: POLICY.evaluate(params, {}, rows, 0.7))
  mask = few.sequences.response_mask
  expected = jax.tree.map(lambda x: x * mask, evaluate(params, plain(few).sequences))
  with jax.set_mesh(sharding.make_mesh(data=4)):
    packed = online.shortened(few, 6, packs=True).sequences
    assert packed.packing.rows == 8
    assert_close(jax.tree.map(lambda x: x * mask, evaluate(params, packed)), expected)


def test_columns_that_no_answer_reaches_are_left_out_in_a_few_sizes(rollout):
  rows = jnp.asarray([1, 2, 3, 5])  # answers of 1, 0, 3 and 2 tokens
  few = jax.tree.map(lambda x: x[rows], rollout)
  assert online.shortened(few, 1).sequences.tokens.shape == (4, T)
  assert online.shortened(rollout, 2).sequences.tokens.shape == (B, T)
  cut = online.shortened(few, 2)  # sizes 3 and 5
  assert cut.sequences.asked.shape == (4, 3)
  jax.tree.map(
    np.testing.assert_array_equal,
    cut,
    jax.tree.map(lambda x: x[:, : x.shape[1] - 2] if x.ndim == 2 else x, few),
  )


def test_pairs_of_what_was_written_share_their_prompt(rollout):
  one, other = (jax.tree.map(lambda x, i=i: x[i::2], rollout) for i in range(2))
  answers = lambda rows, scores: online_dpo.Answers(
    rows.sequences, jnp.asarray(scores), rows.truncated, rows.logps
  )
  pairs, _ = online_dpo.preferences(
    answers(one, [1.0, 0.0, 0.5]), answers(other, [0.0, 1.0, 0.5]), "hard"
  )
  apart = pairs.together.apart(pairs.together.rows.tokens)
  for side, rows in enumerate((pairs.chosen, pairs.rejected)):
    np.testing.assert_array_equal(apart[:, side, P:], rows.tokens[:, P:])
