"""Every loss against the reference libraries' own numbers, then by hand, then at the identities.

`tests/golden/*.json` holds what rlax, Tunix, OpenRLHF, TRL and Transformers computed, mostly in
float64, for inputs that float32 holds exactly. Ours, in float32, must agree to 1e-6 of the largest
entry, in value and in gradient. A new reference is a case in a JSON file; a new kind of case is one
function in `OURS`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import types
from rlhf_jax.algorithms import (
  alphapo,
  bco,
  cpo,
  dpo,
  kto,
  orpo,
  ppo,
  reward_from_rankings,
  reward_from_tokens,
  reward_model,
  sft,
  simpo,
)
from rlhf_jax.evaluation import ranking
from rlhf_jax.ops import kl, logprobs, returns, reward, sampling, stats

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-6
LIBRARIES = (  # a file of tests/golden each
  "rlax",
  "tunix",
  "openrlhf",
  "openrlhf_0_8",
  "trl",
  "trl_1_16",
  "open_instruct",
  "choix",
  "statsmodels",
  "transformers",
)


def sequences(mask):
  """Rows in which every token is real and `mask` says which ones the policy chose."""
  ones = jnp.ones(mask.shape, jnp.int32)
  return types.Sequences(ones, jnp.cumsum(ones, axis=1) - 1, ones, mask)


# A policy whose parameters are the token statistics themselves.
def evaluate(params, frozen, batch, temperature):
  return types.TokenStats(
    params["logps"], jnp.zeros_like(params["logps"]), params.get("values"), params.get("collision")
  )


def compare(params, other, frozen, batch, temperature):
  both = evaluate(params, {}, batch, 1.0), evaluate(other, {}, batch, 1.0)
  return *both, jnp.zeros_like(params["logps"])


TABLE_POLICY = types.Policy(evaluate, compare)


def gae(x, *, gamma, lambda_):
  advantages = returns.gae(
    x["rewards"], x["values"], x["mask"], x["bootstrap"], gamma=gamma, lambda_=lambda_
  )
  return {"advantages": advantages, "returns": stats.masked(advantages + x["values"], x["mask"])}


def ppo_terms(params, x, config):
  batch = ppo.Batch(
    sequences(x["mask"]),
    old_logps=x.get("old_logps", jnp.zeros_like(x["mask"])),
    old_values=x.get("old_values", jnp.zeros_like(x["mask"])),
    advantages=x.get("advantages", jnp.zeros_like(x["mask"])),
    returns=x.get("returns", jnp.zeros_like(x["mask"])),
  )
  return ppo.make(TABLE_POLICY).loss(params, {}, batch, config, {})


def clipped_surrogate(x, *, clip_eps):
  def loss(logps):
    params = {"logps": logps, "values": jnp.zeros_like(logps)}
    terms, metrics = ppo_terms(params, x, ppo.Config(clip_eps=clip_eps))
    return terms["policy"].value, metrics["policy/clip_fraction"].value

  (mean, clipped), gradient = jax.value_and_grad(loss, has_aux=True)(x["logps"])
  return {"mean_loss": mean, "clip_fraction": clipped, "gradient": {"logps": gradient}}


def clipped_value_loss(x, *, clip_eps):
  def loss(values):
    params = {"logps": jnp.zeros_like(values), "values": values}
    terms, _ = ppo_terms(params, x, ppo.Config(value_clip_eps=clip_eps, value_coef=1.0))
    return terms["value"].value

  mean, gradient = jax.value_and_grad(loss)(x["values"])
  return {"mean_loss": mean, "gradient": {"values": gradient}}


def shaped_reward(x, *, kl_coef, reward_clip):
  """The rewards that PPO's advantages start from: with values 0 and lambda 0 they are the advantages."""
  score_early = jnp.zeros_like(x["mask"]).at[:, 4].set(x["scores"])
  score_early = score_early.at[1].set(0.0).at[1, 2].set(x["scores"][1])  # row 1 ends before
  rollout = types.Rollout(
    sequences(x["mask"]),
    logps=x["logps"],
    ref_logps=x["ref_logps"],
    values=jnp.zeros_like(x["mask"]),
    rewards=score_early,
    truncated=jnp.zeros(len(x["mask"]), bool),
    bootstrap=jnp.zeros(len(x["mask"])),
  )
  config = ppo.Config(
    kl_coef=kl_coef, reward_clip=reward_clip, gae_lambda=0.0, whiten_advantages="none"
  )
  params = {"logps": x["logps"], "values": jnp.zeros_like(x["mask"])}
  frozen = {"reference": {"logps": x["ref_logps"]}}
  algorithm = ppo.make(TABLE_POLICY)
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, frozen, rollout, config, extra)
  return {"rewards": batch.advantages}


def with_gradient(loss, **args):
  """The mean of `loss(**args)`, float32[B], the losses themselves, and the gradient of the mean."""

  def mean(args):
    losses = loss(**args)
    return jnp.mean(losses), losses

  (value, losses), gradient = jax.value_and_grad(mean, has_aux=True)(args)
  return {"mean_loss": value, "losses": losses, "gradient": gradient}


def dpo_pairs(x, delta=0.0, **settings):
  config = dpo.Config(**settings)

  def loss(logps_w, logps_l):
    return dpo.dpo_loss(logps_w, logps_l, x["ref_logps_w"], x["ref_logps_l"], config, delta=delta)

  return {
    **with_gradient(loss, logps_w=x["logps_w"], logps_l=x["logps_l"]),
    "rewards_w": config.beta * (x["logps_w"] - x["ref_logps_w"]),
    "rewards_l": config.beta * (x["logps_l"] - x["ref_logps_l"]),
  }


def dpo_tokens(x, **settings):
  """The whole algorithm on token log-probabilities, from annotate() to the loss."""
  config = dpo.Config(**settings)
  pairs = types.PreferenceBatch(
    sequences(x["mask_w"]),
    sequences(x["mask_l"]),
    preference=jnp.ones(len(x["mask_w"])),
    margin=jnp.zeros(len(x["mask_w"])),
    ref_chosen_logps=x["ref_logps_w"],
    ref_rejected_logps=x["ref_logps_l"],
  )
  algorithm = dpo.make(TABLE_POLICY)
  collision = [x.get(f"collision_{side}", jnp.zeros_like(x["mask_w"])) for side in "wl"]

  def loss(logps, pairs, only=None):
    rows = slice(None) if only is None else slice(only, only + 1)
    params = {
      "logps": jnp.concatenate([logps["logps_w"], logps["logps_l"]]),
      "collision": jnp.concatenate([side[rows] for side in collision]),
    }
    batch, _ = algorithm.annotate(params, {}, pairs, config, {})
    terms, _ = algorithm.loss(params, {}, batch, config, {})
    return sum(term.value for term in terms.values())

  logps = {side: x[side] for side in ("logps_w", "logps_l")}
  mean, gradient = jax.value_and_grad(loss)(logps, pairs)
  row = lambda tree, i: jax.tree.map(lambda a: a[i : i + 1], tree)
  alone = [loss(row(logps, i), row(pairs, i), i) for i in range(len(x["mask_w"]))]
  return {"mean_loss": mean, "losses": jnp.stack(alone), "gradient": gradient}


def kto_rows(x, **settings):
  config = kto.Config(**settings)
  kl_now = jnp.zeros(())
  if config.loss_type == "kto":
    kl_now = kto.baseline(x["kl_logps"], x["kl_ref_logps"])
  loss = lambda logps: kto.kto_loss(logps, x["ref_logps"], x["labels"], kl_now, config)
  return {**with_gradient(loss, logps=x["logps"]), "kl": kl_now}


def bco_rows(x, *, beta, delta):
  config = bco.Config(beta=beta)
  loss = lambda logps: bco.bco_loss(logps, x["ref_logps"], x["labels"], delta, config)
  return with_gradient(loss, logps=x["logps"])


def by_reward(module, config):
  """SimPO's loss on the reward of `module`, from averaged log-probabilities."""
  reward_of = lambda logps: module.reward(logps, config)
  return lambda logps_w, logps_l: simpo.margin_loss(reward_of(logps_w), reward_of(logps_l), config)


def cpo_pairs(x, *, loss_type, simpo_gamma=0.0, alpha=0.0, **settings):
  if loss_type == "simpo":
    loss = by_reward(simpo, simpo.Config(gamma=simpo_gamma, **settings))
  elif loss_type == "alphapo":
    loss = by_reward(alphapo, alphapo.Config(gamma=simpo_gamma, alpha=alpha, **settings))
  else:
    config = cpo.Config(loss_type=loss_type, **settings)
    loss = lambda logps_w, logps_l: cpo.cpo_loss(logps_w, logps_l, config)
  return with_gradient(loss, logps_w=x["logps_w"], logps_l=x["logps_l"])


def orpo_pairs(x, *, beta):
  loss = lambda logps_w, logps_l: beta * orpo.odds_ratio_loss(logps_w, logps_l)
  return with_gradient(loss, logps_w=x["logps_w"], logps_l=x["logps_l"])


# A reward model whose parameters are the scores themselves, a row or a token each.
def scores_of(params, frozen, sequences):
  return params["scores"]


TABLE_SCORER = types.Scorer(scores_of, outputs=scores_of, tokens=scores_of)


def reward_loss(module, config, scores, batch, link=None):
  """The sum of a reward model's terms, float32[], from scores alone."""
  params = {"scores": scores} if link is None else {"scores": scores, "link": link}
  terms, _ = module.make(TABLE_SCORER).loss(params, {}, batch, config, {})
  return sum(term.value for term in terms.values())


def bradley_terry(x, *, margin=False, centering=None):
  rows = sequences(jnp.ones((len(x["chosen"]), 2)))
  batch = types.PreferenceBatch(
    rows,
    rows,
    preference=jnp.ones(len(x["chosen"])),
    margin=x["margin"] if margin else jnp.zeros(len(x["chosen"])),
  )
  config = reward_model.Config(margin=margin, centering=centering)

  def loss(chosen, rejected):
    return reward_loss(reward_model, config, jnp.concatenate([chosen, rejected]), batch)

  mean, gradient = jax.value_and_grad(loss, argnums=(0, 1))(x["chosen"], x["rejected"])
  return {
    "mean_loss": mean,
    "gradient": dict(zip(("chosen", "rejected"), gradient, strict=True)),
  }


def row_losses(loss, scores):
  """Each row's loss and the mean over rows, from `loss(scores)` float32[rows]; the gradient is the mean's."""
  return {
    "losses": loss(scores),
    "mean_loss": jnp.mean(loss(scores)),
    "gradient": {"scores": jax.grad(lambda s: jnp.mean(loss(s)))(scores)},
  }


def rankings(x, **settings):
  """The algorithm's own loss of each ranking alone; items are answers of one token, all different."""
  config = reward_from_rankings.Config(**settings)
  ranks = x["ranks"].astype(jnp.int32)
  tokens = jnp.broadcast_to(jnp.arange(ranks.shape[1])[:, None], (*ranks.shape, 1))
  answers = types.Sequences.from_mask(tokens, jnp.ones_like(tokens), jnp.ones_like(tokens))

  def loss(scores):
    one = lambda i: reward_loss(
      reward_from_rankings,
      config,
      scores,
      types.RankingBatch(jax.tree.map(lambda a: a[i : i + 1], answers), ranks[i : i + 1]),
    )
    return jnp.stack([one(i) for i in range(len(ranks))])

  return row_losses(loss, x["scores"])


def top_one(x):
  offered, winners = x["offered"], x["winners"].astype(jnp.int32)
  first = jax.nn.one_hot(winners, offered.shape[1])
  ranks = (2.0 * offered - first).astype(jnp.int32)  # the winner first, the others offered second
  return rankings({"scores": x["scores"], "ranks": ranks}, loss="top_one", unranked="ignored")


def comparisons(x):
  winner, loser = x["pairs"].astype(jnp.int32).T

  def loss(scores):
    return reward.logistic_loss(scores[winner] - scores[loser], 1.0)

  return row_losses(loss, x["scores"])


def abilities(x):
  return {"abilities": jnp.asarray(ranking.bradley_terry(np.asarray(x["wins"], float)).abilities)}


def ordered_classes(x):
  cutpoints, labels = x["cutpoints"], x["labels"].astype(jnp.int32)
  link = {"first": cutpoints[0], "log_gaps": jnp.log(jnp.diff(cutpoints))}

  def loss(scores):
    return reward.cumulative_link_loss(scores, labels, reward.cutpoints(link))

  return row_losses(loss, x["scores"])


def process_labels(x):
  batch = types.LabelledBatch(
    sequences(jnp.ones_like(x["mask"])), jnp.where(x["mask"] > 0, x["labels"], jnp.nan)
  )
  config = reward_from_tokens.Config()
  loss = lambda scores: reward_loss(reward_from_tokens, config, scores, batch)
  mean, gradient = jax.value_and_grad(loss)(x["scores"])
  return {"mean_loss": mean, "gradient": {"scores": gradient}}


def sft_loss(x):
  def loss(logps):
    widen = lambda a: jnp.pad(a, ((0, 0), (1, 0)))  # by a first token, which nothing predicts
    batch, params = sequences(widen(x["mask"])), {"logps": widen(logps)}
    terms, _ = sft.make(TABLE_POLICY).loss(params, {}, batch, sft.Config(), {})
    return terms["nll"].value

  mean, gradient = jax.value_and_grad(loss)(x["logps"])
  return {"mean_loss": mean, "gradient": {"logps": gradient}}


def kl_estimate(x, *, estimator):
  function = kl.KL_ESTIMATORS[estimator]
  mean = lambda logps: jnp.mean(function(logps, x["ref_logps"]))
  return {
    "kl": function(x["logps"], x["ref_logps"]),
    "gradient": {"logps": jax.grad(mean)(x["logps"])},
  }


def token_logps(x, *, temperature):
  tokens = x["tokens"].astype(jnp.int32)

  def stats_of(logits):
    unembed = lambda hidden: hidden  # the hidden states are the logits
    segments = jnp.ones_like(tokens)
    logps, entropy, _ = logprobs.token_stats(
      logits, tokens, segments, unembed, temperature, chunk=8
    )
    return logps[:, 1:], entropy[:, 1:]

  logps, entropy = stats_of(x["logits"])
  gradient = jax.grad(lambda logits: jnp.mean(stats_of(logits)[0]))(x["logits"])
  return {"logps": logps, "entropy": entropy, "gradient": {"logits": gradient}}


def bessel(mask):
  """From the biased variance, which is ours, to the unbiased one."""
  return jnp.sum(mask) / (jnp.sum(mask) - 1)


def masked_statistics(x, *, variance):
  var = stats.masked_var(x["values"], x["mask"])
  if variance == "unbiased":
    var = var * bessel(x["mask"])
  return {"mean": stats.masked_mean(x["values"], x["mask"]), "variance": var}


def whiten(x, *, variance, shift_mean=True):
  whitened = stats.whiten(x["values"], x["mask"], shift_mean=shift_mean)
  if variance == "unbiased":
    mean = jnp.zeros(()) if shift_mean else stats.masked_mean(x["values"], x["mask"])
    whitened = (whitened - mean) / jnp.sqrt(bessel(x["mask"])) + mean
  return {"whitened": stats.masked(whitened, x["mask"])}


def truncate(x, **settings):
  return {"probs": jax.nn.softmax(sampling.truncate(x["logits"], **settings), axis=-1)}


def adaptive_kl(x, *, initial, target, horizon, episodes):
  coefficients = [jnp.asarray(initial)]
  for observed in x["kl"]:
    coefficients.append(
      kl.adaptive_coefficient(coefficients[-1], observed, episodes, target=target, horizon=horizon)
    )
  return {"coefficients": jnp.stack(coefficients[1:])}


OURS = {
  "gae": gae,
  "clipped_surrogate": clipped_surrogate,
  "clipped_value_loss": clipped_value_loss,
  "shaped_reward": shaped_reward,
  "dpo": dpo_pairs,
  "dpo_tokens": dpo_tokens,
  "kto": kto_rows,
  "bco": bco_rows,
  "cpo": cpo_pairs,
  "orpo": orpo_pairs,
  "bradley_terry": bradley_terry,
  "log_exp": bradley_terry,
  "bradley_terry_pairs": comparisons,
  "plackett_luce": lambda x: rankings(x, unranked="ignored"),
  "plackett_luce_top_k": lambda x: rankings(x, unranked="below"),
  "top_one": top_one,
  "abilities": abilities,
  "cumulative_link": ordered_classes,
  "process_labels": process_labels,
  "sft": sft_loss,
  "kl": kl_estimate,
  "token_logps": token_logps,
  "masked_statistics": masked_statistics,
  "whiten": whiten,
  "truncate": truncate,
  "adaptive_kl": adaptive_kl,
}


def cases():
  """(library file's head, case) for every recorded case."""
  for library in LIBRARIES:
    golden = json.loads((GOLDEN / f"{library}.json").read_text())
    for case in golden["cases"]:
      yield golden, case


def errors(case) -> tuple[dict, dict]:
  """The largest difference over the largest entry, for each recorded output and each gradient."""
  inputs = {name: jnp.asarray(value, jnp.float32) for name, value in case["inputs"].items()}
  ours = OURS[case["kind"]](inputs, **case["settings"])
  gradients = ours.pop("gradient", {})

  def error(mine, reference):
    reference = np.asarray(reference)
    assert mine.shape == reference.shape
    difference = np.abs(np.asarray(mine, np.float64) - reference).max()
    return difference / max(np.abs(reference).max(), np.finfo(np.float32).tiny)

  return (
    {name: error(ours[name], value) for name, value in case["outputs"].items()},
    {name: error(gradients[name], value) for name, value in case["gradients"].items()},
  )


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(
      case, id=f"{golden['library']} {golden['version'][:8]}: {case['kind']}, {case['name']}"
    )
    for golden, case in cases()
  ],
)
def test_values_and_gradients_are_those_of_the_reference(case):
  values, gradients = errors(case)
  too_far = {name: e for name, e in {**values, **gradients}.items() if not e <= TOLERANCE}
  assert not too_far, f"{case['function']} differs in {too_far}"


def test_dpo_by_hand():
  # h = (-1 + 2) - (-3 + 2.5) = 1.5, and -log sigmoid(0.15) = log(1 + e^-0.15)
  pair = [jnp.asarray([x]) for x in (-1.0, -3.0, -2.0, -2.5)]
  np.testing.assert_allclose(dpo.dpo_loss(*pair, dpo.Config(beta=0.1)), [0.62095705], rtol=1e-6)


@pytest.mark.parametrize(
  ("loss_type", "expected"), [("sigmoid", np.log(2.0)), ("hinge", 1.0), ("ipo", 25.0)]
)
def test_dpo_at_the_reference_does_not_depend_on_the_pair(loss_type, expected):
  logps_w, logps_l = jnp.asarray([-3.0, -40.0, 0.0]), jnp.asarray([-7.0, -2.0, -1.0])
  losses = dpo.dpo_loss(
    logps_w, logps_l, logps_w, logps_l, dpo.Config(beta=0.1, loss_type=loss_type)
  )
  np.testing.assert_allclose(losses, np.full(3, expected), rtol=1e-6)


def test_dpo_with_smoothing_one_half_cannot_tell_the_pair():
  pair = [jnp.asarray([x]) for x in (-1.0, -3.0, -2.0, -2.5)]
  turned = [pair[1], pair[0], pair[3], pair[2]]
  config = dpo.Config(label_smoothing=0.5)
  np.testing.assert_allclose(dpo.dpo_loss(*pair, config), dpo.dpo_loss(*turned, config), rtol=1e-6)


def test_the_first_ppo_epoch_has_the_policy_gradient():
  mask = jnp.asarray([[0.0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
  advantages = jnp.asarray([[9.0, 1, -2, 9, 0.5], [-1, 3, 9, 9, 9]])
  logps = jnp.linspace(-3.0, -0.5, 10).reshape(2, 5)
  x = {"old_logps": logps, "advantages": advantages, "mask": mask}

  def loss(logps):
    params = {"logps": logps, "values": jnp.zeros_like(logps)}
    return ppo_terms(params, x, ppo.Config())[0]["policy"].value

  # The gradient of mean(-A log pi) over the five response tokens.
  np.testing.assert_allclose(jax.grad(loss)(logps), -advantages * mask / 5, rtol=1e-6)


def test_gae_without_discount_is_return_minus_value():
  rewards = jnp.asarray([[0.5, -1.0, 2.0, 7.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
  values = jnp.asarray([[1.0, 2.0, 3.0, 9.0, 4.0], [0.0, -1.0, 5.0, 9.0, 9.0]])
  mask = jnp.asarray([[1.0, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
  bootstrap = jnp.asarray([0.0, 10.0])
  advantages = returns.gae(rewards, values, mask, bootstrap, gamma=1.0, lambda_=1.0)
  # Row 0: rewards still to come are 2.5, 2, 3, 1. Row 1: 13, 12, 11 with the bootstrap.
  expected = [[1.5, 0.0, 0.0, 0.0, -3.0], [13.0, 13.0, 6.0, 0.0, 0.0]]
  np.testing.assert_allclose(advantages, expected, rtol=1e-6)
