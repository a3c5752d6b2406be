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
from rlhf_jax.algorithms import bco, dpo, pl_dpo, ppo, sft
from rlhf_jax.ops import reward, stats

ANSWERS = np.array(list(itertools.product(range(3), repeat=3)))  # [27, 3]
BETA = 0.25


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def prefixes(batch):
  """Of each of the three tokens the row of the table that it is drawn from, [B, 3]."""
  first, second, _ = batch.tokens[:, 1:].T
  return jnp.stack([jnp.zeros_like(first), 1 + first, 4 + 3 * first + second], axis=1)


def align(of_tokens):
  return jnp.pad(of_tokens, ((0, 0), (1, 0)))


def distributions(params, batch, temperature):
  return jax.nn.log_softmax(params["logits"][prefixes(batch)] / temperature, axis=-1)


def evaluate(params, frozen, batch, temperature):
  logp = distributions(params, batch, temperature)
  logps = jnp.take_along_axis(logp, batch.tokens[:, 1:, None], axis=-1)[..., 0]
  values = align(params["values"][prefixes(batch)]) if "values" in params else None
  return types.TokenStats(align(logps), jnp.zeros_like(align(logps)), values)


def compare(params, other, frozen, batch, temperature):
  mine, theirs = (evaluate(p, frozen, batch, temperature) for p in (params, other))
  p, q = (distributions(of, batch, temperature) for of in (params, other))
  return mine, theirs, align(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


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
    whiten_advantages="none",
    temperature=temperature,
  )
  got = expected_ppo_gradient({"logits": logits, "values": values}, ref_logits, config)
  exact = jax.grad(objective)(logits, ref_logits, temperature)
  # The loss is a mean over the three tokens, and to be made small.
  np.testing.assert_allclose(-3 * got, exact, rtol=1e-10, atol=1e-13)


def test_ppo_stands_still_at_the_regularised_optimum():
  ref_logits = table(3)
  params = {"logits": logits_of(regularised_optimum(ref_logits)), "values": jnp.zeros(13)}
  config = ppo.Config(kl_coef=BETA, gae_lambda=1.0, whiten_advantages="none")
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
  got = descended(population_dpo)
  np.testing.assert_allclose(got, regularised_optimum(table(3)), atol=1e-6)


def descended(population) -> jax.Array:
  """The distribution over answers at which `population(logits, ref_logits)` is least, from the reference on."""
  ref_logits = table(3)
  loss = jax.jit(jax.value_and_grad(lambda x: population(x.reshape(13, 3), ref_logits)))
  found = optimize.minimize(
    lambda x: jax.device_get(loss(x)), ref_logits.ravel(), jac=True, method="BFGS", tol=1e-9
  )
  return jnp.exp(log_probability(jnp.asarray(found.x).reshape(13, 3)))


def stationary(population, optimum) -> None:
  """The loss has no slope at `optimum`, and has one at the reference."""
  ref_logits = table(3)
  slope = jax.grad(population)(logits_of(optimum), ref_logits)
  np.testing.assert_allclose(slope, np.zeros((13, 3)), atol=1e-12)
  assert jnp.max(jnp.abs(jax.grad(population)(ref_logits, ref_logits))) > 1e-5


def population_of(config, noise=0.0):
  """DPO's loss by `config` over all ordered pairs, a share `noise` of Bradley and Terry's labels flipped."""

  def population(logits, ref_logits):
    logp, ref = log_probability(logits), log_probability(ref_logits)
    w, l = np.divmod(np.arange(27 * 27), 27)
    prefers = jax.nn.sigmoid(SCORES[w] - SCORES[l])
    prefers = (1 - noise) * prefers + noise * (1 - prefers)
    return jnp.mean(prefers * dpo.dpo_loss(logp[w], logp[l], ref[w], ref[l], config))

  return population


# The ratio π/π_ref at which f' is x: where a divergence's own optimum has x = (r − λ) / β.
INVERSES = {
  "reverse_kl": np.exp,
  "forward_kl": lambda x: -1 / x,
  "jensen_shannon": lambda x: np.exp(x) / (1 - np.exp(x)),  # f' less its constant log 2
  "alpha": lambda x: (1 - 0.5 * x) ** -2.0,
}
# The largest x that each can invert.
LIMITS = {"reverse_kl": 50.0, "forward_kl": -1e-9, "jensen_shannon": -1e-9, "alpha": 2 - 1e-9}


@pytest.mark.parametrize("divergence", dpo.DIVERGENCES)
def test_population_dpo_is_stationary_where_its_divergence_says(divergence):
  """arXiv:2309.16240: f'(π/π_ref) = (r − λ) / β, with λ such that π sums to 1."""
  ref = np.exp(np.asarray(log_probability(table(3))))
  ratio = lambda shift: INVERSES[divergence]((SCORES - SCORES.max()) / BETA + shift)
  excess = lambda shift: np.sum(ref * ratio(shift)) - 1
  shift = optimize.brentq(excess, -200.0, LIMITS[divergence], xtol=1e-14, rtol=1e-14)
  optimum = jnp.asarray(ref * ratio(shift))
  config = dpo.Config(beta=BETA, divergence=divergence, divergence_alpha=0.5)
  stationary(population_of(config), optimum / optimum.sum())


def test_population_ipo_is_stationary_where_the_preference_over_all_answers_says():
  """arXiv:2310.12036, eq. 7 with Ψ the identity: π_ref exp(P(y beats a random answer) / β) / Z."""
  wins = jax.nn.sigmoid(SCORES[:, None] - SCORES[None]).mean(axis=1)
  optimum = jax.nn.softmax(log_probability(table(3)) + wins / BETA)
  stationary(population_of(dpo.Config(beta=BETA, loss_type="ipo")), optimum)


def test_population_robust_dpo_is_stationary_at_the_regularised_optimum_under_flipped_labels():
  """arXiv:2403.00409: a share of labels is wrong, and the optimum is that of the right ones."""
  noise = 0.2
  config = dpo.Config(beta=BETA, loss_type="robust", label_smoothing=noise)
  stationary(population_of(config, noise), regularised_optimum(table(3)))
  plain = population_of(dpo.Config(beta=BETA), noise)
  slope = jax.grad(plain)(logits_of(regularised_optimum(table(3))), table(3))
  assert jnp.max(jnp.abs(slope)) > 1e-3  # which the plain loss does not reach


def test_population_dpo_on_rankings_is_stationary_at_the_regularised_optimum():
  """arXiv:2305.18290, appendix A.3: Plackett and Luce's rankings of every three answers."""
  triples = np.array(list(itertools.permutations(range(27), 3)))
  scores = jnp.asarray(SCORES)[triples]
  tail = jax.nn.logsumexp(scores[:, 1:], axis=1)
  logp_order = scores[:, 0] - jax.nn.logsumexp(scores, axis=1) + scores[:, 1] - tail
  ranks = jnp.broadcast_to(jnp.asarray([1, 2, 3]), triples.shape)

  def population(logits, ref_logits):
    logp, ref = log_probability(logits)[triples], log_probability(ref_logits)[triples]
    losses = pl_dpo.pl_dpo_loss(logp, ref, ranks, pl_dpo.Config(beta=BETA))
    return jnp.sum(jnp.exp(logp_order) * losses) / len(triples)

  stationary(population, regularised_optimum(table(3)))


def test_population_bco_is_stationary_at_the_regularised_optimum_when_marks_are_logistic():
  """arXiv:2404.04656: the reward is a logit, up to the constant that δ takes."""
  ref = log_probability(table(3))
  normalizer = jax.nn.logsumexp(ref + SCORES / BETA)
  right = jax.nn.sigmoid(SCORES)
  delta = jnp.full(27, -BETA * normalizer)
  config = bco.Config(beta=BETA)

  def population(logits, ref_logits):
    logp = log_probability(logits)
    of = lambda label: bco.bco_loss(logp, ref, jnp.full(27, label), delta, config)
    return jnp.mean(right * of(1.0) + (1 - right) * of(0.0))

  stationary(population, regularised_optimum(table(3)))


def test_the_bradley_terry_loss_is_stationary_at_the_true_scores_and_any_shift_of_them():
  w, l = np.divmod(np.arange(27 * 27), 27)

  def loss(scores):
    prefers = jax.nn.sigmoid(SCORES[w] - SCORES[l])
    return jnp.mean(prefers * reward.logistic_loss(scores[w] - scores[l], 1.0))

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
