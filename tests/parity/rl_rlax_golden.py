"""Golden numbers from rlax: V-trace, importance-corrected errors, Q-learning, SARSA, expectile and policy-gradient losses.

  pip install jax==0.10.2 chex distrax dm_env rlax==0.1.9
  python tests/parity/rl_rlax_golden.py

Written to `rl_rlax.json`, beside `rlax.json`.
"""

from __future__ import annotations

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402
import rlax  # noqa: E402
from rlax._src import multistep  # noqa: E402

GOLDEN = record.Recorder("rlax", "rlax", "jax", file="rl_rlax")


def off_policy() -> dict:
  step = record.group_step()
  return record.trajectories() | dict(logps=step["logps"], old_logps=step["old_logps"])


def by_row(function, inputs, names, settings):
  """Calls rlax on each row's unmasked tokens and lays what it returns back where they were."""
  found = {name: np.zeros_like(inputs["rewards"]) for name in names}
  for row in range(len(inputs["rewards"])):
    inside = inputs["mask"][row] > 0
    pick = lambda name, row=row, inside=inside: jnp.asarray(inputs[name][row, inside])
    values = jnp.append(pick("values"), inputs["bootstrap"][row])
    ratios = jnp.exp(pick("logps") - pick("old_logps"))
    answers = function(pick("rewards"), values, ratios, **settings)
    for name, answer in zip(names, answers, strict=True):
      found[name][row, inside] = answer
  return found


def vtrace(rewards, values, ratios, *, gamma, lambda_, clip_rho, clip_pg_rho):
  discounts = jnp.full_like(rewards, gamma)
  answer = rlax.vtrace_td_error_and_advantage(
    *(values[:-1], values[1:], rewards, discounts, ratios),
    lambda_=lambda_,
    clip_rho_threshold=clip_rho,
    clip_pg_rho_threshold=clip_pg_rho,
  )
  return answer.errors + values[:-1], answer.pg_advantage


def record_vtrace():
  inputs = off_policy()
  cases = [
    (0.99, 1.0, 1.0, 1.0),
    (1.0, 0.9, 1.0, 1.0),
    (0.9, 0.95, 1.5, 2.0),
    (0.99, 0.0, 1.0, 1.0),
  ]
  for gamma, lambda_, clip_rho, clip_pg_rho in cases:
    settings = dict(gamma=gamma, lambda_=lambda_, clip_rho=clip_rho, clip_pg_rho=clip_pg_rho)
    GOLDEN.case(
      "vtrace",
      f"ragged rows, gaps, bootstrap, gamma {gamma}, lambda {lambda_}, clips {clip_rho} and {clip_pg_rho}",
      "rlax.vtrace_td_error_and_advantage",
      inputs,
      by_row(vtrace, inputs, ("targets", "pg_advantages"), settings),
      settings=settings,
      note=(
        "called on each row's unmasked tokens; the trace's own clip c is 1, times lambda. The advantage's Q takes lambda "
        "times the next target and 1 − lambda times the next value, the bootstrap at the end: arXiv:1802.01561 has the "
        "next target alone, the same at lambda 1"
      ),
    )


def importance_corrected(rewards, values, ratios, *, gamma, lambda_):
  discounts = jnp.full_like(rewards, gamma)
  return (multistep.importance_corrected_td_errors(rewards, discounts, ratios, lambda_, values),)


def record_importance_corrected():
  inputs = off_policy()
  for gamma, lambda_ in ((0.99, 0.95), (1.0, 0.5)):
    settings = dict(gamma=gamma, lambda_=lambda_)
    GOLDEN.case(
      "importance_corrected_td",
      f"ragged rows, gaps, bootstrap, gamma {gamma}, lambda {lambda_}",
      "rlax._src.multistep.importance_corrected_td_errors",
      inputs,
      by_row(importance_corrected, inputs, ("td_errors",), settings),
      settings=settings,
      note="called on each row's unmasked tokens; ratios are not clipped",
    )


def td_case(kind, name, function, inputs, settings, td_error, note):
  """`td_error` of one step's `q_values`, and the rest of that step by name."""

  def mean_loss(q_values):
    steps = {key: jnp.asarray(value) for key, value in inputs.items()} | dict(q_values=q_values)
    errors = jax.vmap(td_error)(steps)
    return jnp.mean(rlax.l2_loss(errors)), errors

  q_values = jnp.asarray(inputs["q_values"])
  (loss, errors), gradient = jax.value_and_grad(mean_loss, has_aux=True)(q_values)
  taken = inputs["q_values"][np.arange(len(errors)), inputs["actions"]]
  GOLDEN.case(
    kind,
    name,
    function,
    inputs,
    dict(td_errors=errors, targets=errors + taken, mean_loss=loss),
    settings=settings,
    gradients=dict(q_values=gradient),
    note=note
    + "; the loss is the mean of half the squared errors, rlax.l2_loss, with the target held fixed",
  )


def record_td():
  every = record.transitions()
  keep = lambda *extra: {
    key: every[key] for key in ("q_values", "actions", "rewards", "discounts", *extra)
  }
  head = lambda x: (x["q_values"], x["actions"], x["rewards"], x["discounts"])
  td_case(
    "q_learning",
    "the target network's largest Q",
    "rlax.q_learning",
    keep("target_next_q"),
    dict(double=False),
    lambda x: rlax.q_learning(*head(x), x["target_next_q"]),
    "a discount of 0 ends the episode",
  )
  td_case(
    "q_learning",
    "double",
    "rlax.double_q_learning",
    keep("next_q", "target_next_q"),
    dict(double=True),
    lambda x: rlax.double_q_learning(*head(x), x["target_next_q"], x["next_q"]),
    "the learner's Q chooses the next action, the target network's values it (arXiv:1509.06461)",
  )
  td_case(
    "sarsa",
    "the next action's Q",
    "rlax.sarsa",
    keep("next_q", "next_actions"),
    {},
    lambda x: rlax.sarsa(*head(x), x["next_q"], x["next_actions"]),
    "a discount of 0 ends the episode",
  )
  td_case(
    "expected_sarsa",
    "the policy's mean Q",
    "rlax.expected_sarsa",
    keep("next_q", "next_logits"),
    dict(alpha=0.0),
    lambda x: rlax.expected_sarsa(*head(x), x["next_q"], jax.nn.softmax(x["next_logits"])),
    "probabilities are the softmax of next_logits",
  )
  for alpha in (0.125, 1.0):
    td_case(
      "expected_sarsa",
      f"discrete soft actor-critic's target, temperature {alpha}",
      "rlax.expected_sarsa",
      keep("next_q", "target_next_q", "next_logits"),
      dict(alpha=alpha),
      lambda x, alpha=alpha: rlax.expected_sarsa(
        *head(x),
        jnp.minimum(x["next_q"], x["target_next_q"]) - alpha * jax.nn.log_softmax(x["next_logits"]),
        jax.nn.softmax(x["next_logits"]),
      ),
      "r + discount Σ π (min(Q1, Q2) − alpha log π) (arXiv:1910.07207): rlax has no such loss, it is given those values as "
      "its Q; Q1 and Q2 are next_q and target_next_q",
    )


def record_expectile():
  inputs = dict(
    predictions=record.value_step()["values"].reshape(-1),
    targets=record.value_step()["returns"].reshape(-1),
  )
  for tau in (0.5, 0.7, 0.9):
    mean_loss = lambda predictions, tau=tau: jnp.mean(
      rlax.expectile_loss(predictions, jnp.asarray(inputs["targets"]), tau)
    )
    loss, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(inputs["predictions"]))
    GOLDEN.case(
      "expectile",
      f"tau {tau}",
      "rlax.expectile_loss",
      inputs,
      dict(mean_loss=loss),
      settings=dict(tau=tau),
      gradients=dict(predictions=gradient),
      note="|tau − 1(target < prediction)| (target − prediction)², not halved (arXiv:2110.06169, section 4.1)",
    )


def record_policy_gradient():
  x = record.transitions()
  rng = np.random.default_rng(25)
  inputs = dict(
    logits=x["next_logits"],
    actions=x["actions"],
    advantages=record.grid(rng.normal(0, 1, 6)),
    weights=np.array([1.0, 1, 1, 0, 1, 0.5]),
  )
  weights = jnp.asarray(inputs["weights"])
  cases = {
    "reinforce": (
      ("logits", "actions", "advantages", "weights"),
      "rlax.policy_gradient_loss",
      lambda logits: rlax.policy_gradient_loss(
        logits, jnp.asarray(inputs["actions"]), jnp.asarray(inputs["advantages"]), weights
      ),
      "−A log π(a), the mean over steps of the weighted terms",
    ),
    "entropy": (
      ("logits", "weights"),
      "rlax.entropy_loss",
      lambda logits: rlax.entropy_loss(logits, weights),
      "minus the entropy, the mean over steps of the weighted terms",
    ),
    "qpg": (
      ("logits", "q_values"),
      "rlax.qpg_loss",
      lambda logits: rlax.qpg_loss(logits, jnp.asarray(x["q_values"])),
      "−Σ π sg(Q − Σ π Q) over all actions (arXiv:1810.09026); its value is 0, only the gradient says something",
    ),
  }
  for loss_name, (names, function, mean_loss, note) in cases.items():
    loss, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(inputs["logits"]))
    given = inputs | dict(q_values=x["q_values"])
    GOLDEN.case(
      "policy_gradient",
      loss_name,
      function,
      {name: given[name] for name in names},
      {} if loss_name == "qpg" else dict(mean_loss=loss),
      settings=dict(loss=loss_name),
      gradients=dict(logits=gradient),
      note=note,
    )


if __name__ == "__main__":
  record_vtrace()
  record_importance_corrected()
  record_td()
  record_expectile()
  record_policy_gradient()
  GOLDEN.write()
