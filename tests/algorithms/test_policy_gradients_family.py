"""REINFORCE and the relatives of PPO without a critic: by hand, by identity, and exactly on 27 sequences."""

import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_enumeration as enumeration
from test_enumeration import BETA, POLICY, SCORES, log_probability, sequences, table

from rlhf_jax import types
from rlhf_jax.algorithms import a2c, grpo, ppo, reinforce, reinforce_pp, remax, rloo
from rlhf_jax.cli import main
from rlhf_jax.config import from_dict
from rlhf_jax.models import heads, llama, policy, registry
from rlhf_jax.ops import groups, kl, policy_gradients
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.training import loop, online, optimizer, options, step

FAMILY = {m.__name__.split(".")[-1]: m for m in (grpo, reinforce, reinforce_pp, remax, rloo)}
GROUPED = {"grpo": {}, "rloo": {}, "reinforce_pp": dict(group=2, baseline="group_mean")}
every_algorithm = pytest.mark.parametrize("name", FAMILY)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# Groups and advantages by hand.


def test_leave_one_out_by_hand():
  got = groups.less_the_others(jnp.arange(1.0, 7.0), 3)
  np.testing.assert_allclose(got, [-1.5, 0.0, 1.5, -1.5, 0.0, 1.5], rtol=1e-12)


def test_group_statistics_by_hand():
  scores = jnp.asarray([0.0, 4.0, 5.0, 5.0, -1.0, -3.0])
  np.testing.assert_allclose(groups.centred(scores, 2), [-2, 2, 0, 0, 1, -1], rtol=1e-12)
  np.testing.assert_allclose(groups.std(scores, 2) ** 2, [8, 8, 0, 0, 2, 2], rtol=1e-12)
  np.testing.assert_array_equal(groups.without_variance(scores, 2), [0, 0, 1, 1, 0, 0])


def test_equal_scores_that_no_binary_number_holds_leave_no_advantage():
  scores = jnp.full(7, 0.1, jnp.float32)
  assert jnp.any(scores - jnp.sum(scores) / 7 != 0)  # what rounding would leave
  for function in (groups.centred, groups.less_the_others, groups.std):
    np.testing.assert_array_equal(function(scores, 7), np.zeros(7))


def seen(scores, lengths=None, kl_a_token=0.0, learned=None, baseline=None) -> reinforce.Seen:
  """Answers of up to four tokens after a prompt of one."""
  lengths = np.full(len(scores), 3) if lengths is None else np.asarray(lengths)
  columns = np.arange(5)[None]
  chosen = jnp.asarray((columns > 0) & (columns <= lengths[:, None]), float)
  rollout = SimpleNamespace(baseline=baseline, truncated=jnp.zeros(len(scores), bool))
  return reinforce.Seen(
    scores=jnp.asarray(scores, float),
    logps=jnp.full(chosen.shape, -1.0),
    ref_logps=jnp.full(chosen.shape, -1.0 - kl_a_token),
    chosen=chosen,
    learned=chosen if learned is None else chosen * jnp.asarray(learned, float)[:, None],
    rollout=rollout,
  )


NO_EXTRA = {"sum": jnp.zeros(()), "weight": jnp.zeros(())}


def advantages(function, config, answers, extra=NO_EXTRA):
  """Of each row's first token; asserts that an answer's tokens share it, and others have 0."""
  got, metrics = function(answers, config, extra)
  np.testing.assert_allclose(got, got[:, 1:2] * answers.chosen, rtol=1e-12, atol=1e-12)
  return got[:, 1], metrics


@pytest.mark.parametrize(
  ("baseline", "expected"),
  [("none", [0.75, 2.75]), ("batch_mean", [-1.0, 1.0]), ("running_mean", [0.25, 2.25])],
)
def test_reinforce_advantages_by_hand(baseline, expected):
  # KL 0.5 a token, 3 and 1 tokens, β = 1/2: R = (1.5 − 0.75, 3 − 0.25); the running mean is 2/4.
  config = reinforce.Config(baseline=baseline, kl_coef=0.5)
  extra = {"sum": jnp.asarray(2.0), "weight": jnp.asarray(4.0)}
  got, _ = advantages(reinforce.reinforce_advantages, config, seen([1.5, 3.0], [3, 1], 0.5), extra)
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_running_baseline_is_a_mean_of_the_batches_from_the_first_on():
  algorithm = reinforce.make(POLICY)
  config = reinforce.Config(baseline="running_mean", baseline_decay=0.5)
  extra = algorithm.init_extra({}, config)
  for total, expected in ((8.0, 8.0), (2.0, 4.0)):  # (½ · 8 + 2) / 1½
    extra = algorithm.update_extra(extra, {}, {"rewards/total": total}, config)
    np.testing.assert_allclose(extra["sum"] / extra["weight"], expected, rtol=1e-12)


def test_rloo_advantages_by_hand():
  config = rloo.Config(group=3, kl_coef=0.0)
  got, _ = advantages(rloo.rloo_advantages, config, seen(range(1, 7)))
  np.testing.assert_allclose(got, [-1.5, 0, 1.5, -1.5, 0, 1.5], rtol=1e-12)
  # With β = 1 and KL 1 a token, an answer's length is subtracted.
  config = rloo.Config(group=2, kl_coef=1.0)
  got, _ = advantages(rloo.rloo_advantages, config, seen([3.0, 3.0], [1, 4], 1.0))
  np.testing.assert_allclose(got, [3.0, -3.0], rtol=1e-12)
  config = rloo.Config(group=2, kl_coef=0.0, normalize_advantages=True)
  got, _ = advantages(rloo.rloo_advantages, config, seen([1.0, 3.0, 0.0, 0.0]))
  np.testing.assert_allclose(got, np.array([-2, 2, 0, 0]) / (np.sqrt(8 / 3) + 1e-4), rtol=1e-12)


@pytest.mark.parametrize(
  ("scale", "divisor"),
  [
    ("group_std", np.repeat([np.sqrt(2.0), np.sqrt(8.0)], 2) + 1e-4),
    ("batch_std", np.std([1, 3, -2, 2], ddof=1) + 1e-4),
    ("none", 1.0),
  ],
)
def test_grpo_advantages_by_hand(scale, divisor):
  config = grpo.Config(group=2, scale=scale)
  got, metrics = advantages(grpo.grpo_advantages, config, seen([1, 3, -2, 2], kl_a_token=9.0))
  np.testing.assert_allclose(got, np.array([-1, 1, -2, 2]) / divisor, rtol=1e-12)
  np.testing.assert_allclose(metrics["group/zero_variance"].value, 0.0)


def test_overlong_answers_lose_up_to_one_by_hand():
  got = grpo.overlong_penalty(jnp.asarray([5.0, 6, 7, 8, 10, 12]), longest=10, cache=4)
  np.testing.assert_allclose(got, [0, 0, -0.25, -0.5, -1, -1], rtol=1e-12)
  config = grpo.Config(group=2, scale="none", max_new_tokens=4, overlong_cache=2)
  got, _ = advantages(grpo.grpo_advantages, config, seen([0.0, 0.0], [2, 4]))
  np.testing.assert_allclose(got, [0.5, -0.5], rtol=1e-12)


def test_reinforce_pp_advantages_by_hand():
  # Rewards (−½, −½, 1½) and (3½): to come (½, 1, 1½) and 3½, of mean 13/8.
  config = reinforce_pp.Config(kl_coef=0.5)
  got, _ = reinforce_pp.reinforce_pp_advantages(seen([2.0, 4.0], [3, 1], 1.0), config, {})
  to_come = np.array([0.5, 1.0, 1.5, 3.5])
  white = (to_come - to_come.mean()) / to_come.std()
  np.testing.assert_allclose(got, [[0, *white[:3], 0], [0, white[3], 0, 0, 0]], rtol=1e-6)


def test_reinforce_pp_takes_the_groups_mean_away_before_it_normalises():
  config = reinforce_pp.Config(group=2, baseline="group_mean", kl_in="loss")
  answers = seen([1.0, 3.0, 10.0, 16.0], [1, 1, 1, 1], kl_a_token=5.0)
  got, _ = advantages(reinforce_pp.reinforce_pp_advantages, config, answers)
  np.testing.assert_allclose(got, np.array([-1, 1, -3, 3]) / np.sqrt(5.0), rtol=1e-6)


def test_remax_advantages_by_hand():
  # score − greedy = 2, less β = ½ of the KL to come: of 3, 2 and 1 tokens.
  config = remax.Config(kl_coef=0.5)
  answers = seen([3.0], kl_a_token=1.0, baseline=jnp.asarray([1.0]))
  got, metrics = remax.remax_advantages(answers, config, {})
  np.testing.assert_allclose(got, [[0, 0.5, 1.0, 1.5, 0]], rtol=1e-12)
  np.testing.assert_allclose(metrics["rewards/greedy"].value, 1.0)


# Losses by hand. (ratio, advantage) -> loss at ε_low 0.2, ε_high 0.5 and dual clip 3, and its gradient.
SURROGATES = [
  (1.0, 2.0, -2.0, -2.0),
  (1.4, 2.0, -2.8, -2.8),  # above 1 + ε_low, within 1 + ε_high
  (1.6, 2.0, -3.0, 0.0),
  (0.7, -2.0, 1.6, 0.0),
  (0.7, 2.0, -1.4, -1.4),
  (2.0, -2.0, 4.0, 4.0),
  (5.0, -2.0, 6.0, 0.0),  # where the dual clip bounds it
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), SURROGATES)
def test_surrogate_by_hand(ratio, advantage, loss, slope):
  function = lambda x: jnp.sum(
    policy_gradients.surrogate(x, jnp.asarray([[advantage]]), low=0.2, high=0.5, dual=3.0)
  )
  got = jax.value_and_grad(function)(jnp.log(jnp.asarray([[ratio]])))
  np.testing.assert_allclose([got[0], got[1][0, 0]], [loss, slope], rtol=1e-12)


@pytest.mark.parametrize(("advantage", "loss"), [(-2.0, 6.0), (0.0, 0.0), (2.0, -3.0)])
def test_a_ratio_that_would_overflow_leaves_loss_and_gradient_finite(advantage, loss):
  function = lambda x: jnp.sum(
    policy_gradients.surrogate(x, jnp.asarray([[advantage]]), low=0.2, high=0.5, dual=3.0)
  )
  got, slope = jax.value_and_grad(function)(jnp.asarray([[1e4]]))
  np.testing.assert_allclose([got, slope[0, 0]], [loss, 0.0], rtol=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), [(1.3, 1.3), (9.0, 5.0), (0.1, 0.1)])
def test_cispo_clips_the_weight_and_keeps_the_gradient(ratio, weight):
  old, A = jnp.asarray([[-1.0]]), jnp.asarray([[2.0]])

  def function(logps):
    return jnp.sum(policy_gradients.cispo_surrogate(logps - old, logps, A, low=1.0, high=4.0))

  logps = old + jnp.log(ratio)
  got, slope = jax.value_and_grad(function)(logps)
  np.testing.assert_allclose(got, -weight * 2.0 * logps[0, 0], rtol=1e-12)
  np.testing.assert_allclose(slope, [[-weight * 2.0]], rtol=1e-12)


def test_sequence_ratios_by_hand():
  logps = jnp.asarray([[9.0, 1.0, 2.0, 9.0], [9.0, 4.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
  mask = jnp.asarray([[0.0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
  old = jnp.zeros_like(logps)
  total = policy_gradients.sequence_log_ratio(logps, old, mask)
  mean = policy_gradients.average_log_ratio(logps, old, mask)
  np.testing.assert_array_equal(total, [[0, 3, 3, 0], [0, 4, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(mean, [[0, 1.5, 1.5, 0], [0, 4, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
  ("how", "expected"),
  [("token", 10 / 4), ("sequence", (2 + 4 + 0) / 3), ("sum", 10 / 3), ("fixed_length", 10 / 15)],
)
def test_losses_are_aggregated_by_hand(how, expected):
  losses = jnp.asarray([[9.0, 1.0, 2.0, 3.0], [9.0, 4.0, np.nan, 9.0], [9.0, 9.0, 9.0, 9.0]])
  mask = jnp.asarray([[0.0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
  got = policy_gradients.AGGREGATIONS[how](losses, mask, 5)
  np.testing.assert_allclose(got.value, expected, rtol=1e-12)


# Exactly, on the language of 27 sequences.


def rollout_of(answers, scores, baseline=None, sampler=None) -> types.Rollout:
  nothing = jnp.zeros((len(answers), 4))
  written = sequences(answers)
  of_sampler = lambda: POLICY.evaluate({"logits": sampler}, {}, written, 1.0).logps
  return types.Rollout(
    sequences=written,
    logps=nothing if sampler is None else of_sampler(),
    rewards=nothing.at[:, 3].set(scores),
    truncated=jnp.zeros(len(answers), bool),
    baseline=baseline,
  )


def expected_gradient(
  module,
  config,
  logits,
  ref_logits,
  *,
  batch,
  scores=SCORES,
  greedy=0.0,
  extra=None,
  critic=None,
  sampler=None,
):
  """−Σ_{y_1…y_B} π(y_1) … π(y_B) ∇ loss(y_1, …, y_B): what is climbed on average at the first update.

  With the logits of a `sampler`, it wrote the answers and not the policy.
  """
  algorithm, frozen = module.make(POLICY), {"reference": {"logits": ref_logits}}
  extra = algorithm.init_extra({}, config) if extra is None else extra
  rows = np.array(list(itertools.product(range(27), repeat=batch)))  # [27^B, B]

  def gradient(answers, scores):
    rollout = rollout_of(answers, scores, jnp.full(batch, greedy), sampler)
    params = {"logits": logits, **(critic or {})}
    annotated, _ = algorithm.annotate(params, frozen, rollout, config, extra)

    def loss(logits):
      terms, _ = algorithm.loss({**params, "logits": logits}, frozen, annotated, config, extra)
      return sum(term.value for term in terms.values())

    return jax.grad(loss)(logits)

  gradients = jax.jit(jax.vmap(gradient))(
    jnp.asarray(enumeration.ANSWERS)[rows], jnp.asarray(scores)[rows]
  )
  wrote = (logits, config.temperature) if sampler is None else (sampler,)
  logp = log_probability(*wrote)
  return -jnp.tensordot(jnp.exp(jnp.sum(logp[rows], axis=1)), gradients, 1)


def exact_gradient(logits, ref_logits, temperature=1.0):
  return jax.grad(enumeration.objective)(logits, ref_logits, temperature)


def assert_exact(got, share=1.0, temperature=1.0):
  expected = share * exact_gradient(table(2), table(3), temperature)
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("baseline", ["none", "running_mean"])
def test_reinforce_climbs_the_exact_gradient_whatever_the_baseline(baseline, temperature):
  config = reinforce.Config(baseline=baseline, kl_coef=BETA, temperature=temperature)
  extra = {"sum": jnp.asarray(1.4), "weight": jnp.asarray(0.7)}
  got = expected_gradient(reinforce, config, table(2), table(3), batch=1, extra=extra)
  assert_exact(got, temperature=temperature)


@pytest.mark.parametrize("level, exact", [("none", False), ("token", False), ("sequence", True)])
def test_answers_of_another_policy_are_corrected_exactly_as_wholes(level, exact):
  config = reinforce.Config(
    baseline="none", kl_coef=BETA, importance_level=level, importance_high=float("inf")
  )
  sampler = table(2) + 0.5 * table(5)
  got = expected_gradient(reinforce, config, table(2), table(3), batch=1, sampler=sampler)
  expected = exact_gradient(table(2), table(3))
  assert bool(np.allclose(got, expected, rtol=1e-9, atol=1e-13)) is exact


def test_ppos_first_step_is_corrected_exactly_too():
  options = dict(whiten_advantages="none", gae_lambda=1.0, kl_coef=BETA, value_coef=0.0)
  correction = dict(importance_level="sequence", importance_high=float("inf"))
  config = ppo.Config(**options, **correction)
  sampler, critic = table(2) + 0.5 * table(5), {"values": jnp.zeros(13)}
  given = dict(batch=1, sampler=sampler, critic=critic)
  got = expected_gradient(ppo, config, table(2), table(3), **given)
  assert_exact(got, share=1 / 3)  # a mean over the three tokens


@pytest.mark.parametrize("whiten", ["batch", "minibatch"])
def test_what_weighs_nothing_teaches_nothing_whatever_whitening_makes_of_it(whiten):
  config = ppo.Config(
    whiten_advantages=whiten,
    value_coef=0.0,
    importance_level="token",
    importance_mode="mask",
    importance_high=1e-9,
  )
  algorithm, params = ppo.make(POLICY), {"logits": table(2), "values": jnp.zeros(13)}
  frozen, rollout = {"reference": {"logits": table(3)}}, rollout_of(enumeration.ANSWERS, SCORES)
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, frozen, rollout, config, extra)
  batch = algorithm.per_update(batch, config)
  assert jnp.any(batch.advantages != 0)
  loss = lambda p: algorithm.loss(p, frozen, batch, config, extra)[0]["policy"].value
  np.testing.assert_array_equal(jax.grad(loss)(params)["logits"], 0.0)


def test_the_batchs_own_mean_takes_its_share_of_the_gradient():
  config = reinforce.Config(baseline="batch_mean", kl_coef=BETA)
  got = expected_gradient(reinforce, config, table(2), table(3), batch=2)
  assert_exact(got, share=1 / 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rloo_climbs_the_exact_gradient(temperature):
  config = rloo.Config(group=2, kl_coef=BETA, temperature=temperature)
  got = expected_gradient(rloo, config, table(2), table(3), batch=2)
  assert_exact(got, temperature=temperature)


def test_remax_climbs_the_exact_gradient():
  config = remax.Config(kl_coef=BETA)
  got = expected_gradient(remax, config, table(2), table(3), batch=1, greedy=0.6)
  assert_exact(got)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["arbitrary", "exact"])
def test_a2c_climbs_the_exact_gradient_of_reward_less_kl(critic, temperature):
  """A critic that knows nothing costs variance alone if λ is 1; a perfect one allows any λ."""
  values = {
    "arbitrary": jnp.asarray(np.random.default_rng(4).normal(size=13)),
    "exact": enumeration.exact_values(table(2), table(3), temperature),
  }[critic]
  config = a2c.Config(
    kl_coef=BETA,
    gae_lambda={"arbitrary": 1.0, "exact": 0.5}[critic],
    entropy_coef=None,
    temperature=temperature,
  )
  got = expected_gradient(a2c, config, table(2), table(3), batch=1, critic={"values": values})
  assert_exact(got, 1 / 3, temperature)


def test_a2cs_critic_learns_the_returns_by_hand():
  config = a2c.Config(kl_coef=0.5, value_coef=2.0)
  answers = seen([2.0], kl_a_token=1.0)._replace(values=jnp.asarray([[9.0, 1.0, -1.0, 0.5, 9.0]]))
  got, _ = a2c.a2c_advantages(answers, config, {})
  np.testing.assert_allclose(got, [[0, -0.5, 2.0, 1.0, 0]], rtol=1e-12)  # returns ½, 1, 1½
  batch = SimpleNamespace(
    sequences=SimpleNamespace(response_mask=answers.chosen), returns=got + answers.values
  )
  terms, _ = a2c.value_loss(answers.values, batch, config)
  np.testing.assert_allclose(terms["value"].value, (0.25 + 4.0 + 1.0) / 3, rtol=1e-12)


@pytest.mark.parametrize(
  ("options", "share"),
  [
    # (G − 1)/G, and means over three tokens, or a sum divided by 12.
    (dict(aggregation="sum"), 1 / 2),
    (dict(aggregation="sequence"), 1 / 6),
    (dict(aggregation="token"), 1 / 6),
    (dict(aggregation="fixed_length", max_new_tokens=12), 1 / 24),
    (dict(aggregation="sequence", ratio="sequence"), 1 / 6),
    (dict(aggregation="sum", surrogate="cispo"), 1 / 2),
    (dict(aggregation="sum", dual_clip=3.0, clip_eps_high=0.4), 1 / 2),
  ],
)
def test_grpo_without_scaling_climbs_the_exact_gradient_but_for_its_length(options, share):
  config = grpo.Config(
    group=2, scale="none", kl_in="reward", kl_estimator="k1", kl_coef=BETA, **options
  )
  assert_exact(expected_gradient(grpo, config, table(2), table(3), batch=2), share)


def cosine(a, b) -> float:
  return float(jnp.sum(a * b) / jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b)))


@pytest.mark.parametrize(("scale", "expected"), [("group_std", 0.981), ("batch_std", 0.981)])
def test_dividing_by_the_standard_deviation_turns_the_gradient(scale, expected):
  """The bias, measured: on one group the batch's standard deviation is the group's."""
  config = grpo.Config(
    group=2, scale=scale, kl_in="reward", kl_estimator="k1", kl_coef=BETA, aggregation="sum"
  )
  got = expected_gradient(grpo, config, table(2), table(3), batch=2)
  np.testing.assert_allclose(cosine(got, exact_gradient(table(2), table(3))), expected, atol=1e-3)


def prefix_kl(logits, ref_logits, reverse: bool):
  """Σ over prefixes, each as likely as π makes it, of the KL of the next token; prefixes carry no gradient."""
  probabilities = jnp.exp(log_probability(jax.lax.stop_gradient(logits)))
  weights = jnp.concatenate(
    [probabilities.reshape(3**length, -1).sum(axis=1) for length in range(3)]
  )
  p, q = (jax.nn.log_softmax(x, axis=-1) for x in (logits, ref_logits))
  p, q = (p, q) if reverse else (q, p)
  return jnp.sum(weights * jnp.sum(jnp.exp(p) * (p - q), axis=-1))


@pytest.mark.parametrize("estimator", kl.KL_ESTIMATORS)
def test_whose_gradient_an_estimator_in_the_loss_is(estimator):
  logits, ref_logits = table(2), table(3)
  config = grpo.Config(group=2, kl_coef=BETA, kl_estimator=estimator, aggregation="sum")
  got = expected_gradient(grpo, config, logits, ref_logits, batch=2, scores=np.zeros(27))
  expected = {
    "k1": np.zeros((13, 3)),
    "k2": -BETA * jax.grad(prefix_kl)(logits, ref_logits, True),
    "k3": -BETA * jax.grad(prefix_kl)(logits, ref_logits, False),
  }[estimator]
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_weighted_by_the_ratio_an_estimator_in_the_loss_penalises_the_kl_of_each_token(estimator):
  logits, ref_logits = table(2), table(3)
  config = grpo.Config(
    group=2, kl_coef=BETA, kl_estimator=estimator, kl_weighted=True, aggregation="sum"
  )
  got = expected_gradient(grpo, config, logits, ref_logits, batch=2, scores=np.zeros(27))
  expected = -BETA * jax.grad(prefix_kl)(logits, ref_logits, True)
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 1.0), ("k2", 0.969), ("k3", 0.878)])
def test_in_the_reward_only_k1_penalises_the_kl(estimator, expected):
  config = grpo.Config(
    group=2, scale="none", kl_in="reward", kl_estimator=estimator, kl_coef=1.0, aggregation="sum"
  )
  got = expected_gradient(grpo, config, table(2), table(3), batch=2, scores=np.zeros(27))
  logits, ref_logits = table(2), table(3)

  def penalty(logits):
    logp = log_probability(logits)
    return -jnp.sum(jnp.exp(logp) * (logp - log_probability(ref_logits)))

  np.testing.assert_allclose(cosine(got, jax.grad(penalty)(logits)), expected, atol=1e-3)


# Identities.


def first_gradient(module, config, answers, scores, frozen_seed=3):
  algorithm, frozen = module.make(POLICY), {"reference": {"logits": table(frozen_seed)}}
  params = {"logits": table(2)}
  extra = algorithm.init_extra(params, config)
  rollout = rollout_of(answers, scores, jnp.zeros(len(answers)))
  batch, _ = algorithm.annotate(params, frozen, rollout, config, extra)

  def loss(params):
    terms, _ = algorithm.loss(params, frozen, batch, config, extra)
    return sum(term.value for term in terms.values())

  return jax.grad(loss)(params)["logits"]


SOME = enumeration.ANSWERS[[3, 26, 11, 3]]
SOME_SCORES = jnp.asarray([0.5, -1.0, 2.0, 0.25])


def test_grpos_first_step_without_scaling_is_reinforce_with_the_groups_baseline():
  one_group = grpo.Config(group=4, scale="none", kl_coef=0.0, aggregation="sum")
  got = first_gradient(grpo, one_group, SOME, SOME_SCORES)
  config = reinforce.Config(baseline="batch_mean", kl_coef=0.0)
  expected = first_gradient(reinforce, config, SOME, SOME_SCORES)
  np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
  assert jnp.max(jnp.abs(got)) > 0.1


def test_rloos_first_step_is_grpos_without_scaling_but_for_the_divisor():
  got = first_gradient(rloo, rloo.Config(group=2, kl_coef=BETA), SOME, SOME_SCORES)
  config = grpo.Config(
    group=2, scale="none", kl_in="reward", kl_estimator="k1", kl_coef=BETA, aggregation="sum"
  )
  expected = 2 * first_gradient(grpo, config, SOME, SOME_SCORES)
  np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
def test_a_clip_decides_nothing_before_the_first_update(surrogate):
  of = lambda **options: first_gradient(
    grpo, grpo.Config(group=2, surrogate=surrogate, **options), SOME, SOME_SCORES
  )
  np.testing.assert_array_equal(of(clip_eps=0.01), of(clip_eps=0.9, clip_eps_high=5.0))


# Input at the edge.


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_equal_scores_teaches_nothing(name):
  module = FAMILY[name]
  config = module.Config(**{"group": 2, "kl_coef": 0.0, **GROUPED[name]})
  got = first_gradient(module, config, SOME, jnp.full(4, 0.1))
  np.testing.assert_array_equal(got, np.zeros((13, 3)))


@every_algorithm
@pytest.mark.parametrize("truncation", ["score", "fixed_score", "penalty", "mask"])
def test_a_batch_of_cut_empty_and_equal_answers_has_a_finite_gradient(name, truncation):
  module = FAMILY[name]
  group = {"group": 2} if getattr(module.Config, "group", 1) > 1 else {}
  config = module.Config(truncation=truncation, **group)
  algorithm, frozen = module.make(POLICY), {"reference": {"logits": table(3)}}
  params = {"logits": table(2)}
  extra = algorithm.init_extra(params, config)
  for empty, cut in ((True, False), (False, True), (True, True)):
    rollout = rollout_of(SOME, jnp.full(4, 0.1), jnp.zeros(4))
    rows = rollout.sequences
    if empty:
      mask = rows.response_mask.at[1].set(0.0) if not cut else jnp.zeros_like(rows.response_mask)
      rollout = rollout.replace(sequences=rows.replace(response_mask=mask))
    rollout = rollout.replace(truncated=jnp.full(4, cut))
    batch, metrics = algorithm.annotate(params, frozen, rollout, config, extra)

    def loss(params, batch=batch):
      terms, metrics = algorithm.loss(params, frozen, batch, config, extra)
      return sum(term.value for term in terms.values()), metrics

    slope, found = jax.grad(loss, has_aux=True)(params)
    leaves = jax.tree.leaves((slope, found, metrics))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    if empty and cut:
      np.testing.assert_array_equal(slope["logits"], np.zeros((13, 3)))


def test_an_empty_answer_scores_nothing_and_counts_in_its_groups_mean():
  algorithm = grpo.make(POLICY)
  config = grpo.Config(group=2, scale="none", kl_coef=0.0)
  rollout = rollout_of(SOME[:2], jnp.asarray([3.0, 5.0]))
  mask = rollout.sequences.response_mask.at[1].set(0.0)
  rollout = rollout.replace(sequences=rollout.sequences.replace(response_mask=mask))
  frozen = {"reference": {"logits": table(3)}}
  batch, _ = algorithm.annotate({"logits": table(2)}, frozen, rollout, config, {})
  np.testing.assert_allclose(batch.advantages, [[0, 1.5, 1.5, 1.5], [0, 0, 0, 0]], rtol=1e-12)


CUT = {
  "score": [-2.5, 2.5],
  "fixed_score": [0.0, 0.0],
  "penalty": [-2.0, 2.0],
  "mask": [-2.5, 2.5],
}


@pytest.mark.parametrize("truncation", CUT)
def test_a_cut_answer_is_scored_by_the_rule(truncation):
  config = grpo.Config(
    group=2, scale="none", truncation=truncation, truncation_score=-1.0, truncation_penalty=1.0
  )
  rollout = rollout_of(SOME[:2], jnp.asarray([-1.0, 4.0]))
  rollout = rollout.replace(truncated=jnp.asarray([False, True]))
  frozen = {"reference": {"logits": table(3)}}
  batch, _ = grpo.make(POLICY).annotate({"logits": table(2)}, frozen, rollout, config, {})
  np.testing.assert_allclose(batch.advantages[:, 1], CUT[truncation], rtol=1e-12)
  learned = jnp.sum(batch.sequences.response_mask, axis=1)
  np.testing.assert_array_equal(learned, [3, 0] if truncation == "mask" else [3, 3])


def test_scores_are_clipped_before_anything_else():
  config = rloo.Config(reward_clip=2.0, truncation="penalty", truncation_penalty=3.0)
  got = reinforce.shaped_score(
    jnp.asarray([5.0, -9.0, 7.0]), jnp.full(3, 4.0), jnp.asarray([False, False, True]), config
  )
  np.testing.assert_array_equal(got, [2.0, -2.0, -1.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_stops_the_loop_with_the_prompt_named(value):
  rollout = rollout_of(SOME, jnp.asarray([0.0, 1.0, value, 2.0]))
  with pytest.raises(
    loop.NotFinite, match=f"1 of 4 .*step 7 of stage grpo.*{value} for row 2, .*p1"
  ):
    online.assert_finite_rewards(rollout, ["p0", "p0", "p1", "p1"], "grpo", 7)
  online.assert_finite_rewards(rollout_of(SOME, SOME_SCORES), ["p0"] * 4, "grpo", 7)


def test_a_greedy_answers_reward_that_is_not_finite_stops_the_loop_too():
  rollout = rollout_of(SOME, SOME_SCORES, jnp.asarray([0.0, np.nan, 0.0, 0.0]))
  with pytest.raises(loop.NotFinite, match="row 1, prompt 5"):
    online.assert_finite_rewards(rollout, [4, 5, 6, 7], "remax", 1)


@pytest.mark.parametrize(
  ("name", "values", "message"),
  [
    ("rloo", dict(group=1), "rloo.group=1 should be at least 2"),
    ("grpo", dict(group=1), "grpo.group=1 should be at least 2"),
    (
      "reinforce_pp",
      dict(baseline="group_mean"),
      "reinforce_pp.group=1 leaves nothing.*at least 2",
    ),
    ("grpo", dict(surrogate="cispo", dual_clip=3.0), "grpo.dual_clip=3.0 has no effect"),
    ("grpo", dict(overlong_cache=9, max_new_tokens=8), "grpo.overlong_cache=9 exceeds.*=8"),
    ("grpo", dict(kl_weighted=True, kl_in="reward"), "grpo.kl_weighted has no effect"),
    ("grpo", dict(dual_clip=1.0), "grpo.dual_clip=1.0 should be greater than 1"),
    ("reinforce", dict(truncation="bootstrap"), "truncation='bootstrap' is not one of"),
  ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(name, values, message):
  with pytest.raises(ValueError, match=message):
    from_dict(FAMILY[name].Config, values, where=name)


def test_the_sampler_rules_the_length_that_losses_are_divided_by():
  config = {"rollout": dict(max_new_tokens=7, temperature=0.5), "grpo": dict(group=3)}
  got, *_ = options.stage(config, "grpo")
  assert (got.max_new_tokens, got.temperature, got.group) == (7, 0.5, 3)
  config["grpo"]["max_new_tokens"] = 9
  with pytest.raises(ValueError, match="grpo.max_new_tokens is not an option; set rollout.max_new"):
    options.stage(config, "grpo")


def test_a_critic_is_refused_where_there_is_none():
  with pytest.raises(ValueError, match="grpo.critic='separate' has no effect"):
    assert_critic("grpo", critic="separate")
  with pytest.raises(ValueError, match="grpo.value_head_std=0.1 has no effect"):
    assert_critic("grpo", value_head_std=0.1)
  assert_critic("ppo", critic="separate")


def assert_critic(name, whole=None, warmup=0, weight_decay=0.0, **settings):
  module = {"ppo": ppo, **FAMILY}[name]
  whole = {"algorithm": {}, "lora": {"rank": 0}, **(whole or {})}
  config = ppo.Config(critic_warmup=warmup) if module is ppo else module.Config()
  optim = optimizer.Settings(weight_decay=weight_decay)
  online.assert_critic(whole, name, module, config, online.Settings(**settings), optim)


FROM_REWARDS = dict(critic="separate", critic_init="reward_model")
ODIN = dict(algorithm=dict(reward_model="reward_odin"))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(critic_init="reward_model"), "needs a trunk of its own; set ppo.critic='separate'"),
    (FROM_REWARDS | dict(value_head_std=0.1), "brings its head, and ppo.value_head_std=0.1"),
    (
      FROM_REWARDS | dict(whole=dict(rewards=dict(terms=("sentiment",)))),
      "none is among rewards.terms",
    ),
    (FROM_REWARDS | dict(whole=ODIN), "reward_odin is an ensemble, says several numbers"),
    (
      FROM_REWARDS | dict(whole=dict(reward_model=dict(members=2))),
      "reward_model is an ensemble",
    ),
    (
      FROM_REWARDS | dict(whole=dict(lora=dict(rank=4), start=dict(reward_model="elsewhere"))),
      "cannot be with lora.rank > 0 and start.reward_model",
    ),
    (dict(warmup=2), "ppo.critic_warmup=2 needs a critic of its own"),
    (dict(warmup=2, critic="separate", weight_decay=0.1), "would shrink the policy meanwhile"),
  ],
)
def test_a_critic_that_cannot_start_or_learn_as_asked_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    assert_critic("ppo", **settings)


def test_a_critic_from_a_reward_model_values_a_whole_answer_at_its_score():
  """The value before a further token is read where the reward is, at the last one."""
  with jax.enable_x64(False):
    head = heads.init_head(jax.random.key(1), 16, 0.5)
    scale = {"gain": jnp.float32(2.0), "bias": jnp.float32(-0.25)}
    model = MODEL.init(jax.random.key(0))
    scored = {"model": model, "reward_head": head, "normalization": scale}
    settings = online.Settings(**FROM_REWARDS)
    params = online.parameters(
      SETUP, "ppo", ppo, settings, lambda: MODEL.init(jax.random.key(2)), scored
    )
    rows = types.Sequences.from_mask(
      jnp.asarray([[1, 2, 4, 6, 0]]), jnp.ones((1, 5)), jnp.ones((1, 5))
    )
    values = policy.make_policy(MODEL, critic="separate").evaluate(params, {}, rows, 1.0).values
    shorter = jax.tree.map(lambda x: x[:, :4], rows)
    score = policy.make_scorer(MODEL).score(scored, {}, shorter)
    np.testing.assert_allclose(values[:, 4], score, rtol=1e-5)
    assert float(jnp.abs(score[0])) > 0.01


def test_rows_of_groups_must_divide():
  setup = SimpleNamespace(mesh=SimpleNamespace(shape={}))
  config = grpo.Config(group=3, minibatches=4)
  with pytest.raises(ValueError, match="grpo.prompts x group=6 does not split into minibatches"):
    online.assert_divides(setup, "grpo", grpo, config, online.Settings(prompts=2))


def test_bounds_of_importance_weights_must_leave_room():
  with pytest.raises(ValueError, match="grpo.importance_low=3.0 is not below importance_high=2.0"):
    from_dict(grpo.Config, {"importance_level": "token", "importance_low": 3.0}, where="grpo")


# The loop, on a model of a few thousand parameters.

V, N, GOOD = 7, 6, 3
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
    initializer_range=0.1,
  )
)


def share(rows: types.Sequences) -> jax.Array:
  """How much of each response is the good token, float32[B]."""
  chosen = rows.response_mask
  return jnp.sum((rows.tokens == GOOD) * chosen, axis=-1) / jnp.sum(chosen, axis=-1)


SETUP = SimpleNamespace(
  model=MODEL,
  decoding=lambda base, whole: whole,
  trained=lambda weights, stage: weights(),
  scorer=types.Scorer(lambda params, frozen, rows: share(rows)),
)
LEARNERS = {
  "reinforce": (reinforce, dict(learning_rate=1e-2)),
  "rloo": (rloo, dict(learning_rate=1e-2, group=4)),
  "grpo": (grpo, dict(learning_rate=1e-2, group=4)),
  "reinforce_pp": (reinforce_pp, dict(learning_rate=1e-2, epochs=2, minibatches=2)),
  "remax": (remax, dict(learning_rate=1e-2)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_policy_earns_a_known_reward(name):
  with jax.enable_x64(False):
    module, values = LEARNERS[name]
    config = module.Config(kl_coef=0.01, max_new_tokens=N, **values)
    algorithm, tx = module.make(policy.make_policy(MODEL)), optax.scale_by_adam()
    start = MODEL.init(jax.random.key(0))
    frozen = {"base": {}, "reference": {"model": start}, "reward_model": {}}
    collect = jax.jit(online.make_collect(SETUP, second=getattr(module, "SECOND", None)))
    state = step.init_state(jax.random.key(1), {"model": start}, algorithm, tx, config)
    train_step = jax.jit(
      step.make_train_step(algorithm, tx, epochs=config.epochs, minibatches=config.minibatches)
    )
    prompts = jnp.tile(jnp.asarray([[1, 2]], jnp.int32), (32, 1))
    earned = []
    for i in range(20):
      keys = jax.random.split(jax.random.fold_in(jax.random.key(5), i), 32)
      sampling = Sampling(max_new_tokens=N)
      rollout, _ = collect(state.params, frozen, prompts, jnp.ones((32, 2)), keys, sampling)
      state, metrics = train_step(state, frozen, rollout, config)
      earned.append(float(metrics["rewards/mean"].value))
    assert earned[0] < 0.25
    assert np.mean(earned[-3:]) > 0.6, earned


def test_a_runs_answers_to_one_prompt_are_neighbours_and_each_its_own(tiny_run, tmp_path):
  arguments, workdir = tiny_run
  shutil.copytree(workdir, tmp_path / "run")
  arguments = [a for a in arguments if not a.startswith("--workdir")]
  options = dict(steps=1, prompts=2, group=3, minibatches=3, logged_samples=6)
  with jax.enable_x64(False):
    flags = [f"--config.grpo.{name}={value}" for name, value in options.items()]
    stages = "--config.stages=('sft', 'reward_model', 'policy')"
    run = [
      *arguments,
      f"--workdir={tmp_path / 'run'}",
      "--config.algorithm.name=grpo",
      *flags,
      stages,
    ]
    assert main(run) == 0
  rows = [
    json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  ]
  rows = [row for row in rows if row["stage"] == "grpo"]
  prompts = [row["prompt"] for row in rows]
  assert len(rows) == 6 and len(set(prompts)) == 2
  assert len(set(prompts[:3])) == len(set(prompts[3:])) == 1
  assert len({row["response"] for row in rows}) == 6


def test_remax_compares_with_the_answer_that_never_varies():
  with jax.enable_x64(False):
    start = MODEL.init(jax.random.key(0))
    frozen = {"base": {}, "reward_model": {}}
    collect = jax.jit(online.make_collect(SETUP, second="greedy"))
    prompts, mask = jnp.tile(jnp.asarray([[1, 2]], jnp.int32), (8, 1)), jnp.ones((8, 2))
    keys = jax.random.split(jax.random.key(0), 8)
    of = lambda s: collect({"model": start}, frozen, prompts, mask, keys, s)[0]
    drawn, greedy = of(Sampling(max_new_tokens=N)), of(Sampling(max_new_tokens=N, greedy=True))
    assert jnp.std(jnp.sum(drawn.rewards, axis=1)) > 0
    np.testing.assert_allclose(drawn.baseline, jnp.sum(greedy.rewards, axis=1), rtol=1e-6)
