"""Golden numbers from Tunix: GRPO, RLOO and Dr. GRPO advantages, GRPO's loss, dual clip, GSPO, aggregation, KL clamp.

  pip install jax==0.10.2 flax==0.12.8 optax orbax-checkpoint jaxtyping omegaconf && pip install --no-deps google-tunix==0.1.7
  python tests/parity/rl_tunix_golden.py

Written to `rl_tunix.json`, beside `tunix.json`. The losses take a model: the function that asks it for
log-probabilities is patched to return ours. Packages of the trainers that are not installed are replaced by
empty modules.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402
from flax import nnx  # noqa: E402

record.Absent(
  *("metrax", "qwix", "grain", "datasets", "transformers", "tensorflow_datasets", "kagglehub"),
  *("sentencepiece", "numba", "perfetto", "safetensors", "huggingface_hub", "pylatexenc", "dotenv"),
  *("tenacity", "tensorflow", "sympy", "torch", "hf_transfer", "tqdm", "PIL", "pandas", "vllm"),
  *("sgl_jax", "pathwaysutils"),
)

from tunix.rl import algo_core, common  # noqa: E402

GOLDEN = record.Recorder("tunix", "google-tunix", "jax", "flax", file="rl_tunix")

# Tunix's name for a way to add up the tokens, ours, and what it needs.
AGGREGATIONS = {
  "token-mean": dict(aggregation="token"),
  "sequence-mean-token-mean": dict(aggregation="sequence"),
  "sequence-mean-token-scale": dict(aggregation="fixed_length", length=record.T),
  "seq-mean-token-sum": dict(aggregation="sum"),
  "sequence-mean-token-sum-norm": dict(aggregation="sum"),
}


class NoModel(nnx.Module):
  """A module without parameters, for functions that split one before calling what is patched."""


def record_advantages():
  rewards = record.group_rewards()
  methods = {
    "compute_advantages": dict(method="grpo", scale="group", variance="unbiased", eps=1e-6),
    "compute_rloo_advantages": dict(method="rloo", scale="none"),
    "compute_drgrpo_advantages": dict(method="dr_grpo", scale="none"),
  }
  for function, settings in methods.items():
    advantages = getattr(algo_core, function)(rewards.reshape(-1), rewards.shape[1])
    GOLDEN.case(
      "group_advantages",
      settings["method"],
      f"tunix.rl.algo_core.{function}",
      dict(rewards=rewards),
      dict(advantages=np.asarray(advantages).reshape(rewards.shape)),
      settings=settings,
      note="GRPO's divides by the standard deviation, over n − 1, + 1e-6",
    )


def loss_of(name, function, kind, inputs, config, settings, note, **extra):
  x = {key: jnp.asarray(value) for key, value in inputs.items()}
  example = SimpleNamespace(
    prompt_ids=None,
    completion_ids=x["mask"],
    completion_mask=x["mask"],
    advantages=x["advantages"],
    old_per_token_logps=x["old_logps"],
    ref_per_token_logps=x.get("ref_logps"),
  )

  def loss_fn(logps):
    answer = (logps, jnp.zeros((*logps.shape, 2)))  # logits only for the entropy that is logged
    with mock.patch.object(common, "compute_per_token_logps", return_value=answer):
      return function(NoModel(), example, config, pad_id=0, eos_id=1)

  (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(x["logps"])
  outputs = dict(mean_loss=loss)
  if kind == "ppo_policy":
    outputs["clip_fraction"] = aux["pg_clipfrac"]
  GOLDEN.case(
    kind,
    name,
    f"tunix.rl.algo_core.{function.__name__}",
    inputs,
    outputs,
    settings=settings,
    gradients=dict(logps=gradient),
    note=note,
    **extra,
  )


def record_policy_loss():
  """PPO's loss, an advantage per token."""
  for clip_high, dual_clip in ((0.28, None), (0.2, 3.0), (0.28, 1.5)):
    step = record.group_step()
    inputs = {key: step[key] for key in ("logps", "old_logps", "mask")}
    inputs["advantages"] = record.policy_step(12)["advantages"]
    loss_of(
      f"clip higher at {clip_high}, dual clip {dual_clip}",
      algo_core.ppo_policy_loss_fn,
      "ppo_policy",
      inputs,
      SimpleNamespace(
        epsilon_low=0.2, epsilon_high=clip_high, epsilon_c=dual_clip, entropy_coef=None
      ),
      dict(clip_eps_low=0.2, clip_eps_high=clip_high, dual_clip=dual_clip, aggregation="token"),
      "the mean over tokens divides by their number + 1e-8; the clipped fraction does not count the dual clip",
    )


def grpo_case(
  name,
  inputs,
  *,
  mode="sequence-mean-token-mean",
  algorithm="grpo",
  low=0.2,
  high=0.2,
  dual_clip=None,
  kl_coef=0.0,
  kl="low_var_kl",
  kl_clamp=None,
):
  config = SimpleNamespace(
    beta=kl_coef,
    epsilon=low,
    epsilon_high=high,
    epsilon_c=dual_clip,
    loss_algo=algorithm,
    loss_agg_mode=mode,
    temperature=1.0,
    kl_loss_mode=kl,
    kl_clamp_value=kl_clamp,
  )
  settings = dict(
    loss_type="clip",
    clip_eps_low=low,
    clip_eps_high=high,
    dual_clip=dual_clip,
    kl_coef=kl_coef,
    kl_estimator=dict(kl="k1", mse_kl="k2", low_var_kl="k3")[kl],
    kl_importance=False,
    ratio="token" if algorithm == "grpo" else "sequence_token",
    **AGGREGATIONS[mode],
  )
  loss_of(
    name,
    algo_core.grpo_loss_fn,
    "grpo",
    inputs,
    config,
    settings,
    "responses without tokens are left out of a mean over sequences; the log-ratio is clamped at ±20"
    + "; the ratio of a token is sg(s) π / sg(π), s the exponential of the mean log-ratio: with one advantage per response "
    "and the mean over sequences of the mean over tokens, GSPO's own gradient"
    * (algorithm != "grpo"),
    precision="float32",  # the function casts
  )


def record_grpo():
  inputs = record.group_step()
  for mode in AGGREGATIONS:
    grpo_case(f"GRPO, {mode}", inputs, mode=mode)
    grpo_case(f"GRPO, {mode}, KL", inputs, mode=mode, kl_coef=0.0625)
    grpo_case(
      f"GRPO, {mode}, a response without tokens", record.group_step(empty_row=True), mode=mode
    )
  grpo_case("GRPO, clip higher", inputs, high=0.28, mode="token-mean")
  grpo_case("GRPO, dual clip 3", inputs, dual_clip=3.0)
  grpo_case("GRPO, dual clip 1.5", inputs, dual_clip=1.5)
  grpo_case("GRPO, k1 in the loss", inputs, kl_coef=0.0625, kl="kl")
  grpo_case("GRPO, k2 in the loss", inputs, kl_coef=0.0625, kl="mse_kl")
  grpo_case("GSPO-token", inputs, algorithm="gspo-token")
  grpo_case("GSPO-token, its paper's clip", inputs, algorithm="gspo-token", low=3e-4, high=4e-4)
  grpo_case("GSPO-token, token mean", inputs, algorithm="gspo-token", mode="token-mean")
  grpo_case("GSPO-token, KL", inputs, algorithm="gspo-token", kl_coef=0.0625)


def record_aggregation():
  inputs = dict(losses=record.trajectories()["rewards"], mask=np.asarray(record.MASK, np.float64))
  empty = inputs | dict(mask=record.group_step(empty_row=True)["mask"])
  for name, given in (("ragged rows", inputs), ("a row without tokens", empty)):
    for mode, settings in AGGREGATIONS.items():
      mask = jnp.asarray(given["mask"])
      aggregate = lambda losses, mask=mask, mode=mode: common.aggregate_loss(losses, mask, mode)
      loss, gradient = jax.value_and_grad(aggregate)(jnp.asarray(given["losses"]))
      GOLDEN.case(
        "aggregate",
        f"{mode}, {name}",
        "tunix.rl.common.aggregate_loss",
        given,
        dict(mean_loss=loss),
        settings=settings,
        gradients=dict(losses=gradient),
        note=(
          "rows without tokens are left out of a mean over sequences; sequence-mean-token-scale divides by the padded "
          "length, and sequence-mean-token-sum-norm by the number of rows with tokens, unless told another number"
        ),
        precision="float32",  # the function casts
      )


def record_kl():
  inputs = record.wide_token_pairs()
  ref_logps = jnp.asarray(inputs["ref_logps"])
  for estimator, method in (("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")):
    kl_fn = lambda logps, method=method: common.compute_kl_divergence(
      logps, ref_logps, method, 10.0
    )
    logps = jnp.asarray(inputs["logps"])
    GOLDEN.case(
      "kl_penalty",
      f"{estimator}, wide, clamped at 10",
      "tunix.rl.common.compute_kl_divergence",
      inputs,
      dict(kl=kl_fn(logps)),
      settings=dict(estimator=estimator, clamp=10.0, log_ratio_clamp=None, unbiased_gradient=False),
      gradients=dict(logps=jax.grad(lambda logps, f=kl_fn: jnp.mean(f(logps)))(logps)),
      note="the clamp is off by default",
      precision="float32",  # the function casts
    )


if __name__ == "__main__":
  record_advantages()
  record_policy_loss()
  record_grpo()
  record_aggregation()
  record_kl()
  GOLDEN.write()
