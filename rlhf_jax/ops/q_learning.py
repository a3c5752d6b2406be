"""Values of tokens: what a state is worth by the Q values of its tokens, and what they are learned from.

A state is a place where the policy chooses a token, and its actions are the vocabulary. q is float32[..., V], the Q of every
token there, and logp the log-probabilities of a policy; the functions return float32[...] unless they say otherwise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.ops import stats

Array = jax.Array


def taken(q: Array, tokens: Array) -> Array:
  """Q of the tokens int32[...] that were chosen."""
  return jnp.take_along_axis(q, tokens[..., None], axis=-1)[..., 0]


def least_taken(q: Array, tokens: Array) -> Array:
  """The smallest of several heads' Q, float32[H, ..., V], of the tokens that were chosen."""
  return jnp.min(jnp.stack([taken(head, tokens) for head in q]), axis=0)


def double_value(select: Array, q: Array) -> Array:
  """q at the token that `select` prefers (arXiv:1509.06461): maxₐ q where the two are one."""
  return taken(q, jnp.argmax(select, axis=-1))


def expected_value(q: Array, logp: Array) -> Array:
  """Σₐ π(a) q(a): what SARSA's next Q is on average (expected SARSA; Sutton and Barto 2018, section 6.6)."""
  return jnp.sum(jnp.exp(logp) * q, axis=-1)


def soft_value(q: Array, logp: Array, prior_logp: Array | float, alpha) -> Array:
  """Σₐ π(a) (q(a) − α (log π(a) − log p(a))), float32[...].

  With the prior p = 1 it is soft actor-critic's value with entropy (arXiv:1910.07207, eq. 10).
  """
  return jnp.sum(jnp.exp(logp) * (q - alpha * (logp - prior_logp)), axis=-1)


def softmax_value(q: Array, prior_logp: Array, alpha) -> Array:
  """α log Σₐ p(a) exp(q(a) / α), the largest `soft_value` of any policy (arXiv:1702.08165, eq. 3).

  Between the mean of q under the prior p (α → ∞) and its maximum (α → 0).
  """
  return alpha * jax.nn.logsumexp(prior_logp + q / alpha, axis=-1)


def targets(rewards: Array, values: Array, mask: Array, *, gamma, lambda_=0.0) -> Array:
  """What the Q of each chosen token should be, float32[B, T]; 0 outside the mask.

    G_t = r_t + γ ((1 − λ) V_{t+1} + λ G_{t+1})

  `values` float32[B, T] are V, what each token's state is worth; t + 1 is the next token *inside the mask*, and after the last
  one nothing follows. λ = 0 looks one token ahead, λ = 1 to the end. With V = Q(a) it is SARSA(λ), with V = maxₐ Q
  Peng's Q(λ), which at λ > 0 lets the policy's own choices into the target (Sutton and Barto 2018, chapter 12).
  """

  def backward(carry, step):
    next_target, next_value = carry
    reward, value, inside = step
    target = reward + gamma * ((1.0 - lambda_) * next_value + lambda_ * next_target)
    carry = jnp.where(inside, target, next_target), jnp.where(inside, value, next_value)
    return carry, jnp.where(inside, target, 0.0)

  steps = (stats.masked(rewards, mask).T, stats.masked(values, mask).T, mask.T > 0)
  nothing = jnp.zeros(rewards.shape[0], rewards.dtype)
  return jax.lax.scan(backward, (nothing, nothing), steps, reverse=True)[1].T


def expectile_loss(predictions: Array, values: Array, tau) -> Array:
  """|τ − 1(u < 0)| u² of u = values − predictions (arXiv:2110.06169, eq. 5).

  Its minimum is the mean of the values at τ = ½ and tends to their maximum as τ → 1.
  """
  u = values - predictions
  return jnp.where(u < 0, 1.0 - tau, tau) * jnp.square(u)


def conservative_loss(q: Array, tokens: Array) -> Array:
  """log Σₐ exp q(a) − q(token): lowers what the data never did (arXiv:2006.04779, eq. 4)."""
  return jax.nn.logsumexp(q, axis=-1) - taken(q, tokens)


def target_network(params) -> dict:
  """An algorithm's own state that holds a copy of `params`, for `follow`."""
  return {"target": params, "updates": jnp.zeros((), jnp.int32)}


def follow(extra: dict, params, *, rate, every: int) -> dict:
  """`extra` after an update of `params`: every `every`-th time, its copy goes `rate` of the way to them."""
  updates = extra["updates"] + 1
  now = jnp.where(updates % every == 0, rate, 0.0)
  target = jax.tree.map(lambda t, p: t + now * (p - t), extra["target"], params)
  return {**extra, "target": target, "updates": updates}
