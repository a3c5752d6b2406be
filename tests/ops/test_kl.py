import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import kl

V = 5


def distributions(seed=0):
  logits = np.random.default_rng(seed).normal(size=(2, V)).astype(np.float32)
  return jax.nn.log_softmax(logits[0]), jax.nn.log_softmax(logits[1])


@pytest.mark.parametrize(
  ("name", "expected"), [("k1", np.log(0.5)), ("k2", 0.2402265), ("k3", 1 - np.log(2.0))]
)
def test_estimators_by_hand(name, expected):
  # The reference gives the token twice the probability: r = 2.
  got = kl.KL_ESTIMATORS[name](jnp.log(jnp.asarray([0.25])), jnp.log(jnp.asarray([0.5])))
  np.testing.assert_allclose(got, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_divergence(name):
  logp, logq = distributions()
  divergence = jnp.sum(jnp.exp(logp) * (logp - logq))
  mean = jnp.sum(jnp.exp(logp) * kl.KL_ESTIMATORS[name](logp, logq))
  np.testing.assert_allclose(mean, divergence, rtol=1e-5)


def test_k3_is_never_negative_even_next_to_the_reference():
  logps = jnp.linspace(-20.0, 0.0, 41)
  for shift in (0.0, 1e-6, -1e-6, 1e-3, -1e-3, 5.0, -5.0):
    assert np.all(kl.kl_k3(logps, logps + shift) >= 0)


def test_only_k1_in_the_reward_gives_the_gradient_of_the_divergence():
  logits = jnp.asarray(np.random.default_rng(3).normal(size=V), jnp.float32)
  _, logq = distributions(1)

  def divergence(logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logp) * (logp - logq))

  def score_function(logits, estimator):  # E[estimate · ∇ log π], the estimate held fixed
    logp = jax.nn.log_softmax(logits)
    held = jax.lax.stop_gradient(jnp.exp(logp) * estimator(logp, logq))
    return jnp.sum(held * logp)

  exact = jax.grad(divergence)(logits)
  np.testing.assert_allclose(jax.grad(score_function)(logits, kl.kl_k1), exact, atol=1e-6)
  for biased in (kl.kl_k2, kl.kl_k3):
    assert np.max(np.abs(jax.grad(score_function)(logits, biased) - exact)) > 0.05


def test_the_adaptive_coefficient_by_hand():
  step = lambda observed: kl.adaptive_coefficient(
    jnp.asarray(0.15), jnp.asarray(observed), 512, target=6.0, horizon=10000.0
  )
  np.testing.assert_allclose(step(6.0), 0.15, rtol=1e-6)  # on target: unchanged
  np.testing.assert_allclose(step(6.6), 0.15 * (1 + 0.1 * 0.0512), rtol=1e-6)
  np.testing.assert_allclose(step(600.0), 0.15 * (1 + 0.2 * 0.0512), rtol=1e-6)  # clipped
  np.testing.assert_allclose(step(0.0), 0.15 * (1 - 0.2 * 0.0512), rtol=1e-6)
