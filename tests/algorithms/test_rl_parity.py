"""Group advantages, PPO's details, policy losses and values of tokens against the reference libraries' own numbers, in value and gradient.

`tests/golden/rl_*.json` holds more than is compared here: losses that are not ours (SAPO, VESPO, GMPO, V-trace, ...) wait
there for theirs. What is left out of a kind that is compared is named in `differs`, with the reason. TRL, verl and trlx
whiten by a variance over n − 1, where ours, OpenAI's, is over n: the comparison converts.
"""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_parity

from rlhf_jax import types
from rlhf_jax.algorithms import grpo, ilql, nash_md, ppo, reinforce, rloo, xpo
from rlhf_jax.ops import kl, policy_gradients, q_learning, stats

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FILES = ("rl_trl_1_16", "rl_verl", "rl_openrlhf", "rl_tunix", "rl_trl_1_12", "rl_trlx", "rl_rlax")
TOLERANCE = 2e-6  # of the largest entry; TRL's advantages are float32 themselves
SCALES = {"group": "group_std", "batch": "batch_std", "none": "none"}


def sequences(mask) -> types.Sequences:
  ones = jnp.ones(mask.shape, jnp.int32)
  return types.Sequences(ones, jnp.cumsum(ones, axis=1) - 1, ones, mask)


def group_advantages(x, *, method, scale=None, eps=1e-4, kl_coef=0.0, normalize=False, **_):
  """The advantage of each answer, the same at all of its tokens, [N, G]."""
  rewards = x["rewards"]
  mask = x.get("mask", jnp.ones((rewards.size, 3)))
  logps, ref_logps = x.get("logps", 0.0 * mask), x.get("ref_logps", 0.0 * mask)
  seen = reinforce.Seen(rewards.ravel(), logps, ref_logps, mask, mask, None)
  G = rewards.shape[1]
  if method == "rloo":
    config = rloo.Config(group=G, kl_coef=kl_coef, normalize_advantages=normalize)
    advantages, _ = rloo.rloo_advantages(seen, config, {})
  else:
    config = grpo.Config(group=G, scale=SCALES[scale], scale_eps=eps)
    advantages, _ = grpo.grpo_advantages(seen, config, {})
  first = jnp.argmax(mask, axis=1)
  return {"advantages": advantages[jnp.arange(rewards.size), first].reshape(rewards.shape)}


def grpo_loss(x, *, clip_eps_low, clip_eps_high, aggregation, ratio="token", **settings):
  mask = x["mask"]
  inside = lambda values: jnp.where(mask > 0, values, 0.0)
  advantages = x["advantages"]
  if advantages.ndim == 1:
    advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
  old_logps = inside(x["old_logps"])
  ref_logps = inside(x.get("ref_logps", x["old_logps"]))
  batch = reinforce.Batch(sequences(mask), old_logps, ref_logps, inside(advantages))
  config = grpo.Config(
    clip_eps=clip_eps_low,
    clip_eps_high=clip_eps_high,
    aggregation=aggregation,
    ratio=ratio if ratio != "sequence_sum" else "token",
    dual_clip=settings.get("dual_clip"),
    surrogate=settings.get("loss_type", "clip"),
    max_new_tokens=settings.get("length", 10),
    kl_coef=settings.get("kl_coef", 0.0),
    kl_estimator=settings.get("kl_estimator", "k3"),
    kl_weighted=settings.get("kl_importance", False),
  )

  def loss(logps):
    if ratio == "sequence_sum":
      terms, _ = rloo.rloo_loss(inside(logps), batch, rloo.Config(clip_eps=clip_eps_low))
    else:
      terms, _ = grpo.grpo_loss(inside(logps), batch, config)
    return sum(term.value for term in terms.values())

  mean, gradient = jax.value_and_grad(loss)(x["logps"])
  return {"mean_loss": mean, "gradient": {"logps": gradient}}


def unbiased(whitened, mask, shift_mean=True):
  """Values whitened by the variance over n, as if by that over n − 1."""
  n = jnp.sum(mask)
  mean = 0.0 if shift_mean else stats.masked_mean(whitened, mask)
  return stats.masked((whitened - mean) * jnp.sqrt((n - 1) / n) + mean, mask)


def whiten(x, *, variance, shift_mean, eps):
  whitened = stats.whiten(x["values"], x["mask"], shift_mean=shift_mean, epsilon=eps)
  return {"whitened": unbiased(whitened, x["mask"], shift_mean)}


def gae(x, *, gamma, lambda_, whiten=False, variance=None):
  found = test_parity.gae(x, gamma=gamma, lambda_=lambda_)
  if whiten:
    found["advantages"] = unbiased(stats.whiten(found["advantages"], x["mask"]), x["mask"])
  return found


def longer_rollout(x):
  """(rollout, params, reference) of responses with `lengths`, of which the longest are cut; with room for a token after."""
  lengths, T = x["lengths"], x["logps"].shape[1]
  mask = (jnp.arange(T)[None] < lengths[:, None]).astype(jnp.float32)
  rows = types.Sequences.from_mask(jnp.ones(mask.shape, jnp.int32), mask, mask)
  last = jnp.arange(T)[None] == lengths[:, None] - 1
  rollout = types.Rollout(
    sequences=rows,
    logps=x["logps"],
    rewards=jnp.where(last, x["scores"][:, None], 0.0),
    truncated=lengths == T,
  )
  widen = lambda values: jnp.pad(values, ((0, 0), (0, 1)))
  params = {"logps": widen(x["logps"]), "values": widen(x.get("values", 0.0 * mask))}
  return rollout, params, {"reference": {"logps": widen(x["ref_logps"])}}


def annotated(x, config):
  """PPO's batch, and the mask of tokens and of the place after each response that ended."""
  rollout, params, frozen = longer_rollout(x)
  algorithm = ppo.make(test_parity.TABLE_POLICY)
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, frozen, rollout, config, extra)
  return batch, batch.end.put(batch.sequences.response_mask, batch.end.weight)


def ppo_rewards(x, *, kl_coef, kl_estimator, whiten_rewards, **_):
  """With values 0 and λ = 0 advantages are the rewards of tokens; that after the last token is its target."""
  config = ppo.Config(
    kl_coef=kl_coef,
    kl_estimator=kl_estimator,
    reward_at="after_last",
    whiten_rewards="scale" if whiten_rewards else "none",
    whiten_advantages="none",
    gamma=1e-30,  # 0 is out of range
    gae_lambda=0.0,
  )
  batch, steps = annotated(x, config)
  rewards = batch.end.put(batch.advantages, batch.end.returns)
  if whiten_rewards:
    rewards = unbiased(rewards, steps, shift_mean=False)
  return {"rewards": rewards[:, :-1]}


def ppo_advantages(x, *, kl_coef, gamma, lambda_, **_):
  config = ppo.Config(kl_coef=kl_coef, gamma=gamma, gae_lambda=lambda_, reward_at="after_last")
  batch, _ = annotated(x, config)
  advantages = unbiased(batch.advantages, batch.sequences.response_mask)
  targets = batch.end.put(batch.returns, batch.end.returns)
  return {"advantages": advantages[:, :-1], "returns": targets[:, :-1]}


def ppo_loss(x, *, value_coef, **settings):
  """The whole loss; what a case has nothing to say about is zero."""
  config = ppo.Config(
    clip_eps=settings["clip_eps_low"],
    clip_eps_high=settings["clip_eps_high"],
    dual_clip=settings["dual_clip"],
    aggregation=settings["aggregation"],
    max_new_tokens=settings.get("length", 10),
    value_clip_eps=settings.get("value_clip_eps"),
    value_coef=value_coef,
  )
  learned = {name: x.get(name, jnp.zeros_like(x["mask"])) for name in ("logps", "values")}

  def loss(learned):
    terms, metrics = test_parity.ppo_terms(learned, x, config)
    return sum(term.value for term in terms.values()), metrics

  (mean, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(learned)
  return {"mean_loss": mean, "gradient": gradient}, metrics


def ppo_joint(x, **settings):
  return ppo_loss(x, **settings)[0]


def ppo_policy(x, **settings):
  found, metrics = ppo_loss(x, value_coef=0.0, **settings)
  return found | {"clip_fraction": metrics["policy/clip_fraction"].value}


def ppo_value(x, *, clip_eps, aggregation):
  nothing = dict(clip_eps_low=0.2, clip_eps_high=0.2, dual_clip=None)
  found, metrics = ppo_loss(
    x, value_coef=1.0, value_clip_eps=clip_eps, aggregation=aggregation, **nothing
  )
  return found | {"clip_fraction": metrics["value/clip_fraction"].value}


def kl_penalty(x, *, estimator, clamp, **_):
  """The mean over tokens is what is differentiated."""

  def mean(logps):
    found = kl.penalty(estimator, logps, x["ref_logps"], clamp=clamp)
    return jnp.mean(found), found

  gradient, found = jax.grad(mean, has_aux=True)(x["logps"])
  return {"kl": found, "gradient": {"logps": gradient}}


def aggregate(x, *, aggregation, length=None):
  function = policy_gradients.AGGREGATIONS[aggregation]
  mean = lambda losses: function(losses, x["mask"], length).value
  found, gradient = jax.value_and_grad(mean)(x["losses"])
  return {"mean_loss": found, "gradient": {"losses": gradient}}


def xpo_loss(x, *, loss_type, beta, alpha):
  own_won = x["own_is_chosen"] > 0

  def losses(logps_own, logps_other):
    x_now = {**x, "logps_own": logps_own, "logps_other": logps_other}
    of = lambda name, side: jnp.sum(x_now[f"{name}_{side}"] * x[f"mask_{side}"], axis=1)
    won = lambda name: jnp.where(own_won, of(name, "own"), of(name, "other"))
    lost = lambda name: jnp.where(own_won, of(name, "other"), of(name, "own"))
    config = xpo.Config(beta=beta, alpha=alpha, loss_type=loss_type)
    pairs = won("logps"), lost("logps"), won("ref_logps"), lost("ref_logps")
    return tuple(jnp.mean(term) for term in xpo.xpo_loss(*pairs, own_won, config))

  sides = ("logps_own", "logps_other")
  logps = tuple(x[side] for side in sides)
  preference, optimism = losses(*logps)
  slopes = jax.grad(lambda *now: sum(losses(*now)), argnums=(0, 1))(*logps)
  terms = {"mean_loss": preference + optimism, "dpo": preference, "xpo": optimism}
  return {**terms, "gradient": dict(zip(sides, slopes, strict=True))}


def nash_md_loss(x, *, beta):
  """The loss's value is not compared: its KL is TRL's in gradient alone, k2 for sg(log-ratio) log π."""
  mask = x["mask"]
  logps, ref_logps = (jnp.where(mask > 0, x[name], 0.0) for name in ("logps", "ref_logps"))
  config = nash_md.Config(kl_coef=beta, kl_in="loss")
  scores = jnp.log(x["probability"]) - jnp.log1p(-x["probability"])
  rollout = SimpleNamespace(baseline=jnp.zeros_like(scores))
  seen = reinforce.Seen(scores, logps, ref_logps, mask, mask, rollout)
  advantages, _ = nash_md.nash_md_advantages(seen, config, {})
  batch = reinforce.Batch(sequences(mask), logps, ref_logps, advantages)

  def loss(now):
    terms, _ = nash_md.nash_md_loss(jnp.where(mask > 0, now, 0.0), batch, config)
    return sum(term.value for term in terms.values())

  return {
    "score": jnp.sum(advantages * logps, axis=1),
    "kl": jnp.sum(seen.kl, axis=1),
    "gradient": {"logps": jax.grad(loss)(x["logps"])},
  }


def next_value(kind, x, *, double=False, alpha=0.0):
  """What the next state is worth, [N]."""
  if kind == "q_learning":
    select = x["next_q"] if double else x["target_next_q"]
    return q_learning.double_value(select, x["target_next_q"])
  if kind == "sarsa":
    return q_learning.taken(x["next_q"], x["next_actions"].astype(int))
  logp = jax.nn.log_softmax(x["next_logits"])
  if not alpha:
    return q_learning.expected_value(x["next_q"], logp)
  least = jnp.minimum(x["next_q"], x["target_next_q"])
  return q_learning.soft_value(least, logp, 0.0, alpha)


def td(kind):
  def errors(x, **settings):
    values = next_value(kind, x, **settings)
    answers = jnp.stack([x["rewards"], 0.0 * values], 1), jnp.stack([0.0 * values, values], 1)

    @jax.vmap  # of two tokens each, with a discount of its own
    def target(rewards, values, gamma):
      row = rewards[None], values[None], jnp.ones((1, 2))
      return q_learning.targets(*row, gamma=gamma)[0, 0]

    targets = target(*answers, x["discounts"])

    def loss(q_values):
      errors = targets - q_learning.taken(q_values, x["actions"].astype(int))
      return jnp.mean(0.5 * jnp.square(errors)), errors

    (mean, errors), gradient = jax.value_and_grad(loss, has_aux=True)(x["q_values"])
    found = {"mean_loss": mean, "targets": targets, "td_errors": errors}
    return {**found, "gradient": {"q_values": gradient}}

  return errors


def expectile(x, *, tau):
  loss = lambda predictions: jnp.mean(q_learning.expectile_loss(predictions, x["targets"], tau))
  mean, gradient = jax.value_and_grad(loss)(x["predictions"])
  return {"mean_loss": mean, "gradient": {"predictions": gradient}}


def ilql_loss(x, *, tau, gamma, cql_coef, awac_coef, beta, two_qs):
  """The whole loss, of a policy that is what was recorded of it."""
  of = lambda tree, names: jnp.stack([tree[name] for name in names[: 1 + two_qs]])

  def over_vocabulary(function, trees, frozen, rows, temperature=1.0):
    (tree,) = trees
    words = types.Words(tree["logits"], of(tree, ("q1", "q2")), tree["values"][:, :-1])
    return function((words,), rows.tokens)

  config = ilql.Config(tau=tau, gamma=gamma, cql_coef=cql_coef, awac_coef=awac_coef, awac_beta=beta)
  mask, values = x["mask"][:, :-1], x["values"][:, :-1]
  rows = sequences(mask).replace(tokens=x["tokens"].astype(int))
  target_q = q_learning.least_taken(of(x, ("target_q1", "target_q2")), rows.tokens)
  batch = ilql.Batch(
    sequences=rows,
    targets=q_learning.targets(x["rewards"], values, mask, gamma=gamma),
    target_q=target_q,
    weights=jnp.exp(beta * (target_q - values)),
  )
  algorithm = ilql.make(types.Policy(None, None, over_vocabulary))

  def loss(learned):
    terms, _ = algorithm.loss(learned, {}, batch, config, {})
    return sum(term.value for term in terms.values()), terms

  learned = {n: x[n] for n in ("logits", "q1", "q2", "values") if n in x}
  (mean, terms), gradient = jax.value_and_grad(loss, has_aux=True)(learned)
  coefficients = {"q": 1.0, "v": 1.0, "cql": cql_coef, "awac": awac_coef}
  before = {n: terms[n].value / c for n, c in coefficients.items() if c}
  return {"mean_loss": mean, **before, "gradient": gradient}


OURS = {
  "group_advantages": group_advantages,
  "grpo": grpo_loss,
  "gae": gae,
  "whiten": whiten,
  "ppo_rewards": ppo_rewards,
  "ppo_advantages": ppo_advantages,
  "ppo_loss": ppo_joint,
  "ppo_policy": ppo_policy,
  "ppo_value": ppo_value,
  "kl_penalty": kl_penalty,
  "aggregate": aggregate,
  "xpo": xpo_loss,
  "nash_md": nash_md_loss,
  **{kind: td(kind) for kind in ("q_learning", "sarsa", "expected_sarsa")},
  "expectile": expectile,
  "ilql": ilql_loss,
}
WITHOUT_EMPTY = (
  "leaves responses without tokens out of a mean over responses; TRL and we count them as 0"
)


def differs(library: str, case: dict) -> str | None:
  """Why a case is not ours, or None."""
  s, x = case["settings"], case["inputs"]
  if case["kind"] == "group_advantages":
    if s["method"] not in ("grpo", "dr_grpo", "rloo") or np.ndim(x["rewards"]) != 2:
      return "another estimator"
    return None
  if case["kind"] == "kl_penalty":
    if s["estimator"] not in kl.KL_ESTIMATORS:
      return "another estimator: the absolute log-ratio"
    if s["unbiased_gradient"]:
      return "the value of one estimator with the gradient of k2; ours is to ask for k2"
    return None
  if s.get("aggregation", "token") not in policy_gradients.AGGREGATIONS or "level" in s:
    return "another aggregation"
  empty = "mask" in x and np.any(np.sum(x["mask"], axis=1) == 0)
  if case["kind"] == "aggregate":
    return WITHOUT_EMPTY if empty and s["aggregation"] != "token" else None
  if case["kind"] != "grpo":
    return None
  if s.get("loss_type", "clip") not in ("clip", "cispo") or "off_policy_threshold" in s:
    return "another loss"
  if s.get("ratio", "token") not in ("token", "sequence", "sequence_sum"):
    return "GSPO-token, whose gradient is GSPO's where a response has one advantage"
  if s.get("kl_estimator", "k3") not in kl.KL_ESTIMATORS or s.get("kl_unbiased_gradient"):
    return "another estimator of KL, or a gradient of its own for it"
  return WITHOUT_EMPTY if empty and not library.startswith("trl") else None


def cases():
  """(library file's head, case) for every recorded case that is ours."""
  for name in FILES:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    for case in golden["cases"]:
      if case["kind"] in OURS and differs(golden["library"], case) is None:
        yield golden, case


def errors(case) -> tuple[dict, dict]:
  """The largest difference over the largest entry, for each recorded output of ours and each gradient."""
  inputs = {name: jnp.asarray(value, jnp.float32) for name, value in case["inputs"].items()}
  ours = OURS[case["kind"]](inputs, **case["settings"])
  gradients = ours.pop("gradient", {})

  def error(mine, reference):
    reference = np.reshape(np.asarray(reference, np.float64), np.shape(mine))
    difference = np.abs(np.asarray(mine, np.float64) - reference).max()
    return difference / max(np.abs(reference).max(), np.finfo(np.float32).tiny)

  return (
    {name: error(value, case["outputs"][name]) for name, value in ours.items()},
    {name: error(gradients[name], value) for name, value in case["gradients"].items()},
  )


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, id=f"{golden['library']} {golden['version'][:8]}: {case['name']}")
    for golden, case in cases()
  ],
)
def test_values_and_gradients_are_those_of_the_reference(case):
  values, gradients = errors(case)
  too_far = {name: e for name, e in {**values, **gradients}.items() if not e <= TOLERANCE}
  assert values and not too_far, f"{case['function']} differs in {too_far}"
