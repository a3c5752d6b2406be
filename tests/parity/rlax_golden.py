"""Golden numbers from rlax: advantage estimation and the clipped surrogate.

pip install jax==0.10.2 chex distrax dm_env rlax==0.1.9
python tests/parity/rlax_golden.py
"""

from __future__ import annotations

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402
import rlax  # noqa: E402


def gae(rewards, values, mask, bootstrap, gamma, lambda_):
  """rlax's function on each row with the masked tokens cut out, laid back where they were."""
  advantages = np.zeros_like(rewards)
  for row in range(len(rewards)):
    inside = mask[row] > 0
    advantages[row, inside] = rlax.truncated_generalized_advantage_estimation(
      jnp.asarray(rewards[row, inside]),
      jnp.full(int(inside.sum()), gamma),
      lambda_,
      jnp.append(jnp.asarray(values[row, inside]), bootstrap[row]),
    )
  return advantages


def record_gae(golden):
  function = "rlax.truncated_generalized_advantage_estimation"
  # The rows of rlax's own test. The second has discount 0 after its fourth step: an episode's end,
  # which here is the end of a row, so its last step is a row of its own.
  rewards = np.array([[0, 0, 1, 0, -0.5]])
  values = np.array([[1, 4, -3, -2, -1]], np.float64)
  ended_rewards = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], np.float64)
  ended_values = np.array([[-3, -2, -1, 0, 0], [0, 0, 0, 0, 5]], np.float64)
  ended_mask = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1]], np.float64)
  for lambda_ in (1.0, 0.7, 0.4):
    inputs = dict(rewards=rewards, values=values, mask=np.ones((1, 5)), bootstrap=np.array([-1.0]))
    settings = dict(gamma=0.99, lambda_=lambda_)
    golden.case(
      "gae",
      f"rlax's first row, lambda {lambda_}",
      function,
      inputs,
      dict(advantages=gae(**inputs, **settings)),
      settings=settings,
    )
    inputs = dict(
      rewards=ended_rewards, values=ended_values, mask=ended_mask, bootstrap=np.array([0.0, -1.0])
    )
    settings = dict(gamma=0.9, lambda_=lambda_)
    whole_row = rlax.truncated_generalized_advantage_estimation(
      jnp.asarray([0.0, 0, 0, 0, 1]),
      jnp.asarray([0.9, 0.9, 0.9, 0.0, 0.9]),
      lambda_,
      jnp.asarray([-3.0, -2, -1, 0, 5, -1]),
    )
    golden.case(
      "gae",
      f"rlax's second row, an end in the middle, lambda {lambda_}",
      function,
      inputs,
      dict(advantages=np.where(ended_mask > 0, np.asarray(whole_row)[None], 0.0)),
      settings=settings,
    )
  for gamma, lambda_ in ((0.99, 0.95), (1.0, 1.0), (0.9, 0.0)):
    inputs, settings = record.trajectories(), dict(gamma=gamma, lambda_=lambda_)
    golden.case(
      "gae",
      f"ragged rows, gaps, bootstrap, gamma {gamma}, lambda {lambda_}",
      function,
      inputs,
      dict(advantages=gae(**inputs, **settings)),
      settings=settings,
      note="called on each row's unmasked tokens",
    )


def record_surrogate(golden):
  def mean_loss(logps, old_logps, advantages, mask, clip_eps):
    inside = mask > 0
    ratios = jnp.exp(logps[inside] - old_logps[inside])
    return rlax.clipped_surrogate_pg_loss(ratios, jnp.asarray(advantages[inside]), clip_eps)

  logits = np.array([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
  old_logits = np.array([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])
  chosen = lambda x: np.asarray(jax.nn.log_softmax(x))[np.arange(3), np.arange(3)][None]
  own = dict(logps=chosen(logits), old_logps=chosen(old_logits), mask=np.ones((1, 3)))
  cases = {
    "rlax's first row": (own | dict(advantages=np.array([[0.3, 0.2, 0.1]])), 0.2),
    "rlax's second row": (own | dict(advantages=-np.array([[0.3, 0.2, 0.1]])), 0.2),
    "clipped on both sides": (record.policy_step(), 0.2),
    "a narrow clip": (record.policy_step(seed=12), 0.05),
  }
  for name, (inputs, clip_eps) in cases.items():
    loss, grad = jax.value_and_grad(mean_loss)(
      jnp.asarray(inputs["logps"]),
      **{key: value for key, value in inputs.items() if key != "logps"},
      clip_eps=clip_eps,
    )
    golden.case(
      "clipped_surrogate",
      name,
      "rlax.clipped_surrogate_pg_loss",
      inputs,
      dict(mean_loss=loss),
      settings=dict(clip_eps=clip_eps),
      gradients=dict(logps=grad),
    )


if __name__ == "__main__":
  golden = record.Recorder("rlax", "rlax", "jax")
  record_gae(golden)
  record_surrogate(golden)
  golden.write()
