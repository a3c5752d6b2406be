"""Group advantages and policy losses against the reference libraries' own numbers, in value and gradient.

`tests/golden/rl_*.json` holds more than is compared here: losses that are not ours (SAPO, VESPO, GMPO, ILQL, ...) wait
there for theirs. What is left out of a kind that is compared is named in `differs`, with the reason.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import types
from rlhf_jax.algorithms import grpo, reinforce, rloo
from rlhf_jax.ops import kl, policy_gradients

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FILES = ("rl_trl_1_16", "rl_verl", "rl_openrlhf", "rl_tunix")
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


OURS = {"group_advantages": group_advantages, "grpo": grpo_loss}


def differs(library: str, case: dict) -> str | None:
  """Why a case is not ours, or None."""
  s, x = case["settings"], case["inputs"]
  if case["kind"] == "group_advantages":
    if s["method"] not in ("grpo", "dr_grpo", "rloo") or np.ndim(x["rewards"]) != 2:
      return "another estimator"
    return None
  if s.get("loss_type", "clip") not in ("clip", "cispo") or "off_policy_threshold" in s:
    return "another loss"
  if s["aggregation"] not in policy_gradients.AGGREGATIONS or "level" in s:
    return "another aggregation"
  if s.get("ratio", "token") not in ("token", "sequence", "sequence_sum"):
    return "GSPO-token, whose gradient is GSPO's where a response has one advantage"
  if s.get("kl_estimator", "k3") not in kl.KL_ESTIMATORS or s.get("kl_unbiased_gradient"):
    return "another estimator of KL, or a gradient of its own for it"
  if np.any(np.sum(x["mask"], axis=1) == 0) and not library.startswith("trl"):
    return (
      "leaves responses without tokens out of a mean over responses; TRL and we count them as 0"
    )
  return None


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
