"""The multiplier by hand, PPO where nothing is violated, and the limit where something is."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import ppo, ppo_lagrangian
from rlhf_jax.models import heads, llama, registry
from rlhf_jax.models.policy import as_probability, make_policy
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.training import online
from rlhf_jax.training.step import init_state, make_train_step
from rlhf_jax.types import Scorer

V, D, B, P, N, GOOD = 7, 16, 64, 2, 6, 3
MODEL = registry.language_model(
  llama.LlamaConfig(
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
)
PROMPTS = jnp.tile(jnp.asarray([[1, 2]], jnp.int32), (B, 1))
SAMPLING = Sampling(max_new_tokens=N)
# Two programs give the same bits where the compiler fuses alike in both (tests/conftest.py).
ALIKE = {"xla_cpu_use_fusion_emitters": True}


def share(params, frozen, sequences) -> jax.Array:
  """How much of each response is the good token, float32[B]."""
  chosen = sequences.response_mask
  return jnp.sum((sequences.tokens == GOOD) * chosen, axis=-1) / jnp.sum(chosen, axis=-1)


@functools.cache
def collect():
  """What is good is also what costs."""
  scorer = Scorer(share)
  whole = lambda base, params: params
  setup = SimpleNamespace(model=MODEL, decoding=whole, scorer=scorer, cost_scorer=scorer)
  return jax.jit(online.make_collect(setup), compiler_options=ALIKE)


@functools.cache
def learner(module):
  """(algorithm, optimizer, train step), compiled once for all numbers of its config."""
  algorithm, tx = module.make(make_policy(MODEL, critic="shared")), optax.scale_by_adam()
  step = make_train_step(algorithm, tx, epochs=2, minibatches=2)
  return algorithm, tx, jax.jit(step, compiler_options=ALIKE)


def run(module, steps: int, **options):
  """(the last state, each step's metrics) of a policy that starts at random."""
  start = MODEL.init(jax.random.key(0))
  params = {"model": start, "value_head": heads.init_head(jax.random.key(3), D, 0.0)}
  frozen = {"base": {}, "reference": {"model": start}, "reward_model": {}, "cost_model": {}}
  # Unwhitened: what is good is what costs, and near the limit all advantages should become small.
  given = dict(learning_rate=1e-2, kl_coef=0.01, epochs=2, minibatches=2, **options)
  config = module.Config(whiten_advantages="none", **given)
  algorithm, tx, train_step = learner(module)
  state = init_state(jax.random.key(1), params, algorithm, tx, config)
  logged = []
  for step in range(steps):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), B)
    rollout, _ = collect()(state.params, frozen, PROMPTS, jnp.ones((B, P)), keys, SAMPLING)
    state, metrics = train_step(state, frozen, rollout, config)
    logged.append({name: float(mean.value) for name, mean in metrics.items()})
  return state, logged


@pytest.mark.parametrize(
  ("update", "costs", "expected"),
  [
    # 0.5 + 2 (0.8 − 0.5), and 0.5 + 2 (0.3 − 0.5) = 0.1, and 0.5 + 2 (0.1 − 0.5) < 0
    ("projected", 0.8, 1.1),
    ("projected", 0.3, 0.1),
    ("projected", 0.1, 0.0),
    # 0.5 exp(2 · 0.5 (0.8 − 0.5)), and 0.5 exp(2 · 0.5 (0.3 − 0.5))
    ("log", 0.8, 0.5 * np.exp(0.3)),
    ("log", 0.3, 0.5 * np.exp(-0.2)),
  ],
)
def test_the_multiplier_follows_the_batchs_mean_cost(update, costs, expected):
  config = ppo_lagrangian.Config(
    cost_limit=0.5, multiplier=0.5, multiplier_rate=2.0, multiplier_update=update
  )
  algorithm = ppo_lagrangian.make(make_policy(MODEL, critic="shared"))
  extra = algorithm.update_extra(
    algorithm.init_extra({}, config), {}, {"costs/mean": jnp.asarray(costs)}, config
  )
  np.testing.assert_allclose(extra["multiplier"], expected, rtol=1e-6, atol=1e-7)


def test_the_score_is_reward_less_costs_at_their_price():
  rewards, costs = jnp.asarray([2.0, 1.0]), jnp.asarray([0.5, 0.0])
  got = ppo_lagrangian.combined(rewards, costs, jnp.asarray(3.0))
  np.testing.assert_allclose(got, [(2 - 1.5) / 4, 1 / 4])


def test_a_constraint_that_is_never_violated_leaves_ppo_as_it_is():
  plain, of_plain = run(ppo, 3)
  free, of_free = run(ppo_lagrangian, 3, cost_limit=1.0, multiplier=0.0)
  jax.tree.map(np.testing.assert_array_equal, free.params, plain.params)
  jax.tree.map(np.testing.assert_array_equal, free.opt_state, plain.opt_state)
  assert free.extra["multiplier"] == 0
  assert [m["rewards/mean"] for m in of_free] == [m["rewards/mean"] for m in of_plain]


def test_what_is_good_and_costs_is_done_up_to_the_limit():
  """Reward and cost are the same share of one token: the more the better, but not more than half."""
  _, free = run(ppo_lagrangian, 25, cost_limit=1.0, multiplier=0.0)
  # A faster multiplier swings about the limit.
  given = dict(cost_limit=0.5, multiplier=0.0, multiplier_rate=0.1)
  _, held = run(ppo_lagrangian, 80, **given)
  last = held[-20:]
  assert held[0]["costs/mean"] < 0.3
  assert np.mean([m["costs/mean"] for m in free[-5:]]) > 0.9
  assert abs(np.mean([m["costs/mean"] for m in last]) - 0.5) < 0.05
  # At the optimum (1 − λ) / (1 + λ) of the share is worth what its KL costs: λ is near 1.
  assert 0.5 < np.mean([m["costs/multiplier"] for m in last]) < 1.2


def test_a_cost_is_the_probability_of_the_likelihood_whatever_gain_and_bias():
  def score(params, frozen, sequences):
    members = params.get("members", {"head": params.get("head"), "normalization": 1.0})
    return jnp.mean(members["head"]) * params.get(
      "normalization", members.get("normalization", 1.0)
    )

  cost = as_probability(Scorer(score)).score
  one = {"head": jnp.log(3.0), "normalization": 7.0}
  several = {"members": {"head": jnp.log(jnp.asarray([9.0, 1.0])), "normalization": 5.0}}
  np.testing.assert_allclose([cost(p, {}, None) for p in (one, several)], [0.75, 0.75], rtol=1e-6)
