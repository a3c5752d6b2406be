"""What becomes of rewards and answers that go wrong, for every algorithm that learns from what it writes.

Fractional and negative rewards are learned from as they are; groups of equal rewards, empty answers and answers
that never end have a finite loss and gradient, and none at all where there is nothing to learn. Rewards that are not finite never
reach an algorithm (`training.online.assert_finite_rewards`, in test_policy_gradients_family.py and test_rewarding.py).
"""

import functools
import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_enumeration import POLICY as WITHOUT_Q
from test_enumeration import sequences, table
from test_value_based import over_vocabulary

from rlhf_jax import algorithms, types
from rlhf_jax.training.setup import algorithm_module


class Row(NamedTuple):
  """Options that leave the score alone to be learned from, and whether equal scores then teach nothing."""

  options: dict
  equal_is_nothing: bool = True


GROUP = dict(group=2, kl_coef=0.0)
ROWS = {
  "a2c": Row(dict(kl_coef=0.0), equal_is_nothing=False),  # the critic's values differ
  "dqn": Row({}, equal_is_nothing=False),  # as do Q's of tokens
  "grpo": Row(GROUP),
  "nash_md": Row(dict(kl_coef=0.0)),
  "online_dpo": Row(dict(group=2), equal_is_nothing=False),  # a tie draws log-ratios together
  "ppo": Row(dict(kl_coef=0.0), equal_is_nothing=False),
  "ppo_lagrangian": Row(dict(kl_coef=0.0), equal_is_nothing=False),
  "q_learning": Row({}, equal_is_nothing=False),
  "raft": Row(GROUP),
  "reinforce": Row(dict(baseline="batch_mean", kl_coef=0.0)),
  "reinforce_pp": Row(dict(baseline="group_mean", **GROUP)),
  "remax": Row(dict(kl_coef=0.0)),
  "rloo": Row(GROUP),
  "sac": Row({}, equal_is_nothing=False),
  "sarsa": Row({}, equal_is_nothing=False),
  "xpo": Row({}, equal_is_nothing=False),
}
FROZEN = {"reference": {"logits": table(3)}}
POLICY = WITHOUT_Q._replace(over_vocabulary=over_vocabulary)
RANDOM = np.random.default_rng(4)
PARAMS = {
  "logits": table(2),
  "values": jnp.asarray(RANDOM.normal(size=13)),
  "q": jnp.asarray(RANDOM.normal(size=(2, 13, 3))),
}
ANSWERS = np.asarray([[0, 1, 0], [2, 2, 2], [1, 0, 2], [0, 1, 1]])
every_algorithm = pytest.mark.parametrize("name", ROWS)
SOME, EQUAL = (0.25, 0.75, -0.5, 0.125), (0.1, 0.1, 0.1, 0.1)


@functools.cache
def gradient(name: str, scores=SOME, *, empty=(), cut=False, **options) -> np.ndarray:
  """Of the tables of logits and of Q, [3, 13, 3]; asserts that loss, metrics and all gradients are finite.

  `empty` rows have no token, and `cut` answers do not end by themselves.
  """
  module = algorithm_module(name)
  config = module.Config(**ROWS[name].options, **options)
  algorithm = module.make(POLICY)
  rows, nothing = sequences(ANSWERS), jnp.zeros((4, 4))
  rows = rows.replace(response_mask=rows.response_mask.at[np.asarray(empty, int)].set(0.0))
  rollout = types.Rollout(
    sequences=rows,
    logps=POLICY.evaluate(PARAMS, {}, rows, 1.0).logps,
    rewards=nothing.at[:, 3].set(jnp.asarray(scores)),
    truncated=jnp.full(4, cut),
    costs=nothing,
    baseline=jnp.full(4, scores[0]),
  )
  extra = algorithm.init_extra(PARAMS, config)
  batch, metrics = algorithm.annotate(PARAMS, FROZEN, rollout, config, extra)
  batch = algorithm.per_update(batch, config)

  def loss(params):
    terms, found = algorithm.loss(params, FROZEN, batch, config, extra)
    return sum(term.value for term in terms.values()), (terms, found)

  slope, found = jax.grad(loss, has_aux=True)(PARAMS)
  for leaf in jax.tree.leaves((slope, found, metrics)):
    assert np.isfinite(leaf).all()
  return np.concatenate([slope["logits"][None], slope["q"]])


def test_every_algorithm_on_rollouts_has_a_row():
  names = {module.name for module in pkgutil.iter_modules(algorithms.__path__)}
  assert {n for n in names if algorithm_module(n).DATA == "rollouts"} == ROWS.keys()


@every_algorithm
def test_fraction_and_sign_of_a_reward_count(name):
  got = gradient(name)
  for others in (EQUAL, tuple(-score for score in SOME)):
    assert np.abs(got - gradient(name, others)).max() > 1e-3


@every_algorithm
def test_equal_rewards_teach_nothing_where_rewards_are_compared(name):
  got = gradient(name, EQUAL)
  if ROWS[name].equal_is_nothing:
    np.testing.assert_allclose(got, 0.0, atol=1e-7)


@every_algorithm
def test_an_empty_answer_leaves_the_others_a_finite_gradient_and_a_batch_of_them_has_none(name):
  assert np.abs(gradient(name, empty=(1,))).max() > 1e-3
  np.testing.assert_array_equal(gradient(name, empty=(0, 1, 2, 3)), 0.0)


@every_algorithm
def test_answers_that_never_end_go_by_the_rule_for_cut_ones(name):
  field = algorithm_module(name).Config.__dataclass_fields__["truncation"]
  # "bootstrap" asks the critic for one token more than the table has; it is in test_invariance.py.
  rules = set(field.metadata["choices"]) - {"bootstrap"}
  got = {rule: gradient(name, cut=True, truncation=rule) for rule in sorted(rules)}
  np.testing.assert_array_equal(got["score"], gradient(name))
  if "mask" in rules:
    np.testing.assert_array_equal(got["mask"], 0.0)
  if name in ("grpo", "ppo", "reinforce", "rloo"):  # others compare with what no rule is for
    expected = gradient(name, (-1.0, -1.0, -1.0, -1.0))
    np.testing.assert_allclose(got["fixed_score"], expected, atol=1e-7)
