"""Exact statements on a language of 27 sequences: three tokens of a vocabulary of three, in float64.

The policy is a table with a row of logits for each of the 13 prefixes, so an expectation over
samples is a sum, and what an algorithm does on average can be compared with what its theory says.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rlhf_jax import types
from rlhf_jax.algorithms import dpo, ppo, sft
from rlhf_jax.ops import preference, stats

ANSWERS = np.array(list(itertools.product(range(3), repeat=3)))  # [27, 3]
BETA = 0.25


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def evaluate(params, frozen, batch, temperature):
  first, second, _ = answer = batch.tokens[:, 1:].T
  prefix = jnp.stack([jnp.zeros_like(first), 1 + first, 4 + 3 * first + second], axis=1)
  logp = jax.nn.log_softmax(params["logits"][prefix] / temperature, axis=-1)
  logps = jnp.take_along_axis(logp, answer.T[..., None], axis=-1)[..., 0]
  align = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
  values = align(params["values"][prefix]) if "values" in params else None
  return types.TokenStats(align(logps), jnp.zeros_like(align(logps)), values)


def compare(params, other, frozen, batch, temperature):
  mine, theirs = (evaluate(p, frozen, batch, temperature) for p in (params, other))
  return mine, theirs, jnp.zeros_like(mine.logps)


POLICY = types.Policy(evaluate, compare)


def sequences(answers) -> types.Sequences:
  """A prompt of one token, then the answer."""
  tokens = jnp.pad(jnp.asarray(answers), ((0, 0), (1, 0)))
  chosen = jnp.ones(tokens.shape).at[:, 0].set(0.0)
  everywhere = jnp.ones(tokens.shape, jnp.int32)
  return types.Sequences(tokens, jnp.cumsum(everywhere, axis=1) - 1, everywhere, chosen)


def table(seed: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=(13, 3)))


def log_probability(logits, temperature=1.0):
  """Of each of the 27 answers."""
  batch = sequences(ANSWERS)
  return stats.row_sum(
    evaluate({"logits": logits}, {}, batch, temperature).logps, batch.response_mask
  )


def logits_of(distribution) -> jax.Array:
  """The table whose answers have the given probabilities."""
  joint = distribution.reshape(3, 3, 3)
  rows = [joint.sum((1, 2))[None], joint.sum(2), joint.reshape(9, 3)]
  return jnp.log(jnp.concatenate(rows))


SCORES = np.random.default_rng(1).normal(size=27)


def regularised_optimum(ref_logits, temperature=1.0):
  """π_ref exp(r / β) / Z."""
  return jax.nn.softmax(log_probability(ref_logits, temperature) + SCORES / BETA)


def expected_ppo_gradient(params, ref_logits, config):
  """Σ_y π(y) ∇ loss(y), the gradient of the first step on average over one sampled answer."""
  algorithm, frozen = ppo.make(POLICY), {"reference": {"logits": ref_logits}}

  def gradient(answer, score):
    batch = sequences(answer[None])
    nothing = jnp.zeros((1, 4))
    rollout = types.Rollout(
      sequences=batch,
      logps=nothing,
      ref_logps=nothing,
      values=nothing,
      rewards=nothing.at[0, 3].set(score),
      truncated=jnp.zeros(1, bool),
      bootstrap=jnp.zeros(1),
    )
    extra = algorithm.init_extra(params, config)
    annotated, _ = algorithm.annotate(params, frozen, rollout, config, extra)

    def loss(logits):
      terms, _ = algorithm.loss({**params, "logits": logits}, frozen, annotated, config, extra)
      return terms["policy"].value

    return jax.grad(loss)(params["logits"])

  gradients = jax.vmap(gradient)(jnp.asarray(ANSWERS), jnp.asarray(SCORES))
  probability = jnp.exp(log_probability(params["logits"], config.temperature))
  return jnp.tensordot(probability, gradients, 1)


def objective(logits, ref_logits, temperature):
  """E[r] − β KL(π ‖ π_ref)."""
  logp = log_probability(logits, temperature)
  log_ratio = logp - log_probability(ref_logits, temperature)
  return jnp.sum(jnp.exp(logp) * (SCORES - BETA * log_ratio))


def exact_values(logits, ref_logits, temperature):
  """What the rest of an answer earns on average, from each prefix on."""
  logp = log_probability(logits, temperature)
  batch = sequences(ANSWERS)
  token_logps = evaluate({"logits": logits}, {}, batch, temperature).logps[:, 1:]
  ref_logps = evaluate({"logits": ref_logits}, {}, batch, temperature).logps[:, 1:]
  rewards = (-BETA * (token_logps - ref_logps)).at[:, 2].add(SCORES)
  to_come = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
  values = []
  for length in range(3):  # answers that share a prefix of this length are neighbours
    groups = lambda x, n=3**length: x.reshape(n, -1)
    p = groups(jnp.exp(logp))
    values.append(jnp.sum(p * groups(to_come[:, length]), axis=1) / jnp.sum(p, axis=1))
  return jnp.concatenate(values)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["arbitrary", "exact"])
def test_ppo_climbs_the_exact_gradient_of_reward_less_kl(critic, temperature):
  logits, ref_logits = table(2), table(3)
  # A critic that knows nothing costs variance alone if lambda is 1; a perfect one allows any lambda.
  values = {
    "arbitrary": jnp.asarray(np.random.default_rng(4).normal(size=13)),
    "exact": exact_values(logits, ref_logits, temperature),
  }[critic]
  config = ppo.Config(
    kl_coef=BETA,
    gae_lambda={"arbitrary": 1.0, "exact": 0.5}[critic],
    whiten_advantages=False,
    temperature=temperature,
  )
  got = expected_ppo_gradient({"logits": logits, "values": values}, ref_logits, config)
  exact = jax.grad(objective)(logits, ref_logits, temperature)
  # The loss is a mean over the three tokens, and to be made small.
  np.testing.assert_allclose(-3 * got, exact, rtol=1e-10, atol=1e-13)


def test_ppo_stands_still_at_the_regularised_optimum():
  ref_logits = table(3)
  params = {"logits": logits_of(regularised_optimum(ref_logits)), "values": jnp.zeros(13)}
  config = ppo.Config(kl_coef=BETA, gae_lambda=1.0, whiten_advantages=False)
  got = expected_ppo_gradient(params, ref_logits, config)
  np.testing.assert_allclose(got, np.zeros((13, 3)), atol=1e-14)


def population_dpo(logits, ref_logits):
  """DPO's loss over all ordered pairs, each labelled as Bradley and Terry would by the scores."""
  logp, ref = log_probability(logits), log_probability(ref_logits)
  w, l = np.divmod(np.arange(27 * 27), 27)
  prefers = jax.nn.sigmoid(SCORES[w] - SCORES[l])
  return jnp.mean(prefers * dpo.dpo_loss(logp[w], logp[l], ref[w], ref[l], dpo.Config(beta=BETA)))


def test_population_dpo_is_stationary_at_the_regularised_optimum():
  ref_logits = table(3)
  optimum = logits_of(regularised_optimum(ref_logits))
  slope = jax.grad(population_dpo)(optimum, ref_logits)
  np.testing.assert_allclose(slope, np.zeros((13, 3)), atol=1e-15)
  assert jnp.max(jnp.abs(jax.grad(population_dpo)(ref_logits, ref_logits))) > 1e-3


def test_population_dpo_descends_to_the_regularised_optimum():
  ref_logits = table(3)
  loss = jax.jit(jax.value_and_grad(lambda x: population_dpo(x.reshape(13, 3), ref_logits)))
  found = optimize.minimize(
    lambda x: jax.device_get(loss(x)), ref_logits.ravel(), jac=True, method="BFGS", tol=1e-9
  )
  got = jnp.exp(log_probability(jnp.asarray(found.x).reshape(13, 3)))
  np.testing.assert_allclose(got, regularised_optimum(ref_logits), atol=1e-6)


def test_the_bradley_terry_loss_is_stationary_at_the_true_scores_and_any_shift_of_them():
  w, l = np.divmod(np.arange(27 * 27), 27)

  def loss(scores):
    prefers = jax.nn.sigmoid(SCORES[w] - SCORES[l])
    return jnp.mean(prefers * preference.bradley_terry_loss(scores[w], scores[l]))

  for scores in (SCORES, SCORES + 3.0):
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(scores)), np.zeros(27), atol=1e-15)
  assert jnp.max(jnp.abs(jax.grad(loss)(jnp.asarray(0.5 * SCORES)))) > 1e-3


def test_sft_stands_still_at_the_distribution_of_its_data():
  data = jax.nn.softmax(jnp.asarray(SCORES))

  def expected_loss(logits):
    def loss(answer):
      terms, _ = sft.make(POLICY).loss(
        {"logits": logits}, {}, sequences(answer[None]), sft.Config(), {}
      )
      return terms["nll"].value

    return jnp.sum(data * jax.vmap(loss)(jnp.asarray(ANSWERS)))

  slope = jax.grad(expected_loss)(logits_of(data))
  np.testing.assert_allclose(slope, np.zeros((13, 3)), atol=1e-15)
