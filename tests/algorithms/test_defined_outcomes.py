"""What becomes of rewards and answers that go wrong, for every algorithm that learns from what it writes.

Fractional and negative rewards are learned from as they are; groups of equal rewards, empty answers and answers
that never end have a finite loss and gradient, and none at all where there is nothing to learn. Rewards that are not finite never
reach an algorithm (`training.online.assert_finite_rewards`, in test_policy_gradients_family.py and test_rewarding.py).
"""

import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_enumeration import POLICY, sequences, table

from rlhf_jax import algorithms, types
from rlhf_jax.training.setup import algorithm_module


class Row(NamedTuple):
  """Options that leave the score alone to be learned from, and whether equal scores then teach nothing."""

  options: dict
  equal_is_nothing: bool = True


GROUP = dict(group=2, kl_coef=0.0)
ROWS = {
  "a2c": Row(dict(kl_coef=0.0), equal_is_nothing=False),  # the critic's values differ
  "grpo": Row(GROUP),
  "nash_md": Row(dict(kl_coef=0.0)),
  "online_dpo": Row(dict(group=2), equal_is_nothing=False),  # a tie draws log-ratios together
  "ppo": Row(dict(kl_coef=0.0), equal_is_nothing=False),
  "ppo_lagrangian": Row(dict(kl_coef=0.0), equal_is_nothing=False),
  "raft": Row(GROUP),
  "reinforce": Row(dict(baseline="batch_mean", kl_coef=0.0)),
  "reinforce_pp": Row(dict(baseline="group_mean", **GROUP)),
  "remax": Row(dict(kl_coef=0.0)),
  "rloo": Row(GROUP),
  "xpo": Row({}, equal_is_nothing=False),
}
BY_VALUES = {
  "q_learning",
  "dqn",
  "sarsa",
  "sac",
}  # in test_q_learning.py: they have no policy table
FROZEN = {"reference": {"logits": table(3)}}
PARAMS = {"logits": table(2), "values": jnp.asarray(np.random.default_rng(4).normal(size=13))}
ANSWERS = np.asarray([[0, 1, 0], [2, 2, 2], [1, 0, 2], [0, 1, 1]])
every_algorithm = pytest.mark.parametrize("name", ROWS)


def rollout_of(scores, cut: bool = False) -> types.Rollout:
  rows, nothing = sequences(ANSWERS), jnp.zeros((4, 4))
  return types.Rollout(
    sequences=rows,
    logps=POLICY.evaluate(PARAMS, {}, rows, 1.0).logps,
    rewards=nothing.at[:, 3].set(jnp.asarray(scores, jnp.float32)),
    truncated=jnp.full(4, cut),
    costs=nothing,
    baseline=jnp.full(4, scores[0], jnp.float32),
  )


def gradient(name: str, rollout: types.Rollout, **options) -> np.ndarray:
  """Of the table of logits; asserts that loss, metrics and all gradients are finite."""
  module = algorithm_module(name)
  config = module.Config(**ROWS[name].options, **options)
  algorithm = module.make(POLICY)
  extra = algorithm.init_extra(PARAMS, config)
  batch, metrics = algorithm.annotate(PARAMS, FROZEN, rollout, config, extra)
  batch = algorithm.per_update(batch, config)

  def loss(params):
    terms, found = algorithm.loss(params, FROZEN, batch, config, extra)
    return sum(term.value for term in terms.values()), (terms, found)

  slope, found = jax.grad(loss, has_aux=True)(PARAMS)
  for leaf in jax.tree.leaves((slope, found, metrics)):
    assert np.isfinite(leaf).all()
  return np.asarray(slope["logits"])


def test_every_algorithm_on_rollouts_has_a_row():
  names = {module.name for module in pkgutil.iter_modules(algorithms.__path__)}
  online = {n for n in names if getattr(algorithm_module(n), "DATA", None) == "rollouts"}
  assert online - BY_VALUES == ROWS.keys()


@every_algorithm
def test_the_fraction_of_a_reward_counts(name):
  got = gradient(name, rollout_of([0.25, 0.75, 0.5, 0.125]))
  assert np.abs(got - gradient(name, rollout_of([0.0, 0.0, 0.0, 0.0]))).max() > 1e-3


@every_algorithm
def test_the_sign_of_a_reward_counts(name):
  got = gradient(name, rollout_of([-1.0, -2.0, -4.0, -3.0]))
  assert np.abs(got - gradient(name, rollout_of([1.0, 2.0, 4.0, 3.0]))).max() > 1e-3


@every_algorithm
def test_equal_rewards_teach_nothing_where_rewards_are_compared(name):
  got = gradient(name, rollout_of([0.1, 0.1, 0.1, 0.1]))
  if ROWS[name].equal_is_nothing:
    np.testing.assert_allclose(got, 0.0, atol=1e-7)


@every_algorithm
def test_an_empty_answer_teaches_nothing_of_itself_and_a_batch_of_them_nothing(name):
  rollout = rollout_of([0.5, -1.0, 2.0, 0.25])
  chosen = rollout.sequences.response_mask
  masked = lambda mask: rollout.replace(sequences=rollout.sequences.replace(response_mask=mask))
  gradient(name, masked(chosen.at[1].set(0.0)))
  np.testing.assert_array_equal(gradient(name, masked(jnp.zeros_like(chosen))), 0.0)


@every_algorithm
def test_answers_that_never_end_go_by_the_rule_for_cut_ones(name):
  scores = [0.5, -1.0, 2.0, 0.25]
  field = algorithm_module(name).Config.__dataclass_fields__["truncation"]
  # "bootstrap" asks the critic for one token more than the table has; it is in test_invariance.py.
  rules = set(field.metadata["choices"]) - {"bootstrap"}
  got = {rule: gradient(name, rollout_of(scores, cut=True), truncation=rule) for rule in rules}
  np.testing.assert_array_equal(got["score"], gradient(name, rollout_of(scores)))
  if "mask" in rules:
    np.testing.assert_array_equal(got["mask"], 0.0)
  if name in ("grpo", "ppo", "reinforce", "rloo"):  # others compare with what no rule is for
    expected = gradient(name, rollout_of([-1.0] * 4))
    np.testing.assert_allclose(got["fixed_score"], expected, atol=1e-7)
