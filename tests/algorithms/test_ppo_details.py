"""Each published detail of PPO by hand or by identity; parity with the libraries is in `test_rl_parity.py`."""

import dataclasses

import bias_table
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_enumeration import table
from test_parity import TABLE_POLICY, ppo_terms
from test_policy_gradients_family import prefix_kl
from test_rl_parity import sequences

from rlhf_jax import types
from rlhf_jax.algorithms import ppo
from rlhf_jax.config import from_dict
from rlhf_jax.ops import kl, returns, stats
from rlhf_jax.training import options

PLAIN = dict(kl_coef=0.5, gae_lambda=1.0, whiten_advantages="none")
SCORES = (3.0, -1.0)
# A prompt of one token, answers of three and of one; the second ends, the first is cut where a test says so.
MASK = jnp.asarray([[0.0, 1, 1, 1], [0, 1, 0, 0]])
LOGPS = jnp.asarray([[9.0, -1.0, -2.0, -0.5], [9, -1.0, 9, 9]])
REF_LOGPS = jnp.asarray([[9.0, -1.5, -2.5, -0.25], [9, -3.0, 9, 9]])
VALUES = jnp.asarray([[9.0, 1.0, 2.0, 0.5, 4.0], [9, -1.0, 0.25, 9, 9]])
K1 = [0.5, 0.5, -0.25], [2.0]


def wide(x):
  return jnp.pad(x, ((0, 0), (0, 1)))


def annotated(scores=SCORES, truncated=(False, False), values=VALUES, extra=None, **options):
  """PPO's batch and metrics; the policy's tables have a column for the place after a full row."""
  config = from_dict(ppo.Config, PLAIN | options, where="ppo")
  longer = config.reward_at == "after_last" or config.truncation == "bootstrap"
  fit = wide if longer else lambda x: x
  rows = sequences(MASK)
  segments = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0]])
  rollout = types.Rollout(
    sequences=rows.replace(segments=segments, positions=jnp.cumsum(segments, axis=1) - 1),
    logps=LOGPS,
    rewards=returns.at_last(jnp.asarray(scores), MASK),
    truncated=jnp.asarray(truncated),
  )
  params = {"logps": fit(LOGPS), "values": values if longer else values[:, :-1]}
  frozen = {"reference": {"logps": fit(REF_LOGPS)}}
  algorithm = ppo.make(TABLE_POLICY)
  extra = algorithm.init_extra(params, config) if extra is None else extra
  batch, metrics = algorithm.annotate(params, frozen, rollout, config, extra)
  return batch, {name: float(metric.value) for name, metric in metrics.items()}


def of_tokens(array):
  """Of the tokens of both answers, as one list."""
  return np.asarray(array)[:, :4][np.asarray(MASK) > 0]


def rewards_of(**options):
  """Of each token: with values 0 and γ = λ = 0 they are the advantages."""
  options = dict(gamma=1e-30, gae_lambda=0.0) | options
  batch, _ = annotated(values=jnp.zeros_like(VALUES), **options)
  return of_tokens(batch.advantages)


# KL: estimator, place, clamp.


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_each_estimator_is_subtracted_from_the_reward_of_its_token(estimator):
  k1 = np.concatenate(K1)
  cost = {"k1": k1, "k2": k1**2 / 2, "k3": np.expm1(-k1) + k1}[estimator]
  expected = [0.0, 0.0, 3.0, -1.0] - 0.5 * cost
  np.testing.assert_allclose(rewards_of(kl_estimator=estimator), expected, rtol=1e-6)
  _, metrics = annotated(kl_estimator=estimator)
  np.testing.assert_allclose(metrics["policy/kl_penalty"], cost.sum() / 2, rtol=1e-6)


def test_a_clamp_bounds_what_a_token_is_charged():
  expected = [-0.15, -0.15, 3 + 0.5 * 0.25, -1 - 0.15]
  np.testing.assert_allclose(rewards_of(kl_clamp=0.3), expected, rtol=1e-6)


@pytest.mark.parametrize("estimator", kl.KL_ESTIMATORS)
@pytest.mark.parametrize("distance", [200.0, -200.0])
def test_a_clamped_estimate_has_no_gradient_where_it_would_overflow(estimator, distance):
  ref = jnp.asarray([-1.0])
  of = lambda logps: jnp.sum(kl.penalty(estimator, logps, ref, clamp=10.0))
  value, slope = jax.value_and_grad(of)(ref + distance)
  assert abs(float(value)) == 10.0 and float(slope[0]) == 0.0


def test_the_kl_in_the_loss_is_no_longer_in_the_reward():
  batch, metrics = annotated(kl_in="loss", kl_estimator="k2")
  np.testing.assert_allclose(of_tokens(batch.advantages + batch.old_values), [3, 3, 3, -1])
  assert metrics["rewards/total"] == metrics["rewards/shaped"] == 1.0
  config = ppo.Config(kl_in="loss", kl_estimator="k2")
  params = {"logps": LOGPS, "values": VALUES[:, :-1]}
  terms, _ = ppo.make(TABLE_POLICY).loss(params, {}, batch, config, {"kl_coef": 0.5})
  expected = 0.5 * np.mean(np.square(np.concatenate(K1)) / 2)
  np.testing.assert_allclose(terms["kl"].value, expected, rtol=1e-6)


def test_the_score_less_what_kl_costs_is_the_reported_total():
  for details in (dict(), dict(kl_estimator="k3", kl_clamp=0.1), dict(whiten_rewards="scale")):
    _, m = annotated(**details)
    total = m["rewards/shaped"] - m["policy/kl_coef"] * m["policy/kl_penalty"]
    np.testing.assert_allclose(m["rewards/total"], total, rtol=1e-6)


# Whose gradient each is, on 27 sequences. `bias_table.py` prints all of them.


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("float64")
def test_in_the_reward_k1_alone_is_the_kls_gradient():
  found = {e: bias_table.of_kl(e, "reward", **bias_table.PPO) for e in ("k1", "k2", "k3")}
  exact = bias_table.kl_gradient()
  close(found["k1"], exact)
  cosines = [bias_table.bias("", "", found[e], exact).cosine for e in ("k2", "k3")]
  np.testing.assert_allclose(cosines, [0.969, 0.878], atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_in_the_loss_each_is_the_gradient_of_another_kl():
  of_prefixes = lambda reverse: -jax.grad(prefix_kl)(table(2), table(3), reverse)
  expected = {
    "k1": np.zeros((13, 3)),
    "k2": of_prefixes(True),
    "k3": of_prefixes(False),
    "exact": of_prefixes(True),
  }
  for estimator, gradient in expected.items():
    close(bias_table.of_kl(estimator, "loss", **bias_table.PPO), gradient)


@pytest.mark.usefixtures("float64")
def test_exact_in_the_reward_and_in_the_loss_are_the_kls_gradient_together():
  both = [bias_table.of_kl("exact", place, **bias_table.PPO) for place in ("reward", "loss")]
  close(sum(both), bias_table.kl_gradient())


# The controller.


def adaptive(**options):
  return ppo.Config(**dict(kl_coef=0.2, kl_target=6.0, kl_horizon=100.0) | options)


def updated(config, metrics, extra=None):
  algorithm = ppo.make(TABLE_POLICY)
  extra = algorithm.init_extra({}, config) if extra is None else extra
  return algorithm.update_extra(extra, {}, metrics, config)


def test_the_controllers_error_is_clipped_where_asked():
  observed = {"policy/kl_k1": 12.0, "rollout/episodes": 10.0}
  got = [updated(adaptive(kl_error_clip=c), observed)["kl_coef"] for c in (0.2, 0.5, 2.0)]
  np.testing.assert_allclose(got, 0.2 * (1 + np.asarray([0.2, 0.5, 1.0]) * 0.1), rtol=1e-6)


def test_a_horizon_left_open_is_a_fiftieth_of_the_run():
  config = adaptive(kl_horizon=None).for_run("ppo", steps=200, episodes=64)
  assert config.kl_horizon == 200 * 64 / 50
  short = adaptive(kl_horizon=None).for_run("ppo", steps=5, episodes=64)
  assert short.kl_horizon == 0.4 * 64  # one step may halve the coefficient, not less
  with pytest.raises(ValueError, match="ppo.kl_horizon=10.0 is so short .* set it above 12.8"):
    adaptive(kl_horizon=10.0).for_run("ppo", steps=200, episodes=64)
  with pytest.raises(ValueError, match="kl_horizon=None depends on the run"):
    ppo.make(TABLE_POLICY).init_extra({}, adaptive(kl_horizon=None))
  plain = ppo.Config()
  assert plain.for_run("ppo", steps=5, episodes=64) is plain


# Where the score falls.


def test_a_score_after_the_last_token_by_hand():
  """Row 1 ends and has its score behind it; row 0 is cut, and has it on its last token."""
  batch, _ = annotated(reward_at="after_last", truncated=(True, False), kl_coef=0.0)
  np.testing.assert_array_equal(batch.end.weight, [0.0, 1.0])
  np.testing.assert_array_equal(batch.end.column, [4, 2])
  np.testing.assert_allclose(batch.end.old_values[1], 0.25)
  np.testing.assert_allclose(batch.end.returns[1], -1.0)
  # λ = 1: returns are what is still to come, and the place behind the end is a step of its own.
  np.testing.assert_allclose(of_tokens(batch.returns), [3, 3, 3, -1], rtol=1e-6)


def test_the_value_after_the_end_is_learned_with_the_others():
  batch, _ = annotated(reward_at="after_last", kl_coef=0.0)
  config = ppo.Config(value_coef=1.0, value_clip_eps=None)
  params = {"logps": wide(LOGPS), "values": VALUES}
  terms, metrics = ppo.make(TABLE_POLICY).loss(params, {}, batch, config, {})
  errors = np.asarray([1 - 3, 2 - 3, 0.5 - 3, 4 - 3, -1 - -1, 0.25 - -1])
  np.testing.assert_allclose(terms["value"].value, np.mean(errors**2) / 2, rtol=1e-6)
  assert float(terms["value"].count) == 6 and float(terms["policy"].count) == 4
  np.testing.assert_allclose(metrics["value/mean"].value, np.mean(errors + [3, 3, 3, 3, -1, -1]))


def test_a_bootstrapped_answer_is_followed_by_its_value():
  batch, _ = annotated(truncation="bootstrap", truncated=(True, False), kl_coef=0.0)
  np.testing.assert_allclose(of_tokens(batch.returns), [4, 4, 4, -1], rtol=1e-6)


# Scales.


def test_whitened_rewards_keep_their_mean_or_lose_it():
  plain = rewards_of()
  scaled = (plain - plain.mean()) / plain.std()
  kept = rewards_of(whiten_rewards="scale")
  np.testing.assert_allclose(kept, scaled + plain.mean(), rtol=1e-5)
  np.testing.assert_allclose(rewards_of(whiten_rewards="shift_and_scale"), scaled, rtol=1e-5)


def test_scores_are_divided_by_the_deviation_of_their_batch_before_they_are_clipped():
  got = rewards_of(kl_coef=0.0, scale_rewards="batch", reward_clip=1.25)
  np.testing.assert_allclose(got, [0, 0, 1.25, -0.5], rtol=1e-6)  # 3 and −1, of deviation 2
  equal = rewards_of(kl_coef=0.0, scale_rewards="batch", scores=(3.0, 3.0))
  np.testing.assert_allclose(equal, [0, 0, 3, 3])


def test_moments_of_two_batches_are_those_of_both():
  one, other = np.random.default_rng(0).normal(size=7), np.random.default_rng(1).normal(2, 3, 5)
  got = stats.Moments.none().and_of(stats.Moments.of(one)).and_of(stats.Moments.of(other))
  both = np.concatenate([one, other])
  np.testing.assert_allclose(got, [12, both.mean(), both.var()], rtol=1e-5)


def test_scores_are_divided_by_the_deviation_of_all_so_far():
  config = ppo.Config(**PLAIN | dict(kl_coef=0.0), scale_rewards="running")
  extra = {"kl_coef": jnp.zeros(()), "scores": stats.Moments.of(jnp.asarray([5.0, 5.0]))}
  options = dict(kl_coef=0.0, scale_rewards="running", extra=extra)
  std = np.std([5, 5, 3, -1])
  np.testing.assert_allclose(rewards_of(**options), np.asarray([0, 0, 3, -1]) / std, rtol=1e-6)
  _, metrics = annotated(**options)
  assert metrics["rewards/mean"] == 1.0  # as it was given
  after = updated(config, metrics | {"rollout/episodes": 2.0}, extra)
  np.testing.assert_allclose(after["scores"], [4, 3, std**2], rtol=1e-6)


def test_advantages_are_whitened_over_the_batch_over_an_update_or_not():
  plain = of_tokens(annotated()[0].advantages)
  batch, _ = annotated(whiten_advantages="batch")
  white = of_tokens(batch.advantages)
  np.testing.assert_allclose(white, (plain - plain.mean()) / plain.std(), rtol=1e-5)
  per_update = ppo.make(TABLE_POLICY).per_update
  assert per_update(batch, ppo.Config()) is batch
  late, _ = annotated(whiten_advantages="minibatch")
  np.testing.assert_array_equal(of_tokens(late.advantages), plain)
  config = ppo.Config(whiten_advantages="minibatch")
  poisoned = late.replace(advantages=jnp.where(MASK > 0, late.advantages, jnp.nan))
  got = per_update(jax.tree.map(lambda x: x[:1], poisoned), config).advantages[0, 1:]
  np.testing.assert_allclose(got, (plain[:3] - plain[:3].mean()) / plain[:3].std(), rtol=1e-5)


# The loss.


def test_a_value_without_a_clip_is_drawn_by_its_squared_error():
  batch, _ = annotated()
  params = {"logps": LOGPS, "values": VALUES[:, :-1] + 3.0}
  of = lambda **o: ppo_value(params, batch, **o)
  errors = of_tokens(params["values"] - batch.returns)
  np.testing.assert_allclose(of(value_clip_eps=None), np.mean(errors**2) / 2, rtol=1e-6)
  assert of(value_clip_eps=0.2) > of(value_clip_eps=None)


def ppo_value(params, batch, **options):
  config = ppo.Config(value_coef=1.0, **options)
  return ppo.make(TABLE_POLICY).loss(params, {}, batch, config, {})[0]["value"].value


@pytest.mark.parametrize("aggregation", ["token", "sequence", "sum", "fixed_length"])
def test_every_term_is_aggregated_alike(aggregation):
  """Terms of 1 a token: their mean over tokens, responses, or their sums of 3 and of 1 token."""
  x = {"mask": MASK, "returns": jnp.full_like(MASK, np.sqrt(2.0)), "advantages": -MASK}
  config = ppo.Config(
    aggregation=aggregation, value_clip_eps=None, value_coef=1.0, max_new_tokens=8
  )
  zeros = jnp.zeros_like(MASK)
  terms, _ = ppo_terms({"logps": zeros, "values": zeros}, x, config)
  expected = {"token": 1.0, "sequence": 1.0, "sum": 2.0, "fixed_length": 0.25}[aggregation]
  for term in terms.values():
    np.testing.assert_allclose(term.value, expected, rtol=1e-6)


def test_the_critic_alone_learns_while_it_warms_up():
  config = ppo.Config(critic_warmup=2, entropy_coef=0.1, kl_in="loss", kl_estimator="k3")
  config = dataclasses.replace(config, kl_target=1.0, kl_horizon=10.0)
  algorithm, extra = (
    ppo.make(TABLE_POLICY),
    {"kl_coef": jnp.ones(()), "iteration": jnp.zeros((), int)},
  )
  batch, _ = annotated(kl_in="loss", kl_estimator="k3")
  params = {"logps": LOGPS - 0.1, "values": VALUES[:, :-1] + 0.1}
  metrics = {"policy/kl_k1": 0.0, "rollout/episodes": 2.0}
  for iteration in range(4):

    def total(params, extra=extra):
      terms, _ = algorithm.loss(params, {}, batch, config, extra)
      return sum(term.value for term in terms.values())

    slope = jax.grad(total)(params)
    assert jnp.any(slope["values"] != 0)
    assert bool(jnp.all(slope["logps"] == 0)) == (iteration < 2)
    extra = algorithm.update_extra(extra, params, metrics, config)
    assert (float(extra["kl_coef"]) == 1.0) == (iteration < 2)


# Recipes by name.


def stage(**section):
  config = {"rollout": dict(temperature=0.7, max_new_tokens=24), "ppo": section}
  return options.stage(config, "ppo")


@pytest.mark.parametrize("name", ppo.PRESETS)
def test_a_recipe_sets_options_that_there_are_and_what_a_config_sets_stands(name):
  config, settings, optim = stage(preset=name, kl_coef=0.3, prompts=8, eps=1e-3)
  parts = [dataclasses.asdict(part) for part in (config, settings, optim)]
  found = {**parts[0], **parts[1], **parts[2]}
  expected = ppo.PRESETS[name] | dict(kl_coef=0.3, prompts=8, eps=1e-3, preset=name)
  assert {option: found[option] for option in expected} == expected
  assert config.temperature == 0.7 and config.max_new_tokens == 24


def test_no_recipe_is_the_defaults():
  assert stage() == stage(preset="none") and stage()[0].kl_coef == 0.05
  with pytest.raises(ValueError, match="ppo.preset='sff' is not one of 'none', 'lhpd', 'sffd'"):
    stage(preset="sff")


def test_openais_recipes_differ_where_their_papers_do():
  lhpd, sffd = (stage(preset=name) for name in ("lhpd", "sffd"))
  assert (lhpd[0].kl_target, lhpd[0].whiten_rewards, lhpd[0].reward_at) == (6.0, "scale", "last")
  assert (sffd[0].kl_target, sffd[0].whiten_rewards) == (None, "none")
  assert sffd[0].reward_at == "after_last"
  assert (lhpd[2].optimizer, lhpd[1].critic) == ("adam_tf", "shared")
  assert (sffd[2].optimizer, sffd[1].critic_init) == ("adamw", "reward_model")


def test_a_runs_length_gives_the_horizon_that_is_left_open():
  config, *_ = stage(kl_target=6.0, steps=200, prompts=16)
  assert config.kl_horizon == 200 * 16 / 50
  with pytest.raises(ValueError, match="ppo.kl_horizon=3.0 is so short .* set it above 3.2"):
    stage(kl_target=6.0, prompts=16, kl_horizon=3.0)


# What is refused.


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (dict(kl_in="loss"), "ppo.kl_estimator='k1' with kl_in='loss' has an expected gradient of 0"),
    (dict(kl_target=6.0, kl_coef=0.0), "ppo.kl_coef=0 stays 0 whatever ppo.kl_target=6.0"),
    (dict(kl_horizon=10.0), "ppo.kl_horizon=10.0 has no effect without kl_target"),
    (dict(truncation="mask"), "ppo.truncation='mask' is not one of 'score', 'fixed_score'"),
    (dict(whiten_advantages=True), "ppo.whiten_advantages=True should be a str"),
    (dict(dual_clip=1.0), "ppo.dual_clip=1.0 should be greater than 1"),
    (dict(importance_low=3.0), "ppo.importance_low=3.0 is not below"),
  ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(values, message):
  with pytest.raises(ValueError, match=message):
    from_dict(ppo.Config, values, where="ppo")
